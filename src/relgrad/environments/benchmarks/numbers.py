"""Numbers in a text: signs, thousands commas, decimals, exponents and fractions; and which of them is GSM8K's answer.

GSM8K (Cobbe et al. 2021, https://github.com/openai/grade-school-math) ends an answer with `#### 72`; a completion's answer is the
number right behind a mark, the first there is, compared without commas. The authors search for `#### (-?[0-9.,]+)`
(grade_school_math/dataset.py); here a currency's sign and white space may stand between. A heading, `#### Step 1`, is no answer.
"""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

_WIDE = Context(Emax=MAX_EMAX, Emin=MIN_EMIN)
"""For numbers of any length; a difference is right to 28 digits, however long the numbers are."""

_NUMBER = re.compile(
    r"(?<![\w.])"  # not inside a word or another number
    r"(?:(?<![)\]}])[-+−])?"  # a sign; after a closing bracket it is an operator
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # 1,234,567 or 1234567 or nothing before .5
    r"(?:\.\d+)?"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d{1,9})\}\{(\d{1,9})\}|(?<![\w./])(-?\d{1,9})\s?/\s?(\d{1,9})(?![\w/]|\.\d)")
SIGNS = ("-", "−", "+")
_MARKED = re.compile(r"####\s*(?:([-−+])\s*)?(?:[$€£]\s*)?(?=[-−+]?\.?\d|[-−+]?\\[dt]?frac)([^\n]*)")
"""A mark with a number right behind it: its sign, where it stands before a currency's, and the rest of the line."""


def numbers(text: str) -> list[Decimal]:
    """Every number in a text, in order: signs, thousands commas, decimals and exponents (to 999) are understood.

    `1/2` is two numbers, `3-4` is 3 and 4, `H2` holds none, and a full stop after a number ends the sentence.
    """
    return [Decimal(m.group().replace(",", "").replace("−", "-")) for m in _NUMBER.finditer(text)]


def equal(a: Decimal, b: Decimal, tolerance: Decimal) -> bool:
    """Whether two numbers differ by no more than the tolerance. Long integers are told apart."""
    return _WIDE.abs(_WIDE.subtract(a, b)) <= tolerance


def with_fractions(text: str) -> list[Decimal]:
    """As `numbers`, but `3/4` and LaTeX's `\\frac{3}{4}` are one number, to 28 digits."""
    return numbers(in_decimals(text))


def in_decimals(text: str) -> str:
    """A text with its fractions in decimals, to 28 digits."""
    return _FRACTION.sub(_value, text)


def without_numbers(text: str) -> str:
    """What is left of a text without its numbers."""
    return _NUMBER.sub("", text)


def _value(match: re.Match[str]) -> str:
    """A fraction in decimals, apart from a word before it but not from a sign."""
    above, below = (int(part) for part in match.groups() if part is not None)
    if not below:
        return match.group()
    before = match.string[: match.start()]
    return f"{'' if before.endswith(SIGNS) else ' '}{Decimal(above) / Decimal(below):f}"


def gsm8k_answer(text: str, only_marked: bool = False) -> Decimal | None:
    """The number right behind a `####`, the first there is; without a mark the last number of the text, or None where only marked
    ones count.
    """
    if marked := _MARKED.search(text):
        values = with_fractions((marked[1] or "") + marked[2])
        return values[0] if values else None
    values = [] if only_marked or "####" in text else with_fractions(text)
    return values[-1] if values else None
