"""Recipes to what their stages are built from: every part a recipe names, found by its kind and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import relgrad
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir, stages_in
from relgrad.core.secrets import require_references
from relgrad.core.settings import Component, RewardComponent, settings_of, written_settings
from relgrad.evaluation.suite import require_primary
from relgrad.rewards._columns import missing_column
from relgrad.rewards.combine import Isolated, NamedReward, NamesRewards, NeedsColumns, RewardSet
from relgrad.runs.named_stages import LINK, is_called, label_of, labels_of, links, number_of, rewards_in, stage_folders
from relgrad.runs.recipe import Recipe
from relgrad.runs.starts import starts_of
from relgrad.stages.kind import has_epochs, kind_of, loop_settings, with_steps
from relgrad.stages.settings import RewardedStage, Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint
from relgrad.training.length import LengthSettings

RECIPES = Path(relgrad.__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe file by path, or a built-in recipe by name. Raises RelgradError with the names there are."""
    if Path(name).is_file():
        return Path(name)
    built_in = RECIPES / f"{name}.yaml"
    if built_in.is_file():
        return built_in
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise RelgradError(f"no recipe {name!r}: no such file (working directory {Path.cwd()}), and built-in are {names}")


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every component's settings checked and its defaults written out.

    Raises RelgradError, also for a secret that is written out, and for one that the environment does not have.
    """
    stages = []
    for number, stage in enumerate(recipe.stages):
        try:
            stages.append(resolve_stage(stage))
            for where, component in _components(stage):
                require_references(component.options, where)
        except RelgradError as error:
            raise RelgradError(f"{recipe.name}, stage {number + 1} ({stage.stage}): {error}") from None
    _require_links(recipe)
    _require_primary(stages)
    starts_of(recipe)
    return Recipe(name=recipe.name, stages=tuple(stages))


def _require_primary(stages: Sequence[Stage]) -> None:
    """Raise RelgradError for a suite whose primary figure no stage has: not when everything has been drawn."""
    problems = []
    measured = [stage for stage in stages if stage.evaluation.suite is not None and stage.judged_by]
    for stage in measured:
        assert stage.evaluation.suite is not None
        names = [reward.name or registry.short(reward.kind) for reward in stage.judged_by]
        try:
            require_primary(stage.evaluation.suite, names, stage.evaluation.num_generations)
        except RelgradError as error:
            problems.append(error)
    if problems and len(problems) == len(measured):
        raise problems[0]


def resolve_stage(stage: Stage) -> Stage:
    """The stage with the settings of every kind it names checked, and their defaults written out. Raises RelgradError."""
    values = dict(stage)
    rooms = _rooms(stage)
    parts: dict[str, Any] = {
        name: _filled(values[name], room, name) for name, room in rooms.items() if values[name] is not None
    }
    judged_by = _all_filled(stage.evaluation.rewards, "evaluation.rewards")
    parts["evaluation"] = stage.evaluation.model_copy(update={"rewards": judged_by})
    if isinstance(stage, RewardedStage):
        parts["rewards"] = _all_filled(stage.rewards, "rewards")
    return stage.model_copy(update=parts)


def _rooms(stage: Stage) -> dict[str, str]:
    """The stage's sections that name one kind, and the room of these kinds."""
    return {"policy": "policies", "task": "tasks", **kind_of(stage).components}


def _components(stage: Stage) -> Iterator[tuple[str, Component]]:
    """All of the stage's sections that name a kind, and where they stand in its recipe."""
    values = dict(stage)
    yield from ((name, values[name]) for name in _rooms(stage) if values[name] is not None)
    yield from ((f"evaluation.rewards.{number}", reward) for number, reward in enumerate(stage.evaluation.rewards))
    if isinstance(stage, RewardedStage):
        yield from ((f"rewards.{number}", reward) for number, reward in enumerate(stage.rewards))


def _filled(component: Any, room: str, where: str) -> Any:
    settings = written_settings(component, registry.find(room, component.kind).Settings, where)
    own = component.model_dump(include=set(type(component).model_fields))
    return type(component)(**own, **settings.model_dump(mode="json"))


def _all_filled(components: Sequence[RewardComponent], where: str) -> tuple[RewardComponent, ...]:
    """With the names that rewards give themselves, for whoever reads the recipe without the code."""
    filled = []
    for number, component in enumerate(components):
        settings = written_settings(component, registry.find("rewards", component.kind).Settings, f"{where}.{number}")
        own = {
            **component.model_dump(include={"kind", "weight", "isolate", "ray_workers"}),
            "name": _own_name(component, settings),
        }
        filled.append(RewardComponent(**own, **settings.model_dump(mode="json")))
    return tuple(filled)


def _own_name(component: RewardComponent, settings: Any) -> str | None:
    """The name that the recipe or the reward's own module gives it; None for one that is called after its kind."""
    module = registry.find("rewards", component.kind)
    return component.name or (module.name_of(settings) if isinstance(module, NamesRewards) else None)


# ---------------------------------------------------------------------- links between stages


def _require_links(recipe: Recipe) -> None:
    """Raise RelgradError for a `stage:LABEL` that no earlier stage has: not when its turn comes, hours later."""
    before: list[Path] = []
    for folder, stage in zip(stage_folders(recipe), recipe.stages, strict=True):
        for label in links([reward.model_dump() for reward in rewards_in(stage)]):
            if not any(is_called(earlier, label) for earlier in before):
                raise RelgradError(
                    f"{LINK}{label}: the recipe has no such stage before {folder.name}; there are {labels_of(before)}. Give "
                    "the label or kind of an earlier stage, or the folder of a stage of another run"
                )
        before.append(folder)


