"""What the workflow in a completion is worth: right answers less `cost_weight` times its cost, in executions on problems.

Where the prompt describes a kind of problems (task `noisy_workflows`), the scripted solver answers, and what a workflow is worth is
also computed exactly, without any execution. With a `backend`, a language model answers the problem that the prompt's columns hold.

    executed  the mean over `repeats` executions; execution j is the same problem with the same seed for every workflow of a prompt
    exact     the expected value
    regret    the exact value of the best workflow there is, less that of this one

A completion that is no workflow scores `invalid`, and so does a Python program that breaks off. It has to be less than what any
workflow can score, or writing nonsense would be learnt: none right, at the price of the dearest workflow. For described problems
that is -cost_weight * 3 * max_size at the lowest, an operator costing 3 units at most, and with `cost: calls` -cost_weight *
max_size; an `invalid` above is refused. Of tokens, money and Python programs no bound is known: choose it so.

One for which a call or the sandbox failed is unscored.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from relgrad.backends.protocol import Backend, CallFailed, Usage
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import derived
from relgrad.core.secrets import require_references
from relgrad.core.settings import Component, Strict, settings_of
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Sandbox
from relgrad.environments.workflows.described import PRICES, Judge, judge_of
from relgrad.environments.workflows.edits import Space
from relgrad.environments.workflows.execute import Outcome, execute
from relgrad.environments.workflows.language import LARGEST, NoWorkflow, Step, parse
from relgrad.environments.workflows.operators import Operators
from relgrad.environments.workflows.problem import Problem
from relgrad.environments.workflows.programs import execute_program
from relgrad.rewards._columns import column, unscored

FENCE = re.compile(r"```(?:python)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
PARTS = {
    "valid": "1 where the completion is a workflow",
    "right": "right answers in the executions",
    "cost": "of an execution",
    "exact": "right answers less the cost, expected",
    "regret": "how much less it is worth than the best workflow, exactly",
}
"""What the parts of a score mean."""


class Settings(Strict):
    """Who answers, and what counts.

    backend      null: the scripted solver that the prompt describes
    language     expression: of the language of workflows, interpreted; python: `async def workflow(operators)`, in the sandbox
    repeats      executions of each workflow
    score        the mean of executions, or the expected value (described problems only)
    part         for monitors: this in place of the score
    invalid      the score of a completion that is no workflow; less than any workflow's, so lower it where cost_weight is large
    max_size     operators of the largest workflow, where the prompt does not say
    question, answer  columns of the problem, with a back end; of an answer what stands behind ####, where it has that
    cost, cost_weight, temperature, max_tokens, seed  of executions, with a back end; described problems have their own prices
    """

    backend: Component | None = None
    language: Literal["expression", "python"] = "expression"
    repeats: int = Field(8, ge=1)
    score: Literal["executed", "exact"] = "executed"
    part: Literal["valid", "exact", "regret"] | None = None
    invalid: float = Field(-1.0, le=0)
    max_size: int = Field(7, ge=1, le=LARGEST)
    question: str = "question"
    answer: str = "answer"
    cost: Literal["money", "calls", "tokens"] = "calls"
    cost_weight: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    seed: int = 0
    sandbox: SandboxSettings = SandboxSettings(seconds=60.0)

    @model_validator(mode="after")
    def _exact_where_known(self) -> Settings:
        exact = self.score == "exact" or self.part in ("exact", "regret")
        if exact and (self.backend is not None or self.language == "python"):
            raise ValueError(
                "the exact value is known for expressions and described problems only; leave `backend` out and write "
                "language: expression, or take score: executed without part: exact or regret"
            )
        return self

    @property
    def executes(self) -> bool:
        """Whether any workflow is to be executed."""
        return self.score == "executed" and (self.part is None or (self.part == "valid" and self.language == "python"))


def build(settings: Settings) -> WorkflowReward:
    """Raises RelgradError for a back end that cannot be built, and where Python programs cannot be contained."""
    backend = None
    if settings.backend is not None:
        require_references(settings.backend.options, "reward 'workflow': backend")
        module = registry.find("backends", settings.backend.kind)
        own = settings_of(settings.backend, module.Settings, "reward 'workflow': backend")
        backend = module.build(own, settings.seed)
        if settings.cost == "money" and settings.cost_weight and not backend.priced:
            raise RelgradError(
                "reward 'workflow': cost: money, and the back end knows no prices; count calls or tokens"
            )
    sandbox = Sandbox(settings.sandbox, "reward 'workflow'") if settings.language == "python" else None
    return WorkflowReward(settings, backend, sandbox)


@dataclass(frozen=True)
class World:
    """Where a prompt's workflows are executed: on these problems, one after the other."""

    backend: Backend
    problems: Sequence[Problem]
    seed: int
    cost: Literal["money", "calls", "tokens"]
    cost_weight: float
    max_size: int
    judge: Judge | None

    def cost_of(self, usage: Usage) -> float:
        return {"money": usage.money, "calls": float(usage.calls), "tokens": float(usage.tokens)}[self.cost]


