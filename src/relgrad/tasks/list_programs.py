"""Which program turns the lists on the left into those on the right? Tasks whose functions are in one part only.

A prompt shows examples, `[3, 1, 2] -> [2, 4, 6]`, one a line; the answer is a program of list operators, `sort | double`, right
where it does the same to examples that are not shown. See environments/lists/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field, field_validator, model_validator

from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.environments.lists.examples import read, written
from relgrad.environments.lists.tasks import Dealer, ListTask, curriculum
from relgrad.tasks import Task


class Settings(Strict):
    """`lengths` are numbers of operators of a function's shortest program."""

    lengths: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="of programs to train on")
    held_out_lengths: tuple[int, ...] = Field((2, 3), min_length=1, description="of programs to validate and test on")
    train_size: int = Field(600, ge=1, description="different training tasks, every length equally often")
    validation_size: int = Field(40, ge=0)
    test_size: int = Field(120, ge=0)
    visible: int = Field(4, ge=1, description="examples that are shown")
    hidden: int = Field(16, ge=1, description="examples that a program is also judged by")
    order: int = Field(
        6000, ge=1, description="training prompts of one epoch: the tasks, with repetition, short ones first"
    )
    rising: int = Field(1800, ge=0, description="prompts after which all lengths are trained on; 0: from the first one")

    @field_validator("lengths", "held_out_lengths")
    @classmethod
    def _possible(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= length <= 4 for length in lengths):
            raise ValueError(f"programs have 1 to 4 operators here; received {list(lengths)}")
        return tuple(sorted(set(lengths)))

    @model_validator(mode="after")
    def _held_out_is_trained(self) -> Settings:
        if self.rising > self.order:
            raise ValueError(
                f"rising={self.rising} is more than order={self.order}: the longest programs would never come"
            )
        return self


class InOrder(Sequence[Prompt]):
    """Prompts that are taken from front to back (core/randomness.py)."""

    in_order = True

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, place: int) -> Prompt:  # type: ignore[override]
        return self.prompts[place]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)


def load(settings: Settings, seed: int) -> Task:
    """Columns: `hidden` (pairs of lists), `length`, and `program`, the first shortest one; also as `completion`, for supervision.

    Raises RelgradError where there are too few functions of a length.
    """
    dealer = Dealer(settings.visible, settings.hidden, seed)
    held_out = settings.held_out_lengths
    validation_tasks = dealer.part("validation", held_out, settings.validation_size)
    test_tasks = dealer.part("test", held_out, settings.test_size)
    parts = [dealer.part("train", settings.lengths, settings.train_size, again=True), validation_tasks, test_tasks]
    firsts = (0, len(parts[0]), len(parts[0]) + len(parts[1]))
    train, validation, test = (
        [_prompt(task, first + number) for number, task in enumerate(part)]
        for first, part in zip(firsts, parts, strict=True)
    )
    by_length = [[p for p in train if p.columns["length"] == length] for length in settings.lengths]
    order = curriculum([group for group in by_length if group], settings.order, settings.rising, seed)
    facts = {"Train": f"{len(train)} functions' tasks", "Lengths": ", ".join(map(str, settings.held_out_lengths))}
    return Task("list-programs", InOrder(order), validation, test, ask=_ask, facts=facts)


def _prompt(task: ListTask, id: int) -> Prompt:
    columns = {
        "hidden": [[list(given), list(result)] for given, result in task.hidden],
        "length": len(task.program.steps),
        "program": task.program.text,
        "completion": task.program.text,
    }
    return Prompt(written(task.visible), columns, id)


def _ask(text: str) -> str:
    """A person's own examples, as prompts write them. Raises RelgradError for a text that shows none."""
    return written(read(text))
