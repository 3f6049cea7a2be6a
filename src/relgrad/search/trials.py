"""Executions of a workflow. Trial j is the same problem with the same seed for every workflow, so they are compared in pairs."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

from relgrad.core.randomness import derived
from relgrad.environments.workflows.execute import Outcome, execute, shared_labels
from relgrad.environments.workflows.operators import Ask, Operators, Runner
from relgrad.environments.workflows.problem import Problem
from relgrad.search.settings import Search
from relgrad.search.tree import Node, Trial

Result = tuple[str, str, int]
"""Names an execution: the workflow's hash, the problem's id, the repetition."""


class Trials:
    """Executes workflows on these problems, in an order drawn once, again and again. What was executed once is not executed again.

    A failure that ends the search (BudgetSpent, a fatal CallFailed) is raised after all trials under way have ended and were kept.
    """

    def __init__(self, problems: Sequence[Problem], settings: Search, ask: Ask, seed: int, runner: Runner) -> None:
        self.settings, self.ask, self.seed, self.runner = settings, ask, seed, runner
        self.order = list(problems)
        random.Random(derived(seed, "order of trials")).shuffle(self.order)
        self._room = asyncio.Semaphore(settings.concurrency)
        self._results: dict[Result, Outcome] = {}

    async def repeat(self, node: Node, count: int) -> None:
        """So many trials more. Raises what ends the search."""
        numbers = range(len(node.trials), len(node.trials) + count)
        outcomes = await asyncio.gather(*(self._trial(node, n) for n in numbers), return_exceptions=True)
        failures = []
        for number, outcome in zip(numbers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                failures.append(outcome)
            else:
                node.keep(number, outcome)
        if failures:
            raise failures[0]

    async def until_clear(self, node: Node, best: Node | None) -> None:
        """First trials; then, while the workflow seems better than the best and is not clearly so, more of it, and of the best.

        Either is executed `most` times at the most.
        """
        limits = self.settings.trials
        await self.repeat(node, limits.first)
        while (
            best is not None and len(node.trials) < limits.most and node.mean > best.mean and not self.clear(node, best)
        ):
            for one in (node, best):
                await self.repeat(one, max(0, min(limits.first, limits.most - len(one.trials))))

    def clear(self, node: Node, best: Node) -> bool:
        """Whether the means of two workflows are further apart than their errors; True where the first has no score."""
        if not node.values or not best.values:
            return True
        shared = [
            (node.trials[n].value, best.trials[n].value)
            for n in node.trials.keys() & best.trials.keys()
            if not math.isnan(node.trials[n].value + best.trials[n].value)
        ]
        if len(shared) < self.settings.trials.first:
            apart, error = node.mean - best.mean, math.hypot(node.error, best.error)
        else:
            differences = [mine - other for mine, other in shared]
            apart = math.fsum(differences) / len(differences)
            squares = math.fsum((d - apart) ** 2 for d in differences) + 0.25
            error = math.sqrt(squares) / len(differences)
        return abs(apart) > self.settings.trials.errors * error

    async def _trial(self, node: Node, number: int) -> Trial:
        repeat, place = divmod(number, len(self.order))
        problem = self.order[place]
        key = (node.step.hash, problem.id, repeat)
        if key not in self._results:
            async with self._room:
                operators = Operators(
                    problem,
                    self.ask,
                    derived(self.seed, "trial", repeat),
                    self.runner,
                    temperature=self.settings.temperature,
                    max_tokens=self.settings.max_tokens,
                    labels=shared_labels(node.step) if self.settings.trials.share else {},
                )
                self._results[key] = await execute(node.step, operators)
        outcome = self._results[key]
        cost = cost_of(outcome, self.settings)
        return Trial(problem.id, repeat, outcome, cost, outcome.right - self.settings.cost_weight * cost)


def cost_of(outcome: Outcome, settings: Search) -> float:
    """What an execution cost, in the settings' unit, however it was paid."""
    usage = outcome.usage
    return {"money": usage.money, "calls": float(usage.calls), "tokens": float(usage.tokens)}[settings.cost]
