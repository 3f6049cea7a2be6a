"""How the stages of a run are called: their folders, their labels, and the settings that name one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import stages_in
from relgrad.core.settings import RewardComponent
from relgrad.runs.recipe import Recipe
from relgrad.stages.settings import RewardedStage, Stage

LINK = "stage:"
"""A setting that begins so names a stage of the same recipe and stands for what that stage saved last."""


def stage_folders(recipe: Recipe) -> list[Path]:
    """Where each stage runs: `out/name/1-sft`, `out/name/2-grpo`; a stage's label takes the place of its kind."""
    return [stage.out / recipe.name / f"{i + 1}-{stage.called}" for i, stage in enumerate(recipe.stages)]


def is_called(folder: Path, label: str) -> bool:
    """Whether a stage's folder, 2-judge say, is meant by a label: `judge`, or `2-judge`."""
    return label in (folder.name, label_of(folder))


def label_of(folder: Path) -> str:
    """The label, or the kind, of the stage that runs in a folder."""
    return folder.name.partition("-")[2]


def labels_of(folders: Sequence[Path]) -> str:
    """The labels of stages as a message names them."""
    return ", ".join(label_of(folder) for folder in folders) or "none"


def number_of(folders: Sequence[Path], label: str) -> int:
    """The first stage that is called so."""
    return next(number for number, folder in enumerate(folders) if is_called(folder, label))


def the_only_one(folders: Sequence[Path], label: str, where: str) -> Path | None:
    """The stage that is called so; None where none is. Raises RelgradError, beginning with `where`, for several."""
    called_so = [folder for folder in folders if is_called(folder, label)]
    if len(called_so) > 1:
        names = ", ".join(folder.name for folder in called_so)
        raise RelgradError(f"{where}: {len(called_so)} stages are called {label!r}; name one by its folder: {names}")
    return called_so[0] if called_so else None


def stage_in_run(source: str) -> Path | None:
    """The folder of a stage that is named as RUN:LABEL; None for any other text.

    Raises RelgradError for a run without a stage of that label, naming those it has, or with several.
    """
    run, colon, label = source.rpartition(":")
    if not colon or Path(source).exists() or not Path(run).is_dir():
        return None
    stages = stages_in(Path(run))
    folder = the_only_one(stages, label, source)
    if folder is None:
        raise RelgradError(f"{source}: no stage of {run} is called {label!r}; there are {labels_of(stages)}")
    return folder


def rewards_in(stage: Stage) -> tuple[RewardComponent, ...]:
    """The rewards that a stage trains on, and those of its evaluations."""
    return (*(stage.rewards if isinstance(stage, RewardedStage) else ()), *stage.evaluation.rewards)


def links(value: Any) -> list[str]:
    """The labels of the stages that settings name by `stage:LABEL`."""
    if isinstance(value, dict):
        return [link for inner in value.values() for link in links(inner)]
    if isinstance(value, (list, tuple)):
        return [link for inner in value for link in links(inner)]
    return [value.removeprefix(LINK)] if isinstance(value, str) and value.startswith(LINK) else []
