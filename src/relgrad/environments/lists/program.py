"""A list program: operators one after the other, written `sort | tail | double`.

Programs that do the same on the probes are one: they share a hash, whatever their steps are.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from relgrad.core.errors import RelgradError
from relgrad.environments.lists.operators import APPLY, NAMES, Values

SEPARATOR = " | "
PROBE_COUNT = 48


def _probes() -> tuple[Values, ...]:
    """Lists that functions are told apart by: the small ones, and random ones of 2 to 9 numbers."""
    draw = random.Random("relgrad/lists/probes")
    small: list[Values] = [(), (0,), (1,), (-1,), (2, 2), (1, 0), (-3, 5, 5), (7, -2, 4)]
    drawn = [tuple(draw.randint(-12, 12) for _ in range(draw.randint(2, 9))) for _ in range(PROBE_COUNT - len(small))]
    return (*small, *drawn)


PROBES = _probes()


@dataclass(frozen=True)
class Program:
    """`steps` are numbers of operators (operators.NAMES); none is the program that changes nothing."""

    steps: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Program:
        """The program that a text writes. Raises RelgradError naming the word that is no operator."""
        words = [word.strip() for word in text.split("|")] if text.strip() else []
        if unknown := [word for word in words if word not in NAMES]:
            raise RelgradError(f"{unknown[0]!r:.60} is no operator of list programs; there are {', '.join(NAMES)}")
        return cls(tuple(NAMES.index(word) for word in words))

    @property
    def text(self) -> str:
        return SEPARATOR.join(NAMES[step] for step in self.steps)

    def __call__(self, values: Sequence[int]) -> Values:
        """What the program makes of a list."""
        now = tuple(values)
        for step in self.steps:
            now = APPLY[step](now)
        return now

    @cached_property
    def outputs(self) -> tuple[Values, ...]:
        """What becomes of the probes; equal for programs that do the same."""
        return tuple(self(probe) for probe in PROBES)

    @property
    def hash(self) -> str:
        """Of what the program does, not of how it is written: 16 hexadecimal digits."""
        return hash_of(self.outputs)


def hash_of(outputs: tuple[Values, ...]) -> str:
    """The hash of a function that makes these of the probes."""
    return hashlib.sha256(repr(outputs).encode()).hexdigest()[:16]
