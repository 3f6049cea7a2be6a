"""1 where the completion's number is the expected one, 0 where it is another one or there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any, Literal

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """`where` picks among several numbers; `only` gives 0 unless there is exactly one."""

    column: str = "answer"
    where: Literal["first", "last", "only"] = "last"
    tolerance: float = Field(1e-6, ge=0, description="largest absolute difference that counts as equal")


_WIDE = Context(Emax=MAX_EMAX, Emin=MIN_EMIN)
"""For numbers of any length; a difference is right to 28 digits, however long the numbers are."""

_NUMBER = re.compile(
    r"(?<![\w.])"  # not inside a word or another number
    r"(?:(?<![)\]}])[-+−])?"  # a sign; after a closing bracket it is an operator
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # 1,234,567 or 1234567 or nothing before .5
    r"(?:\.\d+)?"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?"
)


def numbers(text: str) -> list[Decimal]:
    """Every number in a text, in order: signs, thousands commas, decimals and exponents (to 999) are understood.

    `1/2` is two numbers, `3-4` is 3 and 4, `H2` holds none, and a full stop after a number ends the sentence.
    """
    return [Decimal(m.group().replace(",", "").replace("−", "-")) for m in _NUMBER.finditer(text)]


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
        found = (_pick(numbers(output.text), settings.where) for output in outputs)
        return [Score(float(x is not None and _WIDE.abs(_WIDE.subtract(x, answer)) <= tolerance)) for x in found]

    return number


def _expected(value: Any) -> Decimal | None:
    found = numbers(str(value)) if value is not None else []
    return found[-1] if found else None


def _pick(found: list[Decimal], where: str) -> Decimal | None:
    if not found or (where == "only" and len(found) > 1):
        return None
    return found[-1] if where == "last" else found[0]
