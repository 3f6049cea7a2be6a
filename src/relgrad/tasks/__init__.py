"""Tasks: where prompts come from. One file per kind; `load(settings, seed)` gives a Task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relgrad.core.types import Message, Prompt


def as_it_is(text: str) -> str | Sequence[Message]:
    """The text itself."""
    return text


@dataclass(frozen=True)
class Task:
    """Prompts to train on and, apart from them, prompts to judge by. Columns named in `columns` reach every reward."""

    name: str
    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    ask: Callable[[str], str | Sequence[Message]] = field(default=as_it_is, compare=False)
    """How a person's own text becomes a prompt's content, worded as in training (`relgrad sample --prompt`)."""
