"""Write six digits in any order: `604839` -> `936480`. 720 answers are right; a guess draws every digit by itself.

Every digit of an answer is as likely as the other five, whatever the question: all there is to learn is how positions depend on
each other.
"""

from __future__ import annotations

from random import Random

from relgrad.environments.puzzles.puzzle import Verdict

SIZE = 6


class Permutation:
    """See puzzle.Puzzle."""

    characters = "0123456789"
    length = SIZE

    def make(self, random: Random) -> tuple[str, str]:
        """Six different digits, and the same in another order."""
        digits = random.sample(self.characters, SIZE)
        return "".join(digits), "".join(random.sample(digits, SIZE))

    def guess(self, question: str, random: Random) -> str:
        """Six of its digits, with replacement: right with probability 720 / 6^6 = .0154."""
        return "".join(random.choices(question, k=SIZE))

    def judge(self, question: str, answer: str) -> Verdict:
        """Well-formed: six of the question's digits."""
        well_formed = len(answer) == len(question) and set(answer) <= set(question)
        return Verdict(sorted(answer) == sorted(question), well_formed)
