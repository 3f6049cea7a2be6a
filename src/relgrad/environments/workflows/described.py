"""Kinds of problems described in words: how often each operator errs, and what it costs.

A kind is drawn on a grid: an error rate is one of LEVELS, a price one of PRICES. Which part of a task a kind belongs to is
settled by its own rates and prices, for good, so that no seed trains on what another one tests. The type does not count: it has
no influence on what a workflow is worth, and so kinds that differ in nothing else belong to the same part.

    sum, story, riddle   programs err less on sums than on riddles; beyond that the description says all there is to know
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from relgrad.backends.scripted import PLAIN, Judging, Rates, Revising, Scripted
from relgrad.backends.scripted import Settings as Solver
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.environments.workflows import noisy
from relgrad.environments.workflows.edits import Space
from relgrad.environments.workflows.language import Step
from relgrad.environments.workflows.noisy import Exact
from relgrad.environments.workflows.problem import Problem

Part = Literal["train", "validation", "test"]
LEVELS = {"rarely": 0.1, "sometimes": 0.3, "often": 0.55, "mostly": 0.8}
"""Chances, by their words."""
PRICES = {"cheap": 1.0, "dear": 3.0}
PROGRAMS = {"sum": ("rarely", "sometimes"), "story": tuple(LEVELS), "riddle": ("often", "mostly")}
"""How often programs may err, by type."""
FALSE_ALARM, BREAKS = 0.1, 0.1
"""Of reviews of right solutions, and of revisions of them: the same for all kinds."""
SHARES: dict[Part, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
FIELDS = ("type", "plain", "careful", "program", "miss", "fixes", "careful_price", "program_price", "cost_weight")
DECISIVE = FIELDS[1:-1]
"""Fields that settle the part: rates and prices."""
TEMPLATES = (
    "A {type}. Wrong answers: plain {plain}, careful {careful}, program {program}. Reviews {miss} miss errors, "
    "revisions {fixes} mend them. Careful is {careful_price}, program {program_price}.\nWorkflow:",
    "Type: {type}. Programs are {program} wrong and {program_price}. Plain answers are {plain} wrong. "
    "Careful ones are {careful} wrong and {careful_price}. Reviews {miss} overlook errors; revisions {fixes} work.\nWorkflow:",
)
"""Descriptions; each problem has one of them."""


class Kind(Strict):
    """One kind of problems: the words of its rates and prices, and what a unit of cost is worth in right answers."""

    type: Literal["sum", "story", "riddle"]
    plain: str
    careful: str
    program: str
    miss: str
    fixes: str
    careful_price: str
    program_price: str
    cost_weight: float = Field(ge=0)

    @property
    def solver(self) -> Solver:
        """The settings of the scripted solver that errs so."""
        judging = Judging(miss=LEVELS[self.miss], false_alarm=FALSE_ALARM)
        rates = Rates(
            generate={PLAIN: LEVELS[self.plain], "careful": LEVELS[self.careful]},
            program=LEVELS[self.program],
            review=judging,
            verify=judging,
            revise=Revising(fixes=LEVELS[self.fixes], breaks=BREAKS),
        )
        prices = {
            "generate": 1.0,
            "generate careful": PRICES[self.careful_price],
            "program": PRICES[self.program_price],
            "review": 1.0,
            "verify": 1.0,
            "revise": 1.0,
            "format": 0.5,
        }
        return Solver(types={self.type: rates}, prices=prices)

    def words(self, style: Literal["words", "numbers"]) -> dict[str, str]:
        """The fields of a description: levels and prices by their words, or as percentages and numbers."""
        fields = {name: str(value) for name, value in self}
        if style == "numbers":
            fields |= {name: f"{LEVELS[fields[name]]:.0%}" for name in ("plain", "careful", "program", "miss", "fixes")}
            fields |= {name: f"{PRICES[fields[name]]:g}" for name in ("careful_price", "program_price")}
        return fields

    def problems(self, count: int, seed: int) -> list[Problem]:
        """So many problems of the kind."""
        return noisy.problems(noisy.Settings(types=(self.type,), count=count), seed)


def part_of(kind: Kind) -> Part:
    """Which part the kind belongs to, by its rates and prices: whatever the seed, the type, and the cost weight of the task."""
    spelled = json.dumps([getattr(kind, name) for name in DECISIVE])
    place = int.from_bytes(hashlib.sha256(spelled.encode()).digest()[:4], "big") / 2**32
    return "train" if place < SHARES["train"] else "validation" if place < 1 - SHARES["test"] else "test"


def draw_kind(part: Part, draw: random.Random, cost_weight: float) -> Kind:
    """A kind of this part. Careful answers err no more often than plain ones."""
    levels = list(LEVELS)
    while True:
        type_ = draw.choice(("sum", "story", "riddle"))
        plain = draw.randrange(len(levels))
        kind = Kind(
            type=type_,
            plain=levels[plain],
            careful=levels[draw.randint(max(plain - 2, 0), plain)],
            program=draw.choice(PROGRAMS[type_]),
            miss=draw.choice(levels[:3]),
            fixes=draw.choice(levels),
            careful_price=draw.choice(list(PRICES)),
            program_price=draw.choice(list(PRICES)),
            cost_weight=cost_weight,
        )
        if part_of(kind) == part:
            return kind


def described(kind: Kind, template: str, style: Literal["words", "numbers"]) -> str:
    """The description by a template. Raises RelgradError for a template with other fields than FIELDS."""
    try:
        return template.format(**kind.words(style))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise RelgradError(
            f"template {template[:80]!r}: {error!r} is no field; there are {', '.join(FIELDS)} (write {{{{ for a brace)"
        ) from None


@lru_cache(maxsize=64)
def programs(space: Space) -> tuple[Step, ...]:
    """Every workflow of a space."""
    return tuple(noisy.everything(space))


def random_program(space: Space, draw: random.Random) -> Step:
    """A workflow of the space that knows nothing of any problem: all sizes are equally likely, and so are all of one size."""
    by_size: dict[int, list[Step]] = {}
    for step in programs(space):
        by_size.setdefault(step.size, []).append(step)
    return draw.choice(by_size[draw.choice(sorted(by_size))])


class Judge:
    """What workflows are worth for one kind of problems, exactly, and who answers its problems."""

    def __init__(self, kind: Kind, space: Space) -> None:
        self.kind, self.space = kind, space
        self.backend = Scripted(kind.solver, 0)
        self.exact = Exact(kind.solver, noisy.Settings(types=(kind.type,)))

    def worth(self, step: Step) -> float:
        """Accuracy less the cost, expected."""
        return self.exact.score(step, self.kind.cost_weight)

    @property
    def best(self) -> tuple[Step, float]:
        """The best workflow of the space and its worth; of equal ones the shortest."""
        return self.exact.best(self.space, self.kind.cost_weight)


@lru_cache(maxsize=4096)
def _judge(spelled: str, space: Space) -> Judge:
    return Judge(Kind.model_validate_json(spelled), space)


def judge_of(plain: Mapping[str, Any], space: Space) -> Judge:
    """The judge of a kind that is given as plain data; kept, since its best workflow takes a while."""
    return _judge(json.dumps(dict(plain), sort_keys=True), space)
