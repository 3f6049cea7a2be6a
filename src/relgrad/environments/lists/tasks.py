"""Tasks of list programs by a seed: functions dealt out to the parts of a task, and the order in which they are trained on.

No function belongs to two parts, however its programs are written: parts share no program and no two spellings of one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from relgrad.core.errors import RelgradError
from relgrad.environments.lists.examples import Example, draw_examples
from relgrad.environments.lists.functions import functions
from relgrad.environments.lists.program import Program

Item = TypeVar("Item")


@dataclass(frozen=True)
class ListTask:
    """A function to be found, by its first shortest program, with examples that a policy sees and others that it does not."""

    program: Program
    visible: tuple[Example, ...]
    hidden: tuple[Example, ...]


class Dealer:
    """Deals out functions, each once, in an order by the seed, with `visible` and `hidden` examples."""

    def __init__(self, visible: int, hidden: int, seed: int) -> None:
        self.visible, self.hidden, self.seed = visible, hidden, seed
        self._left: dict[int, list[Program]] = {}

    def part(self, name: str, lengths: Sequence[int], count: int, *, again: bool = False) -> list[ListTask]:
        """`count` tasks, every length as often as any other, give or take one, of functions that were not dealt out before.

        `again`: where no function of a length is left, those of this part come again, with other examples. Raises RelgradError
        where there are too few.
        """
        tasks: list[ListTask] = []
        for place, length in enumerate(lengths):
            share = count // len(lengths) + (place < count % len(lengths))
            own = self._new(name, length, share)
            if len(own) < share and not (again and own):
                raise RelgradError(
                    f"list programs of {length} operators: {len(own)} functions are left for {share} tasks of the part {name!r}. "
                    "Take fewer tasks, or other lengths"
                )
            first, number = len(own), 0
            while len(own) < share:
                program = own[number % first].program
                number += 1
                if (task := self._task(program, name, number)) is not None:
                    own.append(task)
            tasks += own
        return tasks

    def _new(self, name: str, length: int, share: int) -> list[ListTask]:
        """At most `share` tasks of functions of one length that were not dealt out before."""
        if length not in self._left:
            programs = list(functions(length)[length])
            random.Random(f"{self.seed}/lists/functions/{length}").shuffle(programs)
            self._left[length] = programs
        left = self._left[length]
        tasks: list[ListTask] = []
        while left and len(tasks) < share:
            if (task := self._task(left.pop(), name, 0)) is not None:
                tasks.append(task)
        return tasks

    def _task(self, program: Program, name: str, number: int) -> ListTask | None:
        draw = random.Random(f"{self.seed}/lists/{name}/{number}/{program.text}")
        examples = draw_examples(program, self.visible + self.hidden, self.visible, draw)
        return None if examples is None else ListTask(program, examples[: self.visible], examples[self.visible :])


def curriculum(groups: Sequence[Sequence[Item]], total: int, rising: int, seed: int) -> list[Item]:
    """`total` items, in an order in which those of later groups come in later: short programs first.

    For the first `rising` items, group k of n is drawn from item k / n * rising on; all that are there are drawn equally often.
    Within a group every item comes before any comes again.
    """
    draw = random.Random(f"{seed}/lists/curriculum")
    waiting: list[list[Item]] = [[] for _ in groups]
    order = []
    for place in range(total):
        there = max(1, min(len(groups), 1 + place * len(groups) // max(rising, 1)))
        group = draw.randrange(there)
        if not waiting[group]:
            waiting[group] = draw.sample(list(groups[group]), len(groups[group]))
        order.append(waiting[group].pop())
    return order
