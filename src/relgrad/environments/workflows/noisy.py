"""Problems for the scripted solver, and what any workflow is worth on them, exactly: so the best one can be enumerated.

All calls are independent and their error rates known (backends/scripted.py), so the distribution of a workflow's answer follows
from those of its parts, by enumeration over the right answer and the wrong ones. What it costs follows likewise: a second branch is
paid as often as it is taken.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field

from relgrad.backends.scripted import PLAIN, PRICES, TYPES, Rates, Scripted
from relgrad.backends.scripted import Settings as Solver
from relgrad.core.randomness import derived
from relgrad.core.settings import Strict
from relgrad.environments.workflows.edits import Space
from relgrad.environments.workflows.language import Step, canonical
from relgrad.environments.workflows.operators import TESTS
from relgrad.environments.workflows.problem import Problem

WORDS = {"sum": "Add {0} and {1}.", "story": "Ada has {0} apples and buys {1} more. How many has she?"}
BEYOND = (1, 2, 3)
"""By how much the wrong answers are more than the right one: the second is as even as it."""
ANSWERS = len(BEYOND) + 1
LARGEST_SPACE = 7
"""Operators of the largest workflows that are enumerated: with five operators and three leaves these are 3,168 workflows."""


class Settings(Strict):
    """Which problems.

    types  they take turns
    tests  every problem has a test, which one wrong answer in three passes too
    """

    types: tuple[str, ...] = tuple(TYPES)
    count: int = Field(30, ge=1)
    tests: bool = False


def problems(settings: Settings, seed: int) -> list[Problem]:
    """The problems of a seed."""
    return [_problem(settings, seed, number) for number in range(settings.count)]


def _problem(settings: Settings, seed: int, number: int) -> Problem:
    draw = random.Random(derived(seed, "noisy problem", number))
    kind = settings.types[number % len(settings.types)]
    one, other = draw.randint(10, 499), draw.randint(10, 499)
    answer = one + other
    text = WORDS.get(kind, f"A {kind}: {{0}}, and {{1}} more.").format(one, other)
    tests = (("even_as", answer % 2),) if settings.tests else ()
    return Problem(f"{kind}-{number}", text, str(answer), kind, tuple(str(answer + more) for more in BEYOND), tests)


class Worth(NamedTuple):
    """Of a workflow on one type of problem: the chance of every answer (the right one first, then the wrong ones), and money."""

    chances: tuple[float, ...]
    money: float

    @property
    def accuracy(self) -> float:
        return self.chances[0]


class Exact:
    """What workflows are worth with a solver, exactly; kept, so that a workflow's parts are computed once."""

    def __init__(self, solver: Solver | None = None, settings: Settings | None = None) -> None:
        solver, self.settings = solver or Solver(types=dict(TYPES), prices=dict(PRICES)), settings or Settings()
        self.rates, self.prices = solver.types, solver.prices
        self._kept: dict[tuple[str, Step], Worth] = {}
        self._best: dict[tuple[Space, float, tuple[str, ...]], tuple[Step, float]] = {}

    def worth(self, step: Step, kind: str) -> Worth:
        """On problems of one type."""
        if (kind, step) not in self._kept:
            self._kept[kind, step] = self._compute(step, kind)
        return self._kept[kind, step]

    def score(self, step: Step, price: float, kinds: Sequence[str] = ()) -> float:
        """Accuracy less `price` times money, on the mean over types."""
        kinds = kinds or self.settings.types
        worths = [self.worth(step, kind) for kind in kinds]
        return math.fsum(worth.accuracy - price * worth.money for worth in worths) / len(worths)

    def best(self, space: Space, price: float, kinds: Sequence[str] = ()) -> tuple[Step, float]:
        """The workflow of the space with the highest score, and its score; of equal ones the shortest."""
        key = (space, price, tuple(kinds))
        if key not in self._best:
            scored = ((self.score(step, price, kinds), step) for step in everything(space))
            top, step = max(scored, key=lambda pair: (pair[0], -pair[1].size))
            self._best[key] = step, top
        return self._best[key]

    def _price(self, operator: str, prompt: str = "") -> float:
        return self.prices.get(f"{operator} {prompt or PLAIN}", self.prices.get(operator, 0.0))

    def _compute(self, step: Step, kind: str) -> Worth:
        rates, price = self.rates[kind], self._price(step.operator, step.prompt)
        match step.operator:
            case "generate":
                return Worth(_erring(rates.generate.get(step.prompt or PLAIN, rates.generate[PLAIN])), price)
            case "program":
                return Worth(_erring(rates.program), price)
            case "ensemble":
                parts = [self.worth(inner, kind) for inner in step.inputs]
                return Worth(vote([part.chances for part in parts]), math.fsum(part.money for part in parts))
            case "verify" | "test":
                return self._either(step, kind, price)
            case "revise":
                return self._revised(step, kind, price)
        inner = self.worth(step.inputs[0], kind)  # review, format and extract leave the answer as it is
        return Worth(inner.chances, inner.money + price)

    def _either(self, step: Step, kind: str, price: float) -> Worth:
        first, second = (self.worth(inner, kind) for inner in step.inputs)
        judging = self.rates[kind].verify
        if step.operator == "verify":
            passes = [1 - judging.false_alarm] + [judging.miss] * len(BEYOND)
        else:
            price, passes = 0.0, self._tested()
        kept = [chance * share for chance, share in zip(first.chances, passes, strict=True)]
        rest = 1 - math.fsum(kept)
        chances = tuple(mine + rest * other for mine, other in zip(kept, second.chances, strict=True))
        return Worth(chances, first.money + price + rest * second.money)

    def _tested(self) -> list[float]:
        """The chance of every answer to pass the problem's tests; the same whatever the right answer is."""
        if not self.settings.tests:
            return [1.0] * ANSWERS
        return [float(TESTS["even_as"](10 + more, 10)) for more in (0, *BEYOND)]

    def _revised(self, step: Step, kind: str, price: float) -> Worth:
        inner, rates = self.worth(step.inputs[0], kind), self.rates[kind]
        objected = [rates.review.false_alarm] + [1 - rates.review.miss] * len(BEYOND)
        asked = [chance * share for chance, share in zip(inner.chances, objected, strict=True)]
        chances = [chance - part for chance, part in zip(inner.chances, asked, strict=True)]
        for answer, part in enumerate(asked):
            for after, share in enumerate(_mended(answer, rates)):
                chances[after] += part * share
        return Worth(tuple(chances), inner.money + math.fsum(asked) * price)


