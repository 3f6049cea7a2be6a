"""Settings: strict pydantic models, sections that name a `kind`, and what is said of a mistake in them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from relgrad.core import secrets
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
    patterns  whether * and ** stand for names; what is inside relgrad, {relgrad}, is left out
    """

    besides: tuple[str, ...] = ()
    or_hub: bool = False
    within: tuple[str, ...] = ()
    patterns: bool = False


@dataclass(frozen=True)
class NamesCode:
    """Annotates a setting that names Python code of the user's: `place` or `place:name`, a .py file or an importable module."""


class Component(BaseModel):
    """A section that names a `kind`; the rest is checked by that kind's own Settings when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but `kind` (and a reward's `weight`, `name`, `isolate` and `ray_workers`, which the recipe reads itself)."""
        return dict(self.model_extra or {})


class RewardComponent(Component):
    """A reward of weight 0 is a monitor: logged and evaluated, never part of the sum.

    isolate      "process": it is called in a process of its own, which is ended at the deadline; "ray": in some of a Ray cluster
    ray_workers  with "ray": how many processes, each for one group at a time
    """

    weight: float = 1.0
    name: str | None = None
    isolate: Literal["process", "ray"] | None = None
    ray_workers: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _workers_of_ray(self) -> RewardComponent:
        if self.ray_workers > 1 and self.isolate != "ray":
            raise ValueError(f"ray_workers={self.ray_workers} needs isolate: ray")
        return self


def settings_of(component: Component, model: type[BaseModel], where: str) -> Any:
    """The kind's own Settings from a recipe section, to be used: `env:NAME` is replaced by what it stands for.

    Raises RelgradError, which names the section, for a bad key or value, and for an environment variable that is not set.
    """
    return checked(secrets.resolved(component.options, where), model, f"{where} (kind {component.kind!r})")


def written_settings(component: Component, model: type[BaseModel], where: str) -> Any:
    """The kind's own Settings from a recipe section, to be kept: references stay references. Raises as `settings_of` does."""
    return checked(component.options, model, f"{where} (kind {component.kind!r})")


def checked(data: Mapping[str, Any], model: type[BaseModel], where: str) -> Any:
    """Settings from plain data. Raises RelgradError, beginning with `where`, with every problem in one message."""
    try:
        return model.model_validate(by_field(data, model))
    except ValidationError as error:
        raise RelgradError(f"{where}:\n{explain(error, model)}") from None


# ---------------------------------------------------------------------- numbers or text: the field says


class Exponent(float):
    """A number in exponent notation that stood in YAML without quotes. `text` is how it was written, for fields that hold text."""

    text: str

    def __new__(cls, text: str) -> Exponent:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __deepcopy__(self, memo: object) -> Exponent:
        return self


def by_field(value: Any, annotation: Any) -> Any:
    """Plain data with every Exponent as its field takes it: as text where that is for text, as a number elsewhere.

    annotation  the type that the value is for; a model for its data
    """
    if isinstance(value, Exponent):
        return value.text if _for_text(annotation) else float(value)
    if isinstance(value, Mapping):
        return {key: _inner(inner, str(key), annotation) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        items = [args[0] for kind in _alternatives(annotation) if (args := get_args(kind)) and _is_list(kind)]
        return [by_field(inner, items[0] if items else Any) for inner in value]
    return value


def _inner(value: Any, key: str, annotation: Any) -> Any:
    """The value under a key, by the field of this name; as it is where another model will say what the key is for."""
    kinds = _alternatives(annotation)
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    for model in models:
        if key in model.model_fields:
            return by_field(value, model.model_fields[key].annotation)
    if any(model.model_config.get("extra") == "allow" for model in models):
        return value
    values = [get_args(kind)[1] for kind in kinds if get_origin(kind) in (dict, Mapping)]
    return by_field(value, values[0] if values else Any)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, each without its notes; one that is no union stands alone."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, Sequence)


def _for_text(annotation: Any) -> bool:
    kinds = _alternatives(annotation)
    return not {int, float} & set(kinds) and any(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem: the key's path, what was received, and for an unknown key the nearest known one."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            lines.append(f"  {path}: unknown key.{hint} Known here: {', '.join(allowed)}")
        elif problem["type"] == "missing":
            lines.append(f"  {path}: missing; this key is required")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {path or 'here'}: {message}{_received(problem)}")
    return "\n".join(lines)


def _received(problem: Any) -> str:
    """The value that was wrong; where YAML read as something else what should be text, also how to write it."""
    value = problem["input"]
    shown = "" if isinstance(value, dict) else f" (received {_shown(problem['loc'], value)})"
    if problem["type"] in ("string_type", "path_type"):
        if isinstance(value, (int, float, date)):
            return f"{shown}; YAML reads it so without quotes: put the text in quotes"
        if isinstance(value, (dict, list)):
            return f"{shown}; YAML reads braces as sections and brackets as lists: put the text in quotes"
    return shown


def _shown(path: Sequence[Any], value: Any) -> str:
    if secrets.is_secret(".".join(map(str, path)), value):
        return secrets.HIDDEN
    return secrets.hide(repr(secrets.without_secrets(value)))


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a path, within lists, optional sections and unions too: of a union those of the member tried."""
    members = [model]
    for part in path:
        inner = [kind for member in members for kind in _sections_under(member, str(part))]
        chosen = [member for member in members if str(part) == member.__name__ or _is_tagged(member, part)]
        if inner:
            members = inner
        elif (
            chosen
        ):  # after a union's key pydantic names its member: the class, or the value that tells it from the others
            members = chosen
    return sorted({field.alias or name for member in members for name, field in member.model_fields.items()})


def _sections_under(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The models that a key of a model may hold, alone or in a list."""
    fields = [field for name, field in model.model_fields.items() if key in (name, field.alias)]
    return [kind for field in fields for kind in _models_in(field.annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    models = []
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            models.append(kind)
        elif _is_list(kind) or get_origin(kind) in (dict, Mapping):
            models += [model for inner in get_args(kind) for model in _models_in(inner)]
    return models


def _is_tagged(model: type[BaseModel], tag: Any) -> bool:
    """Whether a field of the model can have no other values than a few, of which the tag is one."""
    return any(
        get_origin(kind) is Literal and tag in get_args(kind)
        for field in model.model_fields.values()
        for kind in _alternatives(field.annotation)
    )
