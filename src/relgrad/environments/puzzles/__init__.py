"""Small puzzles with exact verifiers, made from a random generator: what estimators and samplers are compared on.

puzzle.py        what a puzzle is
permutation.py   write the prompt's six digits in any order
sudoku.py        complete a grid of 4 x 4
countdown.py     reach a number with three numbers
"""

from __future__ import annotations

from typing import Literal

from relgrad.environments.puzzles.countdown import Countdown
from relgrad.environments.puzzles.permutation import Permutation
from relgrad.environments.puzzles.puzzle import Puzzle
from relgrad.environments.puzzles.sudoku import Sudoku

Name = Literal["permutation", "sudoku", "countdown"]
PUZZLES: dict[Name, Puzzle] = {"permutation": Permutation(), "sudoku": Sudoku(), "countdown": Countdown()}
