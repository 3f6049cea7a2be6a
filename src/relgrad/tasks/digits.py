"""Digit strings to transform: `31425=` -> `52413`. Small enough to learn from scratch, impossible to guess.

The prompt is a string of `length` digits and `=`; the answer is that string reversed, copied or sorted.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task

_OPERATIONS: dict[str, Callable[[str], str]] = {
    "reverse": lambda digits: digits[::-1],
    "copy": str,
    "sort": lambda digits: "".join(sorted(digits)),
}


class Settings(Strict):
    """All prompts are distinct, so the sizes together cannot exceed 10 ** length."""

    length: int = Field(5, ge=1, le=18, description="digits per prompt")
    operation: Literal["reverse", "copy", "sort"] = "reverse"
    train_size: int = Field(2000, ge=1)
    held_out_size: int = Field(200, ge=0, description="prompts to validate by")
    test_size: int | None = Field(
        None, ge=0, description="prompts to test by; null: as many as to validate by, as far as there are strings left"
    )
    noise: float = Field(0.0, ge=0, le=1, description="chance that a digit of a training completion is drawn at random")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        total = self.train_size + self.held_out_size + (self.test_size or 0)
        if total > 10**self.length:
            raise ValueError(
                f"train_size + held_out_size + test_size = {total}, but there are only {10**self.length} strings of "
                f"{self.length} digits; lower the sizes or raise length"
            )
        return self

    @property
    def tested(self) -> int:
        """How many prompts the test part has."""
        left = 10**self.length - self.train_size - self.held_out_size
        return min(self.held_out_size, left) if self.test_size is None else self.test_size


def load(settings: Settings, seed: int) -> Task:
    """Columns: `answer`, and `completion` for supervised warm starts: the answer as an imperfect teacher writes it.

    Each digit of a training `completion` is replaced, with probability `noise`, by one of the ten digits at random (so
    it still is the right one with probability 1 - 0.9 noise); the other parts' are the answers. The prompts to
    validate by depend on `seed`, `length` and `held_out_size` alone.
    """
    space = range(10**settings.length)
    held_out = random.Random(f"{seed}/held_out").sample(space, settings.held_out_size)
    train = _others(space, f"{seed}/train", settings.train_size, held_out)
    test = _others(space, f"{seed}/test", settings.tested, [*held_out, *train])
    teacher = random.Random(f"{seed}/teacher")
    numbers = itertools.count()
    parts = [
        [_prompt(number, next(numbers), settings, noise, teacher) for number in part]
        for part, noise in ((train, settings.noise), (held_out, 0.0), (test, 0.0))
    ]
    name = f"digits-{settings.operation}-{settings.length}"
    return Task(name, parts[0], parts[1], parts[2] or None, ask=lambda text: text.removesuffix("=") + "=")


def _others(space: range, key: str, size: int, taken: Sequence[int]) -> list[int]:
    """`size` numbers of the space that are not taken yet."""
    excluded = set(taken)
    drawn = random.Random(key).sample(space, size + len(taken))
    return [number for number in drawn if number not in excluded][:size]


def _prompt(number: int, id: int, settings: Settings, noise: float, teacher: random.Random) -> Prompt:
    digits = str(number).zfill(settings.length)
    answer = _OPERATIONS[settings.operation](digits)
    completion = "".join(teacher.choice("0123456789") if teacher.random() < noise else digit for digit in answer)
    return Prompt(f"{digits}=", {"answer": answer, "completion": completion}, id)
