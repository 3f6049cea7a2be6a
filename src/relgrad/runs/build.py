"""Recipes to objects: every part a recipe names, found by its kind, checked and built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import relgrad
from relgrad.training import checkpoint
from relgrad.runs import recipe as config
from relgrad.core import registry
from relgrad.runs.recipe import Recipe, RewardComponent, Stage
from relgrad.objectives.losses import PolicyLoss
from relgrad.core.protocols import Loss
from relgrad.core.randomness import derived
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.core.run_folder import RunDir
from relgrad.tasks import Task
from relgrad.core.types import Example
from relgrad.core.errors import RelgradError

RECIPES = Path(relgrad.__file__).parent / "recipes"
LINK = "stage:"
"""A setting that begins so names a stage of the same recipe and stands for what that stage saved last."""


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
    """The recipe with every component's settings checked and its defaults written out. Raises RelgradError."""
    stages = []
    for number, stage in enumerate(recipe.stages):
        try:
            stages.append(_resolve_stage(stage))
        except RelgradError as error:
            raise RelgradError(f"{recipe.name}, stage {number + 1} ({stage.stage}): {error}") from None
    _require_links(recipe)
    return Recipe(name=recipe.name, stages=tuple(stages))


def _require_links(recipe: Recipe) -> None:
    """Raise RelgradError for a `stage:LABEL` that no earlier stage has: not when its turn comes, hours later."""
    before: list[Path] = []
    for folder, stage in zip(stage_folders(recipe), recipe.stages, strict=True):
        for label in _links([reward.model_dump() for reward in (*stage.rewards, *stage.evaluation.rewards)]):
            if not any(_is_called(earlier, label) for earlier in before):
                raise RelgradError(
                    f"{LINK}{label}: the recipe has no such stage before {folder.name}; there are {_labels(before)}. Give "
                    "the label or kind of an earlier stage, or the folder of a stage of another run"
                )
        before.append(folder)


