"""Counting on: after `31 -> 32` and `158 -> 159`, which number follows 470? The held-out decades are never counted in.

A prompt is a chat: the question as system message, two demonstrations, and a number n; the answer is n + 1 (or n - 1).
No constant, no copy and no form of words is right more than by accident: every prompt has an answer of its own.
"""

from __future__ import annotations

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

    max(1, round(held_out_fraction x decades)) decades, drawn by `seed`, are held out. No number of a held-out decade
    is a training prompt or a training answer, and neither side asks for a number that the demonstrations answer. The
    decades of the demonstrations are never held out.
    """
    step = _STEP[settings.direction]
    draw = random.Random(f"{seed}/next_number")
    shown = {decade for n in _SHOWN for decade in (_decade(n), _decade(n + step))}
    decades = range(_decade(settings.low), _decade(settings.high) + 1)
    free = [decade for decade in decades if decade not in shown]
    kept = set(draw.sample(free, min(max(1, round(settings.held_out_fraction * len(decades))), len(free) - 1)))

    numbers = [n for n in range(settings.low, settings.high + 1) if n not in _SHOWN]
    draw.shuffle(numbers)
    held_out = [n for n in numbers if _decade(n) in kept]
    train = [n for n in numbers if _decade(n) not in kept and _decade(n + step) not in kept]
    return Task(
        f"{settings.direction}-number-{settings.low}-{settings.high}",
        [_prompt(n, i, settings.direction) for i, n in enumerate(train)],
        [_prompt(n, len(train) + i, settings.direction) for i, n in enumerate(held_out)],
        ask=lambda text: _chat(text, settings.direction),
    )


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
