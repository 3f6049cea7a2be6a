"""Recipes: YAML in, strict typed settings out. An unknown key is an error that names the nearest known one.

A recipe is one stage, or a list of `stages` that inherit everything else written at the top. So a stage may carry sections of other
kinds of stage: they are checked by those kinds' Settings, and left out of its own. Overrides from the command line
(`grpo.learning_rate=1e-4`, `stages.1.grpo.beta=0.01`) are applied before validation; their values are read as YAML, as the file
is (yaml_text.py). The names of the originals' configuration files are understood too (aliases.py), and a Python file of theirs
(original_config.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, ValidationError, create_model

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict, by_field, explain
from relgrad.core.whole_text import half_character
from relgrad.runs import aliases, original_config
from relgrad.runs.yaml_text import read_yaml
from relgrad.stages.kind import find, kind_of
from relgrad.stages.settings import Stage

_SHOWN = 80
"""Characters of an override that an error shows."""


class Recipe(Strict):
    """All stages of one experiment, in order."""

    name: str
    stages: tuple[SerializeAsAny[Stage], ...]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply `key.sub=value` overrides. Raises RelgradError with every problem in one message."""
    path = Path(path)
    if not path.is_file():
        raise RelgradError(
            f"no recipe {str(path)!r} (working directory {Path.cwd()}); recipes/ holds the built-in ones"
        )
    if path.suffix == ".py":
        return parse_recipe({"name": path.stem, **original_config.load(path)}, overrides, source=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RelgradError(f"{path}: not valid YAML: {error}") from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise RelgradError(f"{path}: a recipe is a mapping of settings, got {type(raw).__name__}")
    if "name" not in raw and half_character(path.stem):
        raise RelgradError(
            f"{path}: the file's name is no UTF-8 text, so it cannot be the run's too: give the recipe a `name`"
        )
    if is_search(raw):
        raise RelgradError(f"{path} describes a search, and no training: run it with `relgrad search {path}`")
    raw.setdefault("name", path.stem)
    return parse_recipe(raw, overrides, source=str(path))


def is_search(raw: Mapping[str, Any]) -> bool:
    """Whether a recipe is one of `relgrad search` (runs/search.py)."""
    return "search" in raw and "policy" not in raw and "stages" not in raw


def parse_recipe(raw: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """A recipe from plain data."""
    data = copy.deepcopy(dict(raw))
    shared_overrides, stage_overrides = _split(overrides)
    bodies = data.pop("stages", None) or [{}]
    if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
        raise RelgradError(f"{source}: stages is a list of mappings, one per stage (received {bodies!r})")
    if unknown := set(stage_overrides) - set(range(len(bodies))):
        raise RelgradError(f"override for stages.{min(unknown)}: the recipe has stages 0 to {len(bodies) - 1}")
    places = [f"{source}, stage {number + 1}" if len(bodies) > 1 else source for number in range(len(bodies))]
    data = aliases.translate(data, source)
    merged = []
    for number, body in enumerate(bodies):
        stage = _merge(data, aliases.translate(body, f"{source}, stage {number + 1}"))
        for key, value in [*shared_overrides, *stage_overrides.get(number, ())]:
            assign(stage, key, value)
        merged.append(stage)
    kinds = [_kind(stage, place) for stage, place in zip(merged, places, strict=True)]
    models = {kind: find(kind)[0] for kind in [*kinds, *registry.kinds("stages")]}
    stages = [_stage(stage, kind, models, place) for stage, kind, place in zip(merged, kinds, places, strict=True)]
    _require_own_labels(stages, source)
    return Recipe(name=stages[0].name, stages=tuple(stages))


def _kind(stage: Mapping[str, Any], place: str) -> str:
    kind = stage.get("stage", Stage.model_fields["stage"].default)
    if not isinstance(kind, str):
        names = ", ".join(registry.kinds("stages"))
        raise RelgradError(f"{place}: stage is the name of a kind: {names}, or your own .py file (received {kind!r})")
    return kind


def _stage(merged: Mapping[str, Any], kind: str, models: Mapping[str, type[Stage]], place: str) -> Stage:
    """The stage's own settings, once everything that is written was checked."""
    own, model = models[kind], stage_model(kind, models)
    try:
        checked = model.model_validate(by_field(merged, model))
        fields = own.model_fields
        return own.model_validate({fields[name].alias or name: value for name, value in checked if name in fields})
    except ValidationError as error:
        raise RelgradError(f"{place}:\n{explain(error, model)}") from None


def stage_model(kind: str, models: Mapping[str, type[Stage]]) -> type[Stage]:
    """The settings of a kind of stage, with the sections of the others in `models` beside them.

    Raises RelgradError where two kinds have a section of one name and mean different settings by it.
    """
    own = models[kind]
    fields = dict(own.model_fields)
    foreign: dict[str, Any] = {}
    for other, model in models.items():
        for name, field in model.model_fields.items():
            if fields.setdefault(name, field).annotation != field.annotation:
                raise RelgradError(
                    f"stages: {other!r} has a section {name!r} with other settings than another kind of stage has under this "
                    "name; give the section of your own kind a name of its own"
                )
            if name not in own.model_fields:
                foreign[name] = (field.annotation, None if field.is_required() else field)
    return create_model(own.__name__, __base__=own, **foreign)


def _require_own_labels(stages: Sequence[Stage], source: str) -> None:
    """Raise RelgradError for two stages of one name, where their kind does not allow it."""
    names = [stage.called for stage in stages if kind_of(stage).own_label]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            kind = next(stage.stage for stage in stages if stage.called == name)
            raise RelgradError(
                f"{source}: {names.count(name)} {registry.short(kind)} stages are called {name!r}; give each a `label` of its "
                "own, which also seeds it and names its folder"
            )


def _split(overrides: Iterable[str]) -> tuple[list[aliases.Setting], dict[int, list[aliases.Setting]]]:
    """Overrides of all stages, and those of one stage by its number."""
    shared: list[aliases.Setting] = []
    by_stage: dict[int, list[aliases.Setting]] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RelgradError(f"override {text!r}: write key.sub=value, for example grpo.steps=50")
        parts = key.strip().split(".")
        parsed = read_yaml(value, f"override {text[:_SHOWN]!r}")
        if parts[0] == "stages" and len(parts) > 2 and _is_index(parts[1]):
            by_stage.setdefault(int(parts[1]), []).append((tuple(parts[2:]), parsed))
        else:
            shared.append((tuple(parts), parsed))
    translated = {n: aliases.translate_settings(own, f"overrides of stages.{n}") for n, own in by_stage.items()}
    return aliases.translate_settings(shared, "overrides"), translated


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain data with `key.sub=value` overrides applied. Raises RelgradError as overrides of a recipe do."""
    changed = copy.deepcopy(dict(data))
    for key, value in _split(overrides)[0]:
        assign(changed, key, value)
    return changed


def _is_index(part: str) -> bool:
    """Whether a part of a key counts the entries of a list; `²` is a digit, and 5,000 of them make no number."""
    return part.isdecimal() and len(part) < 10


def assign(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value where the keys lead, making sections on the way. Raises RelgradError where they lead nowhere."""
    target: Any = data
    for depth, part in enumerate(path):
        if isinstance(target, list) and not (_is_index(part) and int(part) < len(target)):
            where = ".".join(path[:depth])
            raise RelgradError(
                f"override {'.'.join(path)}: {where} is a list of {len(target)}, so a number below that must follow, not {part!r}"
            )
        key: Any = int(part) if isinstance(target, list) else part
        if depth + 1 == len(path):
            target[key] = copy.deepcopy(value)
            return
        target = target[key] if isinstance(target, list) else target.setdefault(key, {})
        if not isinstance(target, (dict, list)):
            raise RelgradError(f"override {'.'.join(path)}: {part!r} is a plain value, it has no keys inside")


def _merge(base: Any, top: Any) -> Any:
    """`top` over `base`, section by section; a section that names another `kind` replaces the old one whole."""
    if isinstance(base, dict) and isinstance(top, dict):
        if "kind" in top and top["kind"] != base.get("kind"):
            return copy.deepcopy(top)
        return {
            k: _merge(base[k], top[k]) if k in base and k in top else copy.deepcopy((top if k in top else base)[k])
            for k in {**base, **top}
        }
    return copy.deepcopy(top)