def require_rewards(recipe: Recipe, ended: int) -> None:
    """Build, on trial, the rewards of later stages for which the stage of this number was the last that they needed.

    So a reward that may not serve, a judge below its bar, ends the run before another stage trains. Raises RelgradError with what
    it says, what was trained so far, and how to go on.
    """
    folders = stage_folders(recipe)
    for stage in recipe.stages[ended + 1 :]:
        for component in rewards_in(stage):
            needed = [number_of(folders, label) for label in links(component.model_dump())]
            if not needed or max(needed) != ended:
                continue
            linked = RewardComponent.model_validate(_linked(component.model_dump(), folders[0].parent))
            module = registry.find("rewards", component.kind)
            settings = settings_of(linked, module.Settings, f"rewards of {stage.called}")
            try:
                module.build(settings)
            except RelgradError as error:
                raise RelgradError(
                    f"{error}. So far there were {_trained(recipe, folders[: ended + 1])}. What was trained is kept: give the "
                    "stage that is to change other settings and start over there, for example with --from "
                    f"{label_of(folders[ended])}"
                ) from None


def _trained(recipe: Recipe, folders: Sequence[Path]) -> str:
    """The steps of the first stages, each with the setting that says how many."""
    lengths = []
    for number, (stage, folder) in enumerate(zip(recipe.stages, folders, strict=False)):
        settings, section = loop_settings(stage), f"stages.{number}.{kind_of(stage).loop}"
        length = "epochs" if isinstance(settings, LengthSettings) and settings.epochs else "steps"
        lengths.append(f"{settings.steps} steps of {label_of(folder)} ({section}.{length})")
    return ", ".join(lengths)


def is_linked(stage: Stage) -> bool:
    """Whether a reward of its evaluations needs what another stage of the recipe trains."""
    return any(LINK in str(r.options) for r in stage.judged_by)


def _linked(value: Any, run: Path | None) -> Any:
    if isinstance(value, dict):
        return {k: _linked(v, run) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_linked(v, run) for v in value]
    if isinstance(value, str) and value.startswith(LINK) and run is not None:
        return str(_stage_result(run, value.removeprefix(LINK)))
    return value


def _stage_result(run: Path, label: str) -> Path:
    """The newest checkpoint of the stage called `label` (a label, a stage kind, or a folder name) of a run."""
    stages = stages_in(run)
    called_so = [p for p in stages if is_called(p, label)]
    if not called_so:
        raise RelgradError(f"{LINK}{label}: no such stage before this one in {run}; there are {labels_of(stages)}")
    newest = checkpoint.latest_to_use(RunDir(called_so[0]).checkpoints)
    if newest is None:
        raise RelgradError(f"{LINK}{label}: {called_so[0]} has no checkpoint yet; run the recipe up to there")
    return newest


# ---------------------------------------------------------------------- folders, tasks, rewards


def load_task(stage: Stage) -> Task:
    """The stage's task. Raises RelgradError when it has no training prompts."""
    module = registry.find("tasks", stage.task.kind)
    task: Task = module.load(settings_of(stage.task, module.Settings, "task"), kind_of(stage).seed(stage))
    if not task.train:
        raise RelgradError(
            f"task {stage.task.kind!r} has no training prompts; look at its path, split and limit settings"
        )
    return task


def require_columns(stage: Stage, task: Task) -> None:
    """Raise RelgradError where the task's first prompt lacks a column that a reward of the stage cannot do without."""
    rewards = [*(stage.rewards if isinstance(stage, RewardedStage) else ()), *stage.evaluation.rewards]
    for component in rewards:
        module = registry.find("rewards", component.kind)
        if not isinstance(module, NeedsColumns):
            continue
        for name in module.columns_of(settings_of(component, module.Settings, "rewards")):
            if name not in task.train[0].columns:
                raise RelgradError(
                    f"reward {component.kind!r} reads the column {name!r}: {missing_column(name, task.train[0])}. The task is "
                    f"{stage.task.kind!r}: give its rows this column"
                )


def with_epochs_counted(stage: Stage) -> Stage:
    """The stage with its epochs counted in optimizer steps, for which its task is loaded; itself where it counts in steps.

    Raises RelgradError for a task without an end.
    """
    return with_steps(stage, load_task(stage)) if has_epochs(stage) else stage


def linked_rewards(components: Sequence[RewardComponent], timeout: float, run: Path | None) -> RewardSet:
    """Rewards of a stage; settings that name another stage of its recipe are looked up in the folder `run`."""
    linked = [RewardComponent.model_validate(_linked(r.model_dump(), run)) for r in components]
    return build_rewards(linked, timeout)


def build_rewards(components: Sequence[RewardComponent], timeout: float) -> RewardSet:
    """The rewards of a recipe, by kind. A reward without a `name` is called as its module says, or after its kind.

    Raises RelgradError for an unknown kind, a bad setting or two rewards of one name.
    """
    rewards = []
    for number, component in enumerate(components):
        where = f"rewards.{number}"
        module = registry.find("rewards", component.kind)
        settings = settings_of(component, module.Settings, where)
        if component.isolate is None:
            reward = module.build(settings)
        else:
            reward = Isolated(component.kind, component.options, where, component.isolate, component.ray_workers)
        name = _own_name(component, settings) or registry.short(component.kind)
        rewards.append(NamedReward(name, reward, component.weight))
    return RewardSet(rewards, timeout)
