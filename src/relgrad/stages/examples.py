"""A task's training prompts with their targets, for supervised loops."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.randomness import InOrder
from relgrad.core.types import Example
from relgrad.tasks import Task
from relgrad.training.targets import example_of


class Examples(Sequence[Example]):
    """Training prompts with their targets, made when they are asked for. A row without a target raises RelgradError.

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
        if self.column is None:
            return Example(prompt, "")
        return example_of(prompt, self.column, "sft.completion_column")
