"""What a stage's folder says of the stage that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from relgrad.core.errors import RelgradError
from relgrad.runs.recipe import parse_recipe
from relgrad.stages.settings import Stage


def read_stage(folder: Path, overrides: Sequence[str] = ()) -> Stage:
    """The stage that a stage's folder was made by."""
    file = folder / "recipe.yaml"
    return parse_recipe(written_recipe(file), overrides, source=str(file)).stages[0]


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
