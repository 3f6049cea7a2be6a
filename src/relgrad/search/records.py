"""Trees and trajectories as plain data: what the page shows, and what a policy can learn from.

One line of trajectories.jsonl is one edit: the workflow it was made of, the workflow that came of it, the log-probabilities (nats)
of both factors under which it was drawn, `select_logp` (which workflow was edited) and `edit_logp` (which edit of it), null where
nobody knows them, and every execution. Edits that came to nothing have `rejected` in place of executions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from relgrad.search.proposals import Rejected
from relgrad.search.tree import Node, Tree, Trial

VERSION = 1
KEPT = 12
"""Executions of a node that the tree's page shows in full."""


def trajectory(run: str, tree: Tree, node: Node, proposer: str) -> dict[str, Any]:
    """The line of an edit that was executed."""
    parent = None if node.parent is None else tree.nodes[node.parent]
    return {
        "version": VERSION,
        "run": run,
        "scope": tree.name or "dataset",
        "types": list(tree.types),
        "iteration": node.iteration,
        "node": node.number,
        "parent": node.parent,
        "depth": node.depth,
        "from": None if parent is None else parent.step.text,
        "workflow": node.step.text,
        "hash": node.step.hash,
        "edit": node.words,
        "proposer": proposer,
        "select_logp": node.select_logp,
        "edit_logp": node.edit_logp,
        "prior": node.prior,
        "completion": node.completion,
        "same_as": node.same_as,
        "score": node.mean,
        "accuracy": node.accuracy,
        "cost": node.cost,
        "executions": [_execution(trial) for trial in node.trials.values()],
    }


def rejection(run: str, tree: Tree, node: Node, iteration: int, rejected: Rejected) -> dict[str, Any]:
    """The line of a proposal that came to nothing."""
    return {
        "version": VERSION,
        "run": run,
        "scope": tree.name or "dataset",
        "iteration": iteration,
        "parent": node.number,
        "from": node.step.text,
        "completion": rejected.completion,
        "rejected": rejected.why,
    }


def _execution(trial: Trial) -> dict[str, Any]:
    return {
        "problem": trial.problem,
        "repeat": trial.repeat,
        "answer": trial.outcome.answer,
        "right": trial.outcome.right,
        "failure": trial.outcome.failure,
        "cost": trial.cost,
        "score": trial.value,
        "calls": [[call.operator, call.at, *call.usage] for call in trial.outcome.calls],
    }


def tree_record(tree: Tree, errors: float) -> dict[str, Any]:
    """A whole tree, for its page."""
    front = {node.number for node in tree.front()}
    return {
        "name": tree.name,
        "best": tree.best(errors).number if tree.nodes else None,
        "front": sorted(front),
        "nodes": [_node(node) for node in tree.nodes],
    }


def _node(node: Node) -> dict[str, Any]:
    failures = [trial.outcome.failure for trial in node.trials.values() if trial.outcome.failure]
    return {
        "number": node.number,
        "parent": node.parent,
        "same_as": node.same_as,
        "workflow": node.step.text,
        "hash": node.step.hash,
        "edit": node.words,
        "iteration": node.iteration,
        "prior": node.prior,
        "select_logp": node.select_logp,
        "edit_logp": node.edit_logp,
        "n": node.visits,
        "q": node.q,
        "score": node.mean,
        "error": node.error if math.isfinite(node.error) else None,
        "accuracy": node.accuracy,
        "cost": node.cost,
        "trials": len(node.trials),
        "failures": failures[:KEPT],
        "failed": len(failures),
        "history": [list(point) for point in node.history],
        "executions": [_shown(trial) for trial in _telling(list(node.trials.values()))],
    }


def _telling(trials: Sequence[Trial]) -> list[Trial]:
    """Some executions, those that were not right first."""
    return sorted(trials, key=lambda trial: trial.outcome.right == 1)[:KEPT]


def _shown(trial: Trial) -> Mapping[str, Any]:
    calls = [{"operator": c.operator, "prompt": c.prompt, "text": c.text, "at": c.at} for c in trial.outcome.calls]
    outcome = trial.outcome
    return {
        "problem": trial.problem,
        "answer": outcome.answer,
        "right": outcome.right,
        "why": outcome.failure,
        "calls": calls,
    }
