"""Every function that list programs of up to so many steps compute, each by its first shortest program.

A program that begins with `p` does what it does with any program in the place of `p` that does the same. So only the first shortest
program of every function is extended, and the enumeration is complete.
"""

from __future__ import annotations

from functools import lru_cache

from relgrad.environments.lists.operators import APPLY, Values
from relgrad.environments.lists.program import PROBES, Program


@lru_cache(maxsize=8)
def functions(most_steps: int) -> tuple[tuple[Program, ...], ...]:
    """By number of steps, 0 .. most_steps: the programs of functions that no shorter program computes, in order of operators."""
    seen: set[tuple[Values, ...]] = {PROBES}
    levels: list[list[tuple[tuple[int, ...], tuple[Values, ...]]]] = [[((), PROBES)]]
    for _ in range(most_steps):
        level = []
        for steps, outputs in levels[-1]:
            for number, apply in enumerate(APPLY):
                after = tuple([apply(values) for values in outputs])
                if after not in seen:
                    seen.add(after)
                    level.append(((*steps, number), after))
        levels.append(level)
    return tuple(tuple(Program(steps) for steps, _ in level) for level in levels)


def canonical(program: Program) -> Program:
    """The first shortest program that does the same: two programs do the same where theirs are equal."""
    for level in functions(len(program.steps)):
        for shortest in level:
            if shortest.outputs == program.outputs:
                return shortest
    return program
