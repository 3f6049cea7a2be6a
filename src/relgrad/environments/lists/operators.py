"""The operators of list programs: total functions of a list of whole numbers, that never make it longer.

Numbers are kept within -LIMIT .. LIMIT: beyond it an operator gives the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

Values = tuple[int, ...]

LIMIT = 999
"""The largest number, and less its sign the smallest."""


def within(value: int) -> int:
    """The number, or the limit that it lies beyond."""
    return LIMIT if value > LIMIT else -LIMIT if value < -LIMIT else value


def _each(change: Callable[[int], int]) -> Callable[[Values], Values]:
    return lambda values: tuple([within(change(value)) for value in values])


def _kept(keep: Callable[[int], bool]) -> Callable[[Values], Values]:
    return lambda values: tuple([value for value in values if keep(value)])


def cumulative(values: Values) -> Values:
    """Sums of the first 1, 2, ... numbers, each kept within the limits before the next is added."""
    return tuple(accumulate(values, lambda total, value: within(total + value)))


def differences(values: Values) -> Values:
    """Every number less the one before it; a list of one number becomes empty."""
    return tuple([within(after - before) for before, after in pairwise(values)])


OPERATORS: dict[str, Callable[[Values], Values]] = {
    "reverse": lambda values: values[::-1],
    "sort": lambda values: tuple(sorted(values)),
    "unique": lambda values: tuple(dict.fromkeys(values)),
    "rotate": lambda values: values[1:] + values[:1],
    "tail": lambda values: values[1:],
    "init": lambda values: values[:-1],
    "cumsum": cumulative,
    "diff": differences,
    "cummax": lambda values: tuple(accumulate(values, max)),
    "inc": _each(lambda value: value + 1),
    "dec": _each(lambda value: value - 1),
    "double": _each(lambda value: 2 * value),
    "halve": _each(lambda value: value // 2),
    "negate": _each(lambda value: -value),
    "square": _each(lambda value: value * value),
    "evens": _kept(lambda value: value % 2 == 0),
    "odds": _kept(lambda value: value % 2 == 1),
    "positives": _kept(lambda value: value > 0),
}
"""By name. `halve` rounds down; `unique` keeps the first of equal numbers; `rotate` puts the first number last."""

NAMES: tuple[str, ...] = tuple(OPERATORS)
APPLY: tuple[Callable[[Values], Values], ...] = tuple(OPERATORS.values())
"""By number."""
