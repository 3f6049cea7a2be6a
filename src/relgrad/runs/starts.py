"""Where the stages of a recipe start: the setting `from`, by which several models are one recipe.

nothing       the policy of the last stage before that trains one; in the first stage the recipe's own
from: start   the recipe's own policy, untrained
from: LABEL   the policy of an earlier stage, by its label, its kind or its folder's name
from: FOLDER  the policy of a stage of another run: the folder of the run, of the stage, or of one of its checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import GoesOnFrom
from relgrad.core.run_folder import RunDir, refuse_folder_of_runs, stages_in
from relgrad.runs.named_stages import is_called, labels_of, links, number_of, rewards_in, stage_folders, the_only_one
from relgrad.runs.read_stage import read_stage
from relgrad.runs.recipe import Recipe
from relgrad.stages.kind import kind_of
from relgrad.stages.settings import Stage
from relgrad.training import checkpoint

OWN = "start"
"""The word for the recipe's own, untrained policy."""


def starts_of(recipe: Recipe) -> list[Path | None]:
    """For every stage the folder it starts from: a stage's, or a checkpoint's; None where it is the recipe's own policy.

    Raises RelgradError for a label that no earlier stage has, or several; for a stage that trains no policy; for a folder that is
    none of a run; and for a policy of another kind.
    """
    folders = stage_folders(recipe)
    starts: list[Path | None] = []
    for number, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        start = _start(recipe, folders, number)
        if start in folders:
            source = recipe.stages[folders.index(start)]
            _require_usable(source, stage, f"{folder.name}, which starts from {start.name}")
        elif start is not None:
            where = start.parents[1] if (start / checkpoint.STATE).is_file() else start
            source = read_stage(where)
            _require_usable(source, stage, f"{folder.name}, which starts from {start}")
        starts.append(start)
    return starts


def _start(recipe: Recipe, folders: Sequence[Path], number: int) -> Path | None:
    named = recipe.stages[number].start
    before = folders[:number]
    if named is None:
        trained = [folder for folder, stage in zip(before, recipe.stages, strict=False) if kind_of(stage).trains_policy]
        return trained[-1] if trained else None
    if named == OWN:
        return None
    where = f"from: {named}"
    if (stage := the_only_one(before, named, f"{folders[number].name}, {where}")) is not None:
        return stage
    if any(is_called(folder, named) for folder in folders[number:]):
        raise RelgradError(
            f"{folders[number].name}, {where}: that stage is not before this one; there are {labels_of(before)}. Put the stage "
            "that is started from first"
        )
    if (folder := folder_started_from(recipe.stages[number])) is not None and folder.is_dir():
        return folder
    raise RelgradError(
        f"{folders[number].name}, {where}: the recipe has no such stage before it, there are {labels_of(before)}, and there is no "
        f"such folder (working directory {Path.cwd()}). Give the label of an earlier stage, `{OWN}` for the recipe's own policy, "
        "or the folder of a run"
    )


def folder_started_from(stage: Stage) -> Path | None:
    """What a stage says it starts from, where that is a folder: a checkpoint, a stage, a run (its last stage with a policy).

    A folder that is not there is given as it is named. Raises RelgradError for a folder that is none of a run.
    """
    if stage.start is None or "/" not in stage.start:
        return None
    folder = Path(stage.start)
    if (folder / checkpoint.STATE).is_file() and (folder.resolve().parents[1] / "recipe.yaml").is_file():
        return folder.resolve()
    if not folder.is_dir() or (folder / "recipe.yaml").is_file():
        return folder
    refuse_folder_of_runs(folder)
    for inside in reversed(stages_in(folder)):
        if kind_of(read_stage(inside)).trains_policy:
            return inside
    raise RelgradError(
        f"from: {folder}: no folder of a run, of a stage or of a checkpoint of ours. Weights of others are named in the policy "
        "section (for a language model: model, adapter)"
    )


def _require_usable(source: Stage, stage: Stage, which: str) -> None:
    """Raise RelgradError where a stage leaves no policy for another to go on from."""
    if not kind_of(source).trains_policy:
        raise RelgradError(f"{which}: a {source.stage} stage trains no policy; name a stage that does")
    module = registry.find("policies", stage.policy.kind)
    others = module.GOES_ON_FROM if isinstance(module, GoesOnFrom) else ()
    if source.policy.kind not in (stage.policy.kind, *others):
        raise RelgradError(
            f"{which}: its policy is of kind {stage.policy.kind!r} and that one's of kind {source.policy.kind!r}. Name a stage "
            f"whose policy is of the same kind, or give it `from: {OWN}`"
        )


def checkpoint_to_start_from(start: Path) -> Path:
    """The folder whose weights a stage goes on from. Raises RelgradError where there is none, or it is damaged."""
    if (start / checkpoint.STATE).is_file():
        checkpoint.require_undamaged(start, trainer=False)
        return start
    newest = checkpoint.latest_to_use(RunDir(start).checkpoints)
    if newest is None:
        raise RelgradError(f"{start}: the stage that is started from left no checkpoint to go on from")
    return newest


# ---------------------------------------------------------------------- starting over


def first_fresh(recipe: Recipe, fresh: bool, label: str | None) -> frozenset[int]:
    """The numbers of the stages that start over: all, where `fresh`; the one that `label` calls, and those that go on from it.

    Raises RelgradError for a label that no stage has.
    """
    folders = stage_folders(recipe)
    if fresh or label is None:
        return frozenset(range(len(folders)) if fresh else ())
    if not any(is_called(folder, label) for folder in folders):
        raise RelgradError(f"--from {label}: the recipe has no such stage; there are {labels_of(folders)}")
    anew = {number_of(folders, label)}
    for number in range(min(anew) + 1, len(folders)):
        if _needs(recipe, folders, number) & anew:
            anew.add(number)
    return frozenset(anew)


def _needs(recipe: Recipe, folders: Sequence[Path], number: int) -> set[int]:
    """The stages that must be done before this one: all before it, unless it says where it starts."""
    stage = recipe.stages[number]
    if stage.start is None:
        return set(range(number))
    start = _start(recipe, folders, number)
    linked = {number_of(folders, label) for label in links([reward.model_dump() for reward in rewards_in(stage)])}
    return linked | ({folders.index(start)} if start in folders else set())
