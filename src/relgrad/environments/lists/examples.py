"""Examples of a function, `[3, 1, 2] -> [1, 2, 3]`, that no shorter program explains; drawn by a seed, written and read."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from relgrad.core.errors import RelgradError
from relgrad.environments.lists.functions import functions
from relgrad.environments.lists.operators import LIMIT, Values
from relgrad.environments.lists.program import Program

ARROW = "->"
LONGEST = 8
"""The most numbers in a list."""
ATTEMPTS = 20


class Example(NamedTuple):
    """What goes in, and what comes out."""

    given: Values
    result: Values


def draw_examples(program: Program, count: int, visible: int, draw: random.Random) -> tuple[Example, ...] | None:
    """`count` different examples, of which the first `visible` are not explained by any shorter program; their results differ.

    Inputs are 3 to 7 numbers of -9 .. 9. None where ATTEMPTS gave none: some functions hardly ever differ from shorter ones, and
    some make the same of nearly everything.
    """
    for _ in range(ATTEMPTS):
        given = [tuple(draw.randint(-9, 9) for _ in range(draw.randint(3, 7))) for _ in range(count)]
        examples = tuple(Example(values, program(values)) for values in given)
        telling = len(set(given)) == count and len({example.result for example in examples[:visible]}) > visible // 2
        if telling and not explained(examples[:visible], len(program.steps) - 1):
            return examples
    return None


def explained(examples: Sequence[Example], most_steps: int) -> bool:
    """Whether a program of at most so many steps makes every result of what is given."""
    return any(agrees(program, examples) for level in functions(most_steps)[: most_steps + 1] for program in level)


def agrees(program: Program, examples: Sequence[Example]) -> bool:
    """Whether the program makes every result of what is given; the exact verifier."""
    return all(program(given) == result for given, result in examples)


def written(examples: Sequence[Example]) -> str:
    """The examples as a person writes them, one a line."""
    return "\n".join(f"{list(given)} {ARROW} {list(result)}" for given, result in examples)


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[Example, ...]:
    """The examples of a text, one a line or separated by semicolons. Raises RelgradError naming a line that is none."""
    lines = [line.strip() for line in text.replace(";", "\n").splitlines() if line.strip()]
    if not lines:
        raise RelgradError(f"no examples in {text[:60]!r}: write them as [3, 1, 2] {ARROW} [1, 2, 3], one a line")
    return tuple(_read_line(line) for line in lines)


def _read_line(line: str) -> Example:
    try:
        given, result = (ast.literal_eval(side.strip()) for side in line.split(ARROW))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        given = result = None
    for side in (given, result):
        whole = isinstance(side, list) and all(type(value) is int and abs(value) <= LIMIT for value in side)
        if not whole or len(side) > LONGEST:
            raise RelgradError(
                f"{line[:60]!r} is no example: write [3, 1, 2] {ARROW} [1, 2, 3], lists of at most {LONGEST} whole numbers of "
                f"-{LIMIT} .. {LIMIT}"
            )
    return Example(tuple(given), tuple(result))
