"""What `relgrad run` would do, without doing it; what it would refuse is refused here."""

from __future__ import annotations

from pathlib import Path

from relgrad.core.run_folder import RunDir, require_writable
from relgrad.runs import named_files
from relgrad.runs.build import resolve, with_epochs_counted
from relgrad.runs.evaluations import finished
from relgrad.runs.lock import require_free
from relgrad.runs.named_stages import stage_folders
from relgrad.runs.recipe import Recipe
from relgrad.runs.same_recipe import require_same_recipe
from relgrad.runs.starts import first_fresh, starts_of
from relgrad.stages.kind import kind_of, loop_settings
from relgrad.stages.settings import Stage
from relgrad.training import checkpoint


def plan(recipe: Recipe, fresh: bool = False, redo: str | None = None, accept_changes: bool = False) -> list[str]:
    """One line for every stage of a recipe, for the arguments of run_recipe: where, what, and from where it goes on.

    Raises RelgradError for a folder that cannot be written, is written by another run, holds another recipe's or was begun with
    other files; for a damaged checkpoint to go on from; for files that the recipe names and that are not there; and for epochs of a
    task without an end. Only to count epochs is a task loaded. Changes nothing.
    """
    recipe = resolve(recipe)
    folders = stage_folders(recipe)
    for run in dict.fromkeys(folder.parent for folder in folders):
        require_writable(run)
        require_free(run)
    anew, starts = first_fresh(recipe, fresh, redo), starts_of(recipe)
    lines = []
    for number, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        require_writable(folder)
        named_files.require_there(stage)
        named_files.require_undamaged(stage)
        if number not in anew:
            require_same_recipe(folder, stage)
        stage = with_epochs_counted(stage)
        if number not in anew:
            state = _state(folder, stage, accept_changes)
        else:
            state = "deleting what is there" if folder.exists() else "from the beginning"
        lines.append(f"{folder}: {kind_of(stage).describe(stage)}{_from(stage, starts[number])}; {state}")
    return lines


def _from(stage: Stage, start: Path | None) -> str:
    """Whose policy a stage goes on from, in words, where its recipe says so; "" where it is the stage before."""
    if stage.start is None:
        return ""
    return f", from the policy of {start}" if start is not None else ", from the recipe's own policy"


def _state(folder: Path, stage: Stage, accept_changes: bool) -> str:
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return "from the beginning"
    if not accept_changes:
        named_files.require_unchanged(folder, stage)
    if finished(RunDir(folder), loop_settings(stage).steps, stage.evaluation.patience):
        return f"finished before, after step {checkpoint.step_of(newest)}"
    checkpoint.require_undamaged(newest)
    return f"continuing after step {checkpoint.step_of(newest)}"
