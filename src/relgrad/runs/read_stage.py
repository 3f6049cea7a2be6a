"""What a stage's folder says of the stage that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from relgrad.core.errors import RelgradError
from relgrad.runs.recipe import parse_recipe
from relgrad.stages.settings import Stage

DATA = "data"
"""The folder of a run with the rows that a script gave (python/sections.py)."""


def read_stage(folder: Path, overrides: Sequence[str] = ()) -> Stage:
    """The stage that a stage's folder was made by.

    Rows that a script gave lie in the run's folder, as `data/NAME`. Where the folder has been renamed since, they are read from
    where they are now.
    """
    file = folder / "recipe.yaml"
    written = written_recipe(file)
    if isinstance(written.get("task"), dict):
        written["task"] = {key: _where_it_is(value, folder) for key, value in written["task"].items()}
    return parse_recipe(written, overrides, source=str(file)).stages[0]


def _where_it_is(value: Any, folder: Path) -> Any:
    """A setting as it is; for a file `.../data/NAME` that is gone, that file of this stage's run where it has one."""
    if not isinstance(value, str) or Path(value).parent.name != DATA or Path(value).exists():
        return value
    beside = folder.resolve().parent / DATA / Path(value).name
    return str(beside) if beside.is_file() else value


def written_recipe(file: Path) -> dict[str, Any]:
    """What a stage's recipe.yaml says. Raises RelgradError where it cannot be read."""
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise RelgradError(
            f"{file} cannot be read: {' '.join(str(error).split())}. Bring it back from a copy"
        ) from None
    if not isinstance(written, dict):
        raise RelgradError(
            f"{file} is damaged: a recipe is a mapping of settings, and this is {type(written).__name__}"
        )
    return written
