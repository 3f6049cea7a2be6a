"""1 where the completion's number is the expected one, 0 where it is another one or there is none."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.numbers import equal, numbers
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """`where` picks among several numbers; `only` gives 0 unless there is exactly one."""

    column: str = "answer"
    where: Literal["first", "last", "only"] = "last"
    tolerance: float = Field(1e-6, ge=0, description="largest absolute difference that counts as equal")


def build(settings: Settings) -> Reward:
    """The column holds a number, or text whose last number counts (GSM8K's `... #### 72`).

    Compared as decimals, so long integers are told apart. A row whose column holds no number is unscored.
    """
    tolerance = Decimal(str(settings.tolerance))

    def number(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "number")
        answer = _expected(value)
        if answer is None:
            return [unscored(f"no number in column {settings.column!r}: {value!r}")] * len(outputs)
        answers = (_pick(numbers(output.text), settings.where) for output in outputs)
        return [Score(float(x is not None and equal(x, answer, tolerance))) for x in answers]

    return number


def _expected(value: Any) -> Decimal | None:
    values = numbers(str(value)) if value is not None else []
    return values[-1] if values else None


def _pick(values: list[Decimal], where: str) -> Decimal | None:
    if not values or (where == "only" and len(values) > 1):
        return None
    return values[-1] if where == "last" else values[0]