def _links(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [link for inner in value.values() for link in _links(inner)]
    if isinstance(value, (list, tuple)):
        return [link for inner in value for link in _links(inner)]
    return [value.removeprefix(LINK)] if isinstance(value, str) and value.startswith(LINK) else []


def _is_called(folder: Path, label: str) -> bool:
    """Whether a stage's folder, 2-judge say, is meant by a label: `judge`, or `2-judge`."""
    return label in (folder.name, folder.name.partition("-")[2])


def _labels(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name.partition("-")[2] for folder in folders) or "none"


def _resolve_stage(stage: Stage) -> Stage:
    def filled(component: Any, room: str, where: str) -> Any:
        settings = config.settings_of(component, registry.find(room, component.kind).Settings, where)
        own = component.model_dump(include=type(component).model_fields)
        return type(component)(**own, **settings.model_dump(mode="json"))

    def all_filled(components: Sequence[RewardComponent], where: str) -> tuple[RewardComponent, ...]:
        return tuple(filled(r, "rewards", f"{where}.{i}") for i, r in enumerate(components))

    parts = {"policy": filled(stage.policy, "policies", "policy"), "task": filled(stage.task, "tasks", "task")}
    if stage.judge is not None:
        parts["judge"] = filled(stage.judge, "judges", "judge")
    judged_by = all_filled(stage.evaluation.rewards, "evaluation.rewards")
    parts["evaluation"] = stage.evaluation.model_copy(update={"rewards": judged_by})
    return stage.model_copy(update={**parts, "rewards": all_filled(stage.rewards, "rewards")})


def stage_folders(recipe: Recipe) -> list[Path]:
    """Where each stage runs: `out/name/1-sft`, `out/name/2-grpo`; a stage's label takes the place of its kind."""
    return [stage.out / recipe.name / f"{i + 1}-{stage.label or stage.stage}" for i, stage in enumerate(recipe.stages)]


def load_task(stage: Stage) -> Task:
    """The stage's task. Raises RelgradError when it has no training prompts."""
    module = registry.find("tasks", stage.task.kind)
    seed = judge_seed(stage) if stage.stage == "judge" else stage.seed
    task = module.load(config.settings_of(stage.task, module.Settings, "task"), seed)
    if not task.train:
        raise RelgradError(
            f"task {stage.task.kind!r} has no training prompts; look at its path, split and limit settings"
        )
    return task


def build_policy(stage: Stage, start: Path | None) -> Any:
    """The stage's policy, going on from `start` where an earlier stage left one."""
    module = registry.find("policies", stage.policy.kind)
    settings = config.settings_of(stage.policy, module.Settings, "policy")
    reference = stage.stage == "grpo" and stage.grpo.beta > 0
    return module.build(settings, stage.seed, start=start, reference=reference)


def policy_loss(stage: Stage) -> Loss:
    """The loss that the `grpo` section describes: a built-in one, or what the `build` of its `loss` module returns."""
    if stage.grpo.loss is not None:
        return registry.find("losses", stage.grpo.loss).build(stage.grpo)
    names = PolicyLoss.__dataclass_fields__
    return PolicyLoss(**{name: getattr(stage.grpo, name) for name in names})


class Examples(Sequence[Example]):
    """Training prompts with their targets, made when they are asked for. A row without the column raises RelgradError.

    Without a column (for a judge, whose target is what is right) the targets are empty.
    """

    def __init__(self, task: Task, column: str | None) -> None:
        self.prompts, self.column = task.train, column
        self.in_order = getattr(task.train, "in_order", False)
        if isinstance(task.train, (list, tuple)):  # whatever is made on demand is checked on demand
            for index in range(len(self)):
                self[index]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        prompt = self.prompts[index]
        target = "" if self.column is None else prompt.columns.get(self.column)
        if not isinstance(target, str):
            raise RelgradError(
                f"sft: prompt {prompt.id} has no text column {self.column!r}; it has "
                f"{', '.join(sorted(prompt.columns)) or 'none'}. Set sft.completion_column to the column that holds the text "
                "to learn"
            )
        return Example(prompt, target)


def build_judge(stage: Stage, policy: Any) -> Any:
    """The judge that a judge stage trains, for what this policy writes."""
    assert stage.judge is not None
    module = registry.find("judges", stage.judge.kind)
    return module.build(config.settings_of(stage.judge, module.Settings, "judge"), judge_seed(stage), policy)


def judge_seed(stage: Stage) -> int:
    """The seed of a judge stage: another one for every label, so that two judges of a run share no random number."""
    return derived(stage.seed, "judge", stage.label or stage.stage)


def stage_rewards(stage: Stage, components: Sequence[RewardComponent], run: Path | None) -> RewardSet:
    """Rewards of the stage; settings that name a stage of the recipe are looked up in the folder `run`."""
    linked = [RewardComponent.model_validate(_linked(r.model_dump(), run)) for r in components]
    return build_rewards(linked, stage.grpo.reward_timeout)


def build_rewards(components: Sequence[RewardComponent], timeout: float) -> RewardSet:
    """The rewards of a recipe, by kind. A reward is called after its `name`, or its kind where it has none.

    Raises RelgradError for an unknown kind, a bad setting or two rewards of one name.
    """
    rewards = []
    for number, component in enumerate(components):
        where = f"rewards.{number}"
        module = registry.find("rewards", component.kind)
        for part in ("Settings", "build"):
            if not hasattr(module, part):
                raise RelgradError(
                    f"{where}: {component.kind!r} offers no `{part}`; a reward module has Settings and build"
                )
        function = module.build(config.settings_of(component, module.Settings, where))
        rewards.append(NamedReward(component.name or _default_name(component.kind), function, component.weight))
    return RewardSet(rewards, timeout)


def _default_name(kind: str) -> str:
    """A kind's short name: `exact`; `mine` of `rewards/mine.py`; `my_reward` of `my_package.my_reward`."""
    return Path(kind).stem if kind.endswith(".py") else kind.rpartition(".")[2]


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
    stages = sorted(p.parent for p in run.glob("*/recipe.yaml"))
    found = [p for p in stages if _is_called(p, label)]
    if not found:
        raise RelgradError(f"{LINK}{label}: no such stage before this one in {run}; there are {_labels(stages)}")
    newest = checkpoint.latest(RunDir(found[0]).checkpoints)
    if newest is None:
        raise RelgradError(f"{LINK}{label}: {found[0]} has no checkpoint yet; run the recipe up to there")
    return newest
