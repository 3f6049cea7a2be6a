"""What a search found, on the problems that were kept for the test, beside what one would do without a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from relgrad.environments.workflows.language import Step, parse
from relgrad.environments.workflows.operators import Runner
from relgrad.environments.workflows.problem import Problem
from relgrad.evaluation.statistics import bootstrap_mean, paired_difference
from relgrad.search.budget import Budget
from relgrad.search.journal import Asker
from relgrad.search.settings import Budget as Limits
from relgrad.search.settings import Search
from relgrad.search.tree import Node
from relgrad.search.trials import Trials

MOST_VOTES = 32


async def test(
    best: Node, problems: Sequence[Problem], settings: Search, asker: Asker, seed: int, runner: Runner
) -> list[dict[str, Any]]:
    """The accuracy, score and cost of the best workflow and of three others, with intervals over problems.

    The others are one call, one call that thinks step by step, and votes over such calls at the cost of the best workflow. These
    calls are not of the search's budget; every workflow is executed `test_repeats` times on each problem. Raises CallFailed where
    no call can succeed.
    """
    if not settings.test_repeats:
        return []
    outside = Asker(asker.backend, asker.journal, Budget(Limits()))
    trials = Trials(problems, settings, outside.ask, seed, runner)
    rows: list[dict[str, Any]] = []
    careful: Node | None = None
    for name, step in (
        ("best", best.step),
        ("one call", parse("generate()")),
        ("step by step", parse("generate(careful)")),
    ):
        careful = await _executed(trials, step, settings.test_repeats * len(problems))
        rows.append(_row(name, careful, rows))
    votes = _votes(rows[0]["cost"], rows[-1]["cost"])
    if votes > 1:
        node = await _executed(
            trials, Step("ensemble", (parse("generate(careful)"),) * votes), settings.test_repeats * len(problems)
        )
        rows.append(_row(f"{votes} votes", node, rows))
    for row in rows:
        del row["by_problem"]
    return rows


async def _executed(trials: Trials, step: Step, count: int) -> Node:
    node = Node(0, None, step, "", 0)
    await trials.repeat(node, count)
    return node


def _votes(cost: float, one: float) -> int:
    """How many calls of one cost are worth about another cost; 0 where it is not known."""
    if not (math.isfinite(cost) and math.isfinite(one) and one > 0):
        return 0
    return min(MOST_VOTES, round(cost / one))


def _row(name: str, node: Node, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_problem: dict[str, list[float]] = {}
    for trial in node.trials.values():
        by_problem.setdefault(trial.problem, []).append(trial.value)
    scores = {problem: math.fsum(values) / len(values) for problem, values in by_problem.items()}
    interval = bootstrap_mean(list(scores.values()))
    row = {
        "name": name,
        "workflow": node.step.text,
        "accuracy": node.accuracy,
        "cost": node.cost,
        "score": interval.value,
        "low": interval.low,
        "high": interval.high,
        "problems": len(scores),
        "failed": sum(bool(trial.outcome.failure) for trial in node.trials.values()),
        "by_problem": scores,
    }
    if before:
        best = before[0]["by_problem"]
        difference = paired_difference(list(scores.values()), [best[problem] for problem in scores])
        row |= {"best_minus": difference.value, "best_minus_low": difference.low, "best_minus_high": difference.high}
    return row
