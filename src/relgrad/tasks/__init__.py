"""Tasks: where prompts come from. One file per kind; `load(settings, seed)` gives a Task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relgrad.types import Prompt


@dataclass(frozen=True)
class Task:
    """Prompts to train on and, apart from them, prompts to judge by. Columns named in `columns` reach every reward."""

    name: str
    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
