"""Counting on: after `31 -> 32` and `158 -> 159`, which number follows 470? The decades to judge by are never counted in.

A prompt is a chat: the question as system message, two demonstrations, and a number n; the answer is n + 1 (or n - 1).
No constant, no copy and no form of words is right more than by accident: every prompt has an answer of its own.
"""

from __future__ import annotations

import itertools
import random
from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.core.types import Message, Prompt
from relgrad.tasks import Task

_STEP = {"next": 1, "before": -1}
_SHOWN = (31, 158)


class Settings(Strict):
    """Numbers are `low` to `high`, both included; a decade is ten numbers that differ in the last digit alone."""

    direction: Literal["next", "before"] = "next"
    low: int = Field(10, ge=10, description="smallest number asked for")
    high: int = Field(999, description="largest number asked for")
    held_out_fraction: float = Field(0.2, gt=0, lt=1, description="share of the decades kept to judge by")
    test_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the decades kept to test by, beside those to validate by; null: half of the decades kept",
    )

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.high < self.low + 100:
            raise ValueError(
                f"low={self.low}, high={self.high}: that is too narrow to hold whole decades out; "
                f"high must be at least low + 100 = {self.low + 100}"
            )
        return self


def load(settings: Settings, seed: int) -> Task:
    """Columns: `answer`, and `completion` for supervised training (the same text).

    max(1, round(held_out_fraction x decades)) decades, drawn by `seed`, are kept apart, and with a `test_fraction` so many
    more. No number of such a decade is a training prompt or a training answer, and no part asks for a number that the
    demonstrations answer. The decades of the demonstrations are never kept apart. One decade alone is to validate by.
    """
    step = _STEP[settings.direction]
    draw = random.Random(f"{seed}/next_number")
    shown = {decade for n in _SHOWN for decade in (_decade(n), _decade(n + step))}
    decades = range(_decade(settings.low), _decade(settings.high) + 1)
    free = [decade for decade in decades if decade not in shown]
    validation = draw.sample(free, min(max(1, round(settings.held_out_fraction * len(decades))), len(free) - 1))

    numbers = [n for n in range(settings.low, settings.high + 1) if n not in _SHOWN]
    draw.shuffle(numbers)
    if settings.test_fraction is None:
        validation, test = validation[::2], validation[1::2]
    else:
        left = [decade for decade in free if decade not in validation]
        test = draw.sample(left, min(round(settings.test_fraction * len(decades)), len(left) - 1))
    kept = {*validation, *test}
    parts = (
        [n for n in numbers if _decade(n) not in kept and _decade(n + step) not in kept],
        [n for n in numbers if _decade(n) in validation],
        [n for n in numbers if _decade(n) in test],
    )
    ids = itertools.count()
    train, held_out, tested = ([_prompt(n, next(ids), settings.direction) for n in part] for part in parts)
    name = f"{settings.direction}-number-{settings.low}-{settings.high}"
    return Task(name, train, held_out, tested or None, ask=lambda text: _chat(text, settings.direction))


def _decade(number: int) -> int:
    return number // 10


def _prompt(number: int, id: int, direction: str) -> Prompt:
    answer = str(number + _STEP[direction])
    return Prompt(_chat(str(number), direction), {"answer": answer, "completion": answer}, id)


def _chat(question: str, direction: str) -> list[Message]:
    chat: list[Message] = [{"role": "system", "content": f"Which number comes {direction}?"}]
    for shown in _SHOWN:
        chat += [
            {"role": "user", "content": str(shown)},
            {"role": "assistant", "content": str(shown + _STEP[direction])},
        ]
    return [*chat, {"role": "user", "content": question}]
