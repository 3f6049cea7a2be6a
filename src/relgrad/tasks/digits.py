"""Digit strings to transform: `31425=` -> `52413`. Small enough to learn from scratch, impossible to guess.

The prompt is a string of `length` digits and `=`; the answer is that string reversed, copied or sorted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
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
    """All prompts are distinct, so `train_size + held_out_size` cannot exceed 10 ** length."""

    length: int = Field(5, ge=1, le=50, description="digits per prompt")
    operation: Literal["reverse", "copy", "sort"] = "reverse"
    train_size: int = Field(2000, ge=1)
    held_out_size: int = Field(200, ge=0)
    noise: float = Field(0.0, ge=0, le=1, description="chance that a digit of a training completion is drawn at random")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.train_size + self.held_out_size > 10**self.length:
            raise ValueError(
                f"train_size + held_out_size = {self.train_size + self.held_out_size}, but there are only "
                f"{10**self.length} strings of {self.length} digits; lower the sizes or raise length"
            )
        return self


def load(settings: Settings, seed: int) -> Task:
    """Columns: `answer`, and `completion` for supervised warm starts: the answer as an imperfect teacher writes it.

    Each digit of a training `completion` is replaced, with probability `noise`, by one of the ten digits at random (so
    it still is the right one with probability 1 - 0.9 noise); held-out completions are the answers. The held-out
    prompts depend on `seed`, `length` and `held_out_size` alone.
    """
    space = range(10**settings.length)
    held_out = random.Random(f"{seed}/held_out").sample(space, settings.held_out_size)
    taken = set(held_out)
    drawn = random.Random(f"{seed}/train").sample(space, settings.train_size + settings.held_out_size)
    train = [number for number in drawn if number not in taken][: settings.train_size]
    teacher = random.Random(f"{seed}/teacher")
    return Task(
        f"digits-{settings.operation}-{settings.length}",
        [_prompt(number, i, settings, settings.noise, teacher) for i, number in enumerate(train)],
        [_prompt(number, len(train) + i, settings, 0.0, teacher) for i, number in enumerate(held_out)],
        ask=lambda text: text.removesuffix("=") + "=",
    )


def _prompt(number: int, id: int, settings: Settings, noise: float, teacher: random.Random) -> Prompt:
    digits = str(number).zfill(settings.length)
    answer = _OPERATIONS[settings.operation](digits)
    completion = "".join(teacher.choice("0123456789") if teacher.random() < noise else digit for digit in answer)
    return Prompt(f"{digits}=", {"answer": answer, "completion": completion}, id)
