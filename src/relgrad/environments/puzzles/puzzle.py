"""What a puzzle is: a question, an answer, a guess of the right form, and a verifier."""

from __future__ import annotations

from random import Random
from typing import NamedTuple, Protocol


class Verdict(NamedTuple):
    """`solved`: the answer is right; `well_formed`: it has the form of an answer, right or wrong."""

    solved: bool
    well_formed: bool


class Puzzle(Protocol):
    """`characters`: all that a question or an answer can hold; `length`: the characters of every answer."""

    @property
    def characters(self) -> str: ...

    @property
    def length(self) -> int: ...

    def make(self, random: Random) -> tuple[str, str]:
        """A question and one right answer to it."""
        ...

    def guess(self, question: str, random: Random) -> str:
        """A well-formed answer made without solving anything; it is right by accident alone."""
        ...

    def judge(self, question: str, answer: str) -> Verdict:
        """Whatever the answer is, also an empty one."""
        ...
