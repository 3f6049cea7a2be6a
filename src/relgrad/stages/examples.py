"""A task's training prompts with their targets, for supervised loops."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import InOrder
from relgrad.core.types import Example
from relgrad.tasks import Task


class Examples(Sequence[Example]):
    """Training prompts with their targets, made when they are asked for. A row without the column raises RelgradError.

    Without a column (for a judge, whose target is what is right) the targets are empty.
    """

    def __init__(self, task: Task, column: str | None) -> None:
        self.prompts, self.column = task.train, column
        self.in_order = isinstance(task.train, InOrder) and task.train.in_order
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
