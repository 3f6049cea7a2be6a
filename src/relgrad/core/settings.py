"""Settings: strict pydantic models, sections that name a `kind`, and what is said of a mistake in them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from relgrad.core.errors import RelgradError


class Strict(BaseModel):
    """Unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


@dataclass(frozen=True)
class NamesFiles:
    """Annotates a setting whose text, or texts, may name a file or folder: then what is in it belongs to the run.

    besides   values that have another meaning
    or_hub    whether it may also be a name on the hub: then only what looks like a path must exist
    within    of a folder, the files that count, relative to it; empty: all
    """

    besides: tuple[str, ...] = ()
    or_hub: bool = False
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamesCode:
    """Annotates a setting that names Python code of the user's: `place` or `place:name`, a .py file or an importable module."""


class Component(BaseModel):
    """A section that names a `kind`; the rest is checked by that kind's own Settings when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but `kind` (and a reward's `weight` and `name`, which the recipe reads itself)."""
        return dict(self.model_extra or {})


class RewardComponent(Component):
    """A reward of weight 0 is a monitor: logged and evaluated, never part of the sum."""

    weight: float = 1.0
    name: str | None = None


def settings_of(component: Component, model: type[BaseModel], where: str) -> Any:
    """The kind's own Settings from a recipe section; RelgradError names the section on a bad key or value."""
    try:
        return model.model_validate(component.options)
    except ValidationError as error:
        raise RelgradError(f"{where} (kind {component.kind!r}):\n{explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem: the key's path, what was received, and for an unknown key the nearest known one."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            lines.append(f"  {path}: unknown key.{hint} Known here: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"  {path}: missing; this key is required")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            received = "" if isinstance(problem["input"], dict) else f" (received {problem['input']!r})"
            lines.append(f"  {path or 'here'}: {message}{received}")
    return "\n".join(lines)


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return sorted(model.model_fields)
