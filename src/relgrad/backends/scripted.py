"""A stochastic solver whose error rates are known, by type of problem and by operator: so what voting does is known.

It reads what a request is about (`about`: operator, name of the prompt, problem, solution) and not its words. With e the error
rate of the operator on the problem's type, and W the problem's wrong answers, each call independent of all others:

    generate, program   the answer with 1 - e, else one of W uniformly (program: as a program that prints it)
    review, verify      of a right solution "wrong" with `false_alarm`, of a wrong one "right" with `miss`
    revise              of a right solution one of W with `breaks`; of a wrong one the answer with `fixes`, else it stays
    format              the solution, as it is
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from relgrad.backends.protocol import CallFailed, Reply, Request, Usage
from relgrad.core.randomness import derived
from relgrad.core.settings import Strict

Chance = Annotated[float, Field(ge=0, le=1)]
PLAIN = "plain"
"""The prompt that any prompt without a rate of its own counts as."""


class Judging(Strict):
    """How often a judgement is wrong: of a wrong solution, and of a right one."""

    miss: Chance
    false_alarm: Chance


class Revising(Strict):
    """How often a revision mends a wrong solution, and spoils a right one."""

    fixes: Chance
    breaks: Chance


class Rates(Strict):
    """Of one type of problem. `generate` is by the name of the prompt, and has one for `plain`."""

    generate: dict[str, Chance]
    program: Chance
    review: Judging
    verify: Judging
    revise: Revising


def _rates(plain: float, careful: float, program: float, judging: tuple[float, float], fixes: float) -> Rates:
    judge = Judging(miss=judging[0], false_alarm=judging[1])
    return Rates(
        generate={PLAIN: plain, "careful": careful},
        program=program,
        review=judge,
        verify=judge,
        revise=Revising(fixes=fixes, breaks=0.1),
    )


TYPES = {
    "sum": _rates(0.5, 0.4, 0.1, (0.5, 0.2), 0.3),
    "story": _rates(0.45, 0.3, 0.6, (0.4, 0.2), 0.4),
    "riddle": _rates(0.6, 0.55, 0.75, (0.1, 0.1), 0.7),
}
"""Sums want a program, stories careful writing and votes, riddles a review."""
PRICES = {
    "generate": 1.0,
    "generate careful": 2.0,
    "program": 2.0,
    "review": 1.0,
    "verify": 1.0,
    "revise": 1.5,
    "format": 0.5,
}
"""Money for a call, by operator, or by operator and prompt."""


class Settings(Strict):
    """What the solver can do, and what it costs.

    types    error rates by type of problem
    prices   money for a call, by operator, or by operator and name of the prompt
    latency  seconds a call takes
    """

    types: dict[str, Rates] = Field(default_factory=lambda: dict(TYPES))
    prices: dict[str, float] = Field(default_factory=lambda: dict(PRICES))
    latency: float = Field(0.0, ge=0)


def build(settings: Settings, seed: int = 0) -> Scripted:
    """A solver; what it answers is a function of the request's seed and of `seed`."""
    return Scripted(settings, seed)


class Scripted:
    """See protocol.Backend."""

    priced = True

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    @property
    def identity(self) -> str:
        return f"scripted {self.seed} {self.settings.model_dump_json(exclude={'latency'})}"

    def price(self, operator: str, prompt: str = "") -> float:
        """Money for a call."""
        return self.settings.prices.get(f"{operator} {prompt}", self.settings.prices.get(operator, 0.0))

    def worst(self, request: Request) -> Usage:
        about = request.about
        return Usage(
            1, request.size, request.max_tokens, self.price(str(about.get("operator")), str(about.get("prompt")))
        )

    async def generate(self, request: Request) -> Reply:
        if self.settings.latency:
            await asyncio.sleep(self.settings.latency)
        about = request.about
        problem = about.get("problem")
        if not isinstance(problem, Mapping) or problem.get("type") not in self.settings.types:
            raise CallFailed(
                f"scripted: problems of type {', '.join(self.settings.types)} only, as kind: noisy makes them (received "
                f"{problem!r:.80})",
                fatal=True,
            )
        draw = random.Random(derived(self.seed, "scripted", request.seed or 0, request.key))
        text = _answer(str(about.get("operator")), about, problem, self.settings.types[str(problem["type"])], draw)
        usage = Usage(1, len(request.messages[-1]["content"].split()), len(text.split()), self.worst(request).money)
        return Reply(text, usage, "scripted")

    async def close(self) -> None:
        """Nothing to give back."""


def _answer(
    operator: str, about: Mapping[str, Any], problem: Mapping[str, Any], rates: Rates, draw: random.Random
) -> str:
    right, wrong = str(problem["answer"]), [str(other) for other in problem["wrong"]]
    solution = str(about.get("solution", ""))
    if operator == "generate":
        error = rates.generate.get(str(about.get("prompt")), rates.generate[PLAIN])
        return f"answer: {draw.choice(wrong) if draw.random() < error else right}"
    if operator == "program":
        return f"print({draw.choice(wrong) if draw.random() < rates.program else right})"
    if operator in ("review", "verify"):
        judging = rates.review if operator == "review" else rates.verify
        says_right = draw.random() >= judging.false_alarm if solution == right else draw.random() < judging.miss
        return "right" if says_right else "wrong"
    if operator == "revise":
        if solution == right:
            return f"answer: {draw.choice(wrong) if draw.random() < rates.revise.breaks else right}"
        return f"answer: {right if draw.random() < rates.revise.fixes else solution}"
    if operator == "format":
        return f"answer: {solution}"
    raise CallFailed(f"scripted: no operator {operator!r}", fatal=True)
