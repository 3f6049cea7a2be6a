"""Workflows and what is known of them. A node is one workflow, however many ways lead to it, under the one where it was found.

N  evaluated workflows in the node's subtree, itself included
Q  the mean, or the best, of their mean scores
P  how likely the edit that led to it was, under whoever proposed it
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from relgrad.environments.workflows.execute import Outcome
from relgrad.environments.workflows.language import Step

DOUBT = 0.5


class Trial(NamedTuple):
    """One execution: on which problem, for which time, what came of it, what it cost and what that is worth (NaN: unscored)."""

    problem: str
    repeat: int
    outcome: Outcome
    cost: float
    value: float


@dataclass
class Node:
    """One workflow.

    select_logp, edit_logp  nats: of choosing the parent, and of this edit of it, when it was made; None where nobody knows
    prior                   P, between 0 and 1
    trials                  by their number: the same number is the same problem and seed for all workflows
    values                  the scores of trials that have one, with their mean and its standard error; likewise cost and accuracy.
                            For the error one more value, DOUBT away, is thought of, so that few equal ones do not seem certain
    same_as                 another node that answered and asked the same in all their trials
    history                 (iteration, N, Q) after every change
    exhausted               no edit of it is left
    """

    number: int
    parent: int | None
    step: Step
    words: str
    iteration: int
    prior: float = 1.0
    select_logp: float | None = None
    edit_logp: float | None = None
    depth: int = 0
    completion: str = ""
    children: list[int] = field(default_factory=list)
    trials: dict[int, Trial] = field(default_factory=dict)
    same_as: int | None = None
    exhausted: bool = False
    values: list[float] = field(default_factory=list)
    mean: float = math.nan
    error: float = math.inf
    cost: float = math.nan
    accuracy: float = math.nan
    visits: int = 0
    q: float = math.nan
    history: list[tuple[int, int, float]] = field(default_factory=list)

    def keep(self, number: int, trial: Trial) -> None:
        """Count a trial in."""
        self.trials[number] = trial
        if math.isnan(trial.value):
            return
        self.values.append(trial.value)
        count, mean = len(self.values), math.fsum(self.values) / len(self.values)
        squares = math.fsum((value - mean) ** 2 for value in self.values) + DOUBT**2
        self.mean, self.error = mean, math.sqrt(squares) / count
        self.cost = _mean_with(self.cost, trial.cost, count)
        self.accuracy = _mean_with(self.accuracy, trial.outcome.right, count)

    def behaviour(self, number: int) -> tuple[str, float, tuple[str, ...]]:
        """Of a trial: the answer, what it cost, and the texts of all replies."""
        trial = self.trials[number]
        return trial.outcome.answer, trial.cost, tuple(sorted(call.text for call in trial.outcome.calls))


class Tree:
    """All nodes, in the order in which they were found.

    name   the problem's id, or "" for a tree of all problems
    types  of the problems
    """

    def __init__(self, name: str, backup: Literal["mean", "max"], types: tuple[str, ...] = ()) -> None:
        self.name, self.backup, self.types = name, backup, types
        self.nodes: list[Node] = []
        self._by_hash: dict[str, int] = {}
        self._by_behaviour: dict[tuple[object, ...], int] = {}

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def has(self, step: Step) -> bool:
        return step.hash in self._by_hash

    def number_of(self, step: Step) -> int:
        """The number of the workflow's node. Raises KeyError where there is none."""
        return self._by_hash[step.hash]

    def add(self, node: Node) -> Node:
        """A new node, under its parent."""
        self.nodes.append(node)
        self._by_hash[node.step.hash] = node.number
        if node.parent is not None:
            self.nodes[node.parent].children.append(node.number)
            node.depth = self.nodes[node.parent].depth + 1
        return node

    def scored(self) -> Iterator[Node]:
        """Nodes with a mean score, each workflow once."""
        return (node for node in self.nodes if node.values and node.same_as is None)

    def best(self, errors: float) -> Node:
        """The node with the highest mean less so many standard errors; the root where none is scored."""
        return max(self.scored(), key=lambda node: (node.mean - errors * node.error, -node.number), default=self.root)

    def front(self) -> list[Node]:
        """The Pareto front: nodes that no other beats in both accuracy and cost, cheap ones first."""
        front: list[Node] = []
        for node in sorted(self.scored(), key=lambda node: (node.cost, -node.accuracy, node.number)):
            if not front or node.accuracy > front[-1].accuracy:
                front.append(node)
        return front

    def find_same(self, node: Node, least: int) -> Node | None:
        """An earlier node with the same answers, costs and replies in all trials of both, at least so many; None without one."""
        if not all(number in node.trials for number in range(least)):
            return None
        first = self._by_behaviour.setdefault(tuple(map(node.behaviour, range(least))), node.number)
        other = self.nodes[first]
        shared = node.trials.keys() & other.trials.keys()
        same = other is not node and all(node.behaviour(number) == other.behaviour(number) for number in shared)
        return other if same else None

    def back_up(self, iteration: int) -> None:
        """Bring N and Q of all nodes up to date, from the leaves to the root."""
        parts: dict[int, list[float]] = {node.number: [] for node in self.nodes}
        for node in reversed(self.nodes):
            own = parts[node.number]
            if node.values and node.same_as is None:
                own.append(node.mean)
            before = (node.visits, node.q)
            node.visits = len(own)
            node.q = math.nan if not own else max(own) if self.backup == "max" else math.fsum(own) / len(own)
            if own and before != (node.visits, node.q):
                node.history.append((iteration, node.visits, node.q))
            if node.parent is not None:
                parts[node.parent] += own


def _mean_with(mean: float, value: float, count: int) -> float:
    """The mean of `count` values, of which the last is `value` and the others have the mean given."""
    return value if count == 1 else mean + (value - mean) / count
