"""Reach a number with three numbers, each once, and two of + - *: `2,7,9=25` -> `2*9+7`.

Numbers are 1 to 9, the number to reach 1 to 99; products come before sums, and there are no brackets. The numbers of a question
are sorted, so that two questions are the same puzzle only where they are the same text.
"""

from __future__ import annotations

import re
from random import Random

from relgrad.environments.puzzles.puzzle import Verdict

NUMBERS, OPERATORS = "123456789", "+-*"
HIGHEST = 99
EXPRESSION = re.compile(r"[1-9]([-+*][1-9]){2}", re.ASCII)


def value_of(expression: str) -> int:
    """Of digits with + - * between them, products first."""
    total = 0
    for sign, product in re.findall(r"([-+]?)([^-+]+)", expression):
        value = 1
        for factor in product.split("*"):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


class Countdown:
    """See puzzle.Puzzle."""

    characters = "0123456789+-*,="
    length = 5

    def make(self, random: Random) -> tuple[str, str]:
        """A random expression with a value from 1 to 99, whose numbers and value make the question."""
        while True:
            numbers = random.choices(NUMBERS, k=3)
            answer = _expression(numbers, random)
            if 1 <= value_of(answer) <= HIGHEST:
                return f"{','.join(sorted(numbers))}={value_of(answer)}", answer

    def guess(self, question: str, random: Random) -> str:
        """Its numbers in random order with random operators."""
        numbers, _ = _parts(question)
        return _expression(random.sample(numbers, len(numbers)), random)

    def judge(self, question: str, answer: str) -> Verdict:
        """Well-formed: three numbers with operators between them, whichever these are."""
        if not EXPRESSION.fullmatch(answer):
            return Verdict(solved=False, well_formed=False)
        numbers, target = _parts(question)
        solved = sorted(answer[::2]) == sorted(numbers) and value_of(answer) == target
        return Verdict(solved, well_formed=True)


def _expression(numbers: list[str], random: Random) -> str:
    first, second = random.choices(OPERATORS, k=2)
    return numbers[0] + first + numbers[1] + second + numbers[2]


def _parts(question: str) -> tuple[list[str], int]:
    numbers, _, target = question.partition("=")
    return numbers.split(","), int(target)
