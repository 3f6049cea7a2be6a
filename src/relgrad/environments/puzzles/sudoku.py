"""Complete a grid of 4 x 4 row by row: `1.3..41.2..14.2.` -> the sixteen digits. There are 288 grids.

Every row, every column and every quarter holds 1, 2, 3 and 4. Questions have 7 to 9 blanks and exactly one solution.
"""

from __future__ import annotations

import itertools
from functools import cache
from random import Random

from relgrad.environments.puzzles.puzzle import Verdict

DIGITS, BLANK = "1234", "."
BLANKS = (7, 9)
"""Fewest and most blanks."""
ROWS = tuple(tuple(range(4 * row, 4 * row + 4)) for row in range(4))
COLUMNS = tuple(tuple(range(column, 16, 4)) for column in range(4))
QUARTERS = tuple((first, first + 1, first + 4, first + 5) for first in (0, 2, 8, 10))


@cache
def grids() -> tuple[str, ...]:
    """All 288, sorted."""
    permutations = ["".join(row) for row in itertools.permutations(DIGITS)]
    return tuple(sorted(filter(_is_grid, map("".join, itertools.product(permutations, repeat=4)))))


def _is_grid(text: str) -> bool:
    return all(len({text[cell] for cell in unit}) == 4 for unit in (*ROWS, *COLUMNS, *QUARTERS))


def _agrees(grid: str, question: str) -> bool:
    return all(given in (BLANK, digit) for given, digit in zip(question, grid, strict=True))


class Sudoku:
    """See puzzle.Puzzle."""

    characters = BLANK + DIGITS
    length = 16

    def make(self, random: Random) -> tuple[str, str]:
        """A grid with blanks that can be completed in one way only."""
        while True:
            grid = random.choice(grids())
            blanks = set(random.sample(range(16), random.randint(*BLANKS)))
            question = "".join(BLANK if cell in blanks else digit for cell, digit in enumerate(grid))
            if sum(_agrees(other, question) for other in grids()) == 1:
                return question, grid

    def guess(self, question: str, random: Random) -> str:
        """Blanks filled with digits at random."""
        return "".join(random.choice(DIGITS) if given == BLANK else given for given in question)

    def judge(self, question: str, answer: str) -> Verdict:
        """Well-formed: sixteen digits that leave the given ones as they are."""
        well_formed = len(answer) == 16 and set(answer) <= set(DIGITS) and _agrees(answer, question)
        return Verdict(well_formed and _is_grid(answer), well_formed)
