"""What `relgrad compare` is given, opened: run folders, checkpoints, recipes (their untrained start), bare adapters.

Trainings of one recipe that differ in their seeds alone are one contender.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import OpensAdapters
from relgrad.core.run_folder import stages_in
from relgrad.core.settings import Component
from relgrad.runs import named_files
from relgrad.runs.build import resolve_stage
from relgrad.runs.named_stages import stage_in_run
from relgrad.runs.read_stage import read_stage, written_recipe
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.use import open_source
from relgrad.stages.settings import Stage
from relgrad.training import checkpoint

ADAPTER = "adapter_config.json"
ADAPTER_KIND = "autoregressive"
"""The kind of policy that a bare adapter is taken for."""
OF_ONE_RUN = ("seed", "name", "out", "trackers")
"""Settings in which two trainings of one recipe differ, or may."""


@dataclass(frozen=True)
class Opened:
    """One source. `start` is the folder whose weights it has; None: the untrained start of a recipe.

    stage  its settings; of a bare adapter None, which has no prompts and no rewards of its own
    """

    source: str
    stage: Stage | None
    start: Path | None

    @property
    def label(self) -> str:
        """What it is called."""
        return self.source if self.start is not None else f"{self.source} (untrained)"


def open_all(sources: Sequence[str], overrides: Sequence[str]) -> list[Opened]:
    """Every source, in order. Raises RelgradError for what is none, and for one that is named twice."""
    for source in sources:
        if sources.count(source) > 1:
            raise RelgradError(f"compare: {source} is named twice; name what it is to be compared with")
    return [open_one(source, overrides) for source in sources]


def open_one(source: str, overrides: Sequence[str]) -> Opened:
    """A run or stage folder, a recipe, one checkpoint of a run, or the folder of a bare adapter."""
    path = stage_in_run(source) or Path(source)
    saved = path.resolve()
    if (saved / "trainer" / "state.json").is_file() and (saved.parents[1] / "recipe.yaml").is_file():
        checkpoint.require_undamaged(saved, trainer=False)
        stage = read_stage(saved.parents[1], overrides)
        named_files.warn_of_changes(saved.parents[1], stage)
        return Opened(source, stage, saved)
    if (path / ADAPTER).is_file():
        return Opened(source, None, path)
    stage, start = open_source(source, overrides)
    return Opened(source, resolve_stage(stage), start)


def with_policy(opened: Opened, yardstick: Stage) -> Stage:
    """The stage whose policy is to be built for a source: its own, or for a bare adapter that of `yardstick` with the adapter on.

    Raises RelgradError for an adapter that cannot be opened.
    """
    if opened.stage is not None:
        return opened.stage
    assert opened.start is not None
    module = registry.find("policies", ADAPTER_KIND)
    assert isinstance(module, OpensAdapters)
    like = yardstick.policy.options if yardstick.policy.kind == ADAPTER_KIND else {}
    settings = module.adapter_settings(opened.start, like)
    return yardstick.model_copy(update={"policy": Component(kind=ADAPTER_KIND, **settings)})


# ---------------------------------------------------------------------- which trainings are of one recipe


def grouped(sources: Sequence[Opened]) -> list[list[Opened]]:
    """Sources of one recipe and different seeds together, in the order of their seeds; groups in the order of their first."""
    groups: list[tuple[str, list[Opened]]] = []
    for opened in sources:
        recipe, seed = recipe_of(opened), seed_of(opened)
        own = next(
            (
                group
                for recipe_of_group, group in groups
                if recipe_of_group == recipe and seed not in map(seed_of, group)
            ),
            None,
        )
        if own is None:
            groups.append((recipe, [opened]))
        else:
            own.append(opened)
    return [sorted(group, key=seed_of) for _, group in groups]


def seed_of(opened: Opened) -> int:
    """The seed of a training; 0 of a bare adapter, which does not say."""
    return 0 if opened.stage is None else opened.stage.seed


def recipe_of(opened: Opened) -> str:
    """What all trainings of one recipe have in common, whatever their seed; an adapter is alone with itself."""
    if opened.stage is None:
        return f"adapter {opened.source}"
    if opened.start is None:
        return json.dumps(["untrained", _without_seed(opened.stage.used)], sort_keys=True)
    return json.dumps(_recipe_until(opened.start.parents[1]), sort_keys=True)


def _recipe_until(folder: Path) -> list[Any]:
    """The recipes of a stage and of those before it in its run, as far as all seeds have them in common."""
    stages = stages_in(folder.parent)
    before = stages[: stages.index(folder) + 1] if folder in stages else [folder]
    return [_without_seed(_settings(stage)) for stage in before]


def _settings(folder: Path) -> dict[str, Any]:
    """A stage's settings with their defaults; as written where they are legal no more."""
    written = written_recipe(folder / "recipe.yaml")
    try:
        return resolve_stage(parse_recipe(written, source=str(folder)).stages[0]).used
    except RelgradError:
        return written


def _without_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings but those `OF_ONE_RUN`; a folder of another run is replaced by the recipe that made it."""
    return {key: _recipes_for_folders(value) for key, value in settings.items() if key not in OF_ONE_RUN}


def _recipes_for_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _recipes_for_folders(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_recipes_for_folders(inner) for inner in value]
    if isinstance(value, str) and "/" in value:
        for folder in (Path(value), *Path(value).parents[:2]):
            if (folder / "recipe.yaml").is_file():
                return _recipe_until(folder)
    return value