class WorkflowReward:
    """A reward in relgrad's own form. Equal completions of a prompt are executed once."""

    def __init__(self, settings: Settings, backend: Backend | None, sandbox: Sandbox | None) -> None:
        self.settings, self.backend, self.sandbox = settings, backend, sandbox

    async def __call__(self, prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        world = self._world(prompt)
        if isinstance(world, str):
            return [unscored(world)] * len(outputs)
        texts = list(dict.fromkeys(output.text.strip() for output in outputs))
        try:
            scores = await asyncio.gather(*(self._score(text, world) for text in texts))
        except CallFailed as failure:
            raise RelgradError(f"reward 'workflow': {failure}") from None
        by_text = dict(zip(texts, scores, strict=True))
        return [by_text[output.text.strip()] for output in outputs]

    def _world(self, prompt: Prompt) -> World | str:
        """Where the prompt's workflows are executed, or why nowhere."""
        settings = self.settings
        if self.backend is None:
            plain = column(prompt, "kind_of_problem", "workflow")
            if plain is None:
                return "column 'kind_of_problem' is None"
            size, seed = int(prompt.columns["max_size"]), int(prompt.columns["seed"])
            judge = judge_of(plain, Space(max_size=size))
            self._require_lowest(judge.kind.cost_weight * max(PRICES.values()) * size)
            problems = judge.kind.problems(settings.repeats, seed)
            return World(judge.backend, problems, seed, "money", judge.kind.cost_weight, size, judge)
        if settings.cost == "calls":
            self._require_lowest(settings.cost_weight * settings.max_size)
        question, answer = (column(prompt, name, "workflow") for name in (settings.question, settings.answer))
        if not question or answer is None:
            return f"no problem: columns {settings.question!r} and {settings.answer!r} are {question!r:.40} and {answer!r:.40}"
        problem = Problem(str(prompt.id), str(question), str(answer).rpartition("####")[2].strip())
        return World(
            self.backend, [problem] * settings.repeats, settings.seed, settings.cost, settings.cost_weight,
            settings.max_size, None,
        )  # fmt: skip

    def _require_lowest(self, dearest: float) -> None:
        """Raise RelgradError where a workflow that is never right could score less than what is none; of expressions."""
        if self.settings.language == "expression" and self.settings.invalid > -dearest:
            raise RelgradError(
                f"reward 'workflow': invalid={self.settings.invalid:g}, and a workflow may score {-dearest:g} for its cost alone, "
                f"so that what is no workflow would be preferred. Set invalid to {-dearest:g} or less, or lower cost_weight"
            )

    async def _score(self, text: str, world: World) -> Score:
        program: Step | str = text
        if self.settings.language == "expression":
            try:
                program = parse(text)
            except NoWorkflow as error:
                return self._invalid(str(error), world)
            if program.size > world.max_size:
                return self._invalid(f"{program.size} operators; at most {world.max_size} are allowed", world)
        parts: dict[str, float] = {"valid": 1.0}
        if world.judge is not None and isinstance(program, Step):
            parts |= _exact(world.judge, world.judge.worth(program))
        if not self.settings.executes:
            return self._valued(parts.get("exact", math.nan), parts)
        outcomes = await asyncio.gather(*(self._execute(program, n, world) for n in range(self.settings.repeats)))
        return self._of_outcomes(outcomes, parts, world)

    def _of_outcomes(self, outcomes: Sequence[Outcome], parts: dict[str, float], world: World) -> Score:
        """The mean over executions; unscored where one could not be, invalid where a program broke off."""
        for outcome in outcomes:
            if math.isnan(outcome.right):
                return unscored(outcome.failure or "nobody knows the right answer")
        if failure := next((outcome.failure for outcome in outcomes if outcome.failure), ""):
            return self._invalid(failure, world)
        parts["right"] = math.fsum(outcome.right for outcome in outcomes) / len(outcomes)
        parts["cost"] = math.fsum(world.cost_of(outcome.usage) for outcome in outcomes) / len(outcomes)
        return self._valued(parts["right"] - world.cost_weight * parts["cost"], parts)

    async def _execute(self, program: Step | str, number: int, world: World) -> Outcome:
        operators = Operators(
            world.problems[number],
            world.backend.generate,
            derived(world.seed, "execution", number),
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_tokens,
        )
        if isinstance(program, Step):
            return await execute(program, operators)
        assert self.sandbox is not None
        fenced = FENCE.findall(program)
        return await execute_program(fenced[-1] if fenced else program, operators, self.sandbox)

    def _invalid(self, why: str, world: World) -> Score:
        exact: Mapping[str, float] = {}
        if world.judge is not None and self.settings.language == "expression":
            exact = _exact(world.judge, self.settings.invalid)
        return self._valued(self.settings.invalid, {"valid": 0.0, **exact})._replace(why=why)

    def _valued(self, value: float, parts: Mapping[str, float]) -> Score:
        return Score(value if self.settings.part is None else parts[self.settings.part], parts)


def _exact(judge: Judge, worth: float) -> dict[str, float]:
    return {"exact": worth, "regret": judge.best[1] - worth}


def name_of(settings: Any) -> str:
    """A monitor is called after its part."""
    return settings.part or ("exact" if settings.score == "exact" else "workflow")
