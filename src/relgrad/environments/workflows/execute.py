"""A workflow on a problem: its answer and its calls, or why there is no answer. What failed is unscored, and is never an answer."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from relgrad.backends.protocol import CallFailed, Usage
from relgrad.environments.workflows.language import Step
from relgrad.environments.workflows.operators import Call, Operators, Solution
from relgrad.environments.workflows.problem import rightness


@dataclass(frozen=True)
class Outcome:
    """`right` is 1 or 0; NaN where nobody knows the answer, and where a call failed: then `failure` says why."""

    answer: str
    right: float
    calls: tuple[Call, ...]
    failure: str = ""

    @property
    def usage(self) -> Usage:
        total = Usage()
        for call in self.calls:
            total = total.plus(call.usage)
        return total

    def record(self) -> dict[str, Any]:
        """As plain data, for a file."""
        calls = [{**vars(call), "usage": list(call.usage)} for call in self.calls]
        return {"answer": self.answer, "right": self.right, "failure": self.failure, "calls": calls}


async def execute(step: Step, operators: Operators) -> Outcome:
    """Run a workflow. Raises CallFailed only where every other call would fail too."""
    try:
        solution = await run(step, operators, "0")
    except CallFailed as failure:
        if failure.fatal:
            raise
        return Outcome("", math.nan, tuple(operators.calls), str(failure))
    answer = solution.answer
    return Outcome(answer, rightness(operators.problem, answer), tuple(operators.calls))


def shared_labels(step: Step) -> dict[str, str]:
    """A label for every place of a workflow, by which workflows share replies: equal parts have equal labels, in whatever workflow.

    The second `generate()` of a workflow is the second one of all others too, so that `ensemble(3 * generate())` is asked only two
    questions more than `generate()`. Within one workflow all labels differ: its calls are as independent as ever.
    """
    labels: dict[str, str] = {}
    count: Counter[str] = Counter()

    def label(step: Step, at: str) -> None:
        asked = f"verify {step.inputs[0].text}" if step.operator == "verify" else step.text  # whatever comes after it
        labels[at] = f"{asked} {count[asked]}"
        count[asked] += 1
        for number, inner in enumerate(step.inputs):
            label(inner, f"{at}.{number}")

    label(step, "0")
    return labels


async def run(step: Step, operators: Operators, at: str) -> Solution:
    """The solution of a workflow whose program begins at the place `at`. Raises CallFailed."""
    match step.operator:
        case "generate":
            return await operators.generate(step.prompt, at)
        case "program":
            return await operators.program(step.prompt, at)
        case "ensemble":
            return await operators.ensemble(await _all(step, operators, at), at)
        case "verify" | "test":
            first = await run(step.inputs[0], operators, f"{at}.0")
            passes = await (operators.verify(first, at) if step.operator == "verify" else operators.test(first))
            return first if passes else await run(step.inputs[1], operators, f"{at}.1")
    inner = await run(step.inputs[0], operators, f"{at}.0")
    match step.operator:
        case "review":
            return await operators.review(inner, step.prompt, at)
        case "revise":
            return await operators.revise(inner, step.prompt, at)
        case "format":
            return await operators.format(inner, step.prompt, at)
        case _:
            return await operators.extract(inner)


async def _all(step: Step, operators: Operators, at: str) -> list[Solution]:
    """The solutions of all inputs, at once. Where some fail, all have ended before the first failure is raised."""
    runs = (run(inner, operators, f"{at}.{number}") for number, inner in enumerate(step.inputs))
    results = await asyncio.gather(*runs, return_exceptions=True)
    solutions = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        solutions.append(result)
    return solutions