def exact_of(settings: object, backend: object) -> Exact | None:
    """For problems of this module with the scripted solver; None for all others."""
    if isinstance(settings, Settings) and isinstance(backend, Scripted):
        return _exact(backend.settings.model_dump_json(), settings.model_dump_json())
    return None


@lru_cache(maxsize=8)
def _exact(solver: str, settings: str) -> Exact:
    """Kept, since many searches of one process are on problems of one solver."""
    return Exact(Solver.model_validate_json(solver), Settings.model_validate_json(settings))


def _erring(error: float) -> tuple[float, ...]:
    return (1 - error, *[error / len(BEYOND)] * len(BEYOND))


def _mended(answer: int, rates: Rates) -> list[float]:
    """The chance of every answer after a revision of this one."""
    if not answer:
        return list(_erring(rates.revise.breaks))
    chances = [0.0] * ANSWERS
    chances[0], chances[answer] = rates.revise.fixes, 1 - rates.revise.fixes
    return chances


def vote(parts: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The chance of every answer to be the commonest of independent ones; of equally common ones one is drawn."""
    counts: dict[tuple[int, ...], float] = {(0,) * ANSWERS: 1.0}
    for part in parts:
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for votes, chance in counts.items():
            for answer, share in enumerate(part):
                after[(*votes[:answer], votes[answer] + 1, *votes[answer + 1 :])] += chance * share
        counts = after
    chances = [0.0] * ANSWERS
    for votes, chance in counts.items():
        tied = [answer for answer, count in enumerate(votes) if count == max(votes)]
        for answer in tied:
            chances[answer] += chance / len(tied)
    return tuple(chances)


def everything(space: Space) -> Iterator[Step]:
    """Every workflow of the space once, small ones first; formats and extracts apart, which change no answer here."""
    by_size: dict[int, list[Step]] = {1: list(dict.fromkeys(space.leaves))}
    yield from by_size[1]
    for size in range(2, space.max_size + 1):
        by_size[size] = list(dict.fromkeys(map(canonical, _of_size(size, by_size, space))))
        yield from by_size[size]


def _of_size(size: int, by_size: Mapping[int, list[Step]], space: Space) -> Iterator[Step]:
    if "revise" in space.operators:
        for inner in by_size.get(size - 2, ()):
            yield Step("revise", (Step("review", (inner,)),))
    for name in ("verify", "test"):
        if name in space.operators:
            for left in range(1, size - 1):
                for pair in itertools.product(by_size[left], by_size[size - 1 - left]):
                    yield Step(name, pair)
    if "ensemble" in space.operators:
        for sizes in _partitions(size - 1, size - 1):
            groups = [
                itertools.combinations_with_replacement(by_size[part], sizes.count(part)) for part in sorted(set(sizes))
            ]
            for chosen in itertools.product(*groups):
                items = tuple(itertools.chain.from_iterable(chosen))
                if len(items) > 1:
                    yield Step("ensemble", items)


def _partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as a sum, in falling order."""
    if not total:
        yield ()
    for first in range(min(total, largest), 0, -1):
        yield from ((first, *rest) for rest in _partitions(total - first, first))
