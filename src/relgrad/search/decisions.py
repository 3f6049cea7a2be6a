r"""Tree search over decisions, guided by a policy: PUCT (Silver et al. 2017, arXiv:1712.01815) on problems whose states are known.

    a = argmax_a  Q(s, a) + exploration * P(s, a) * sqrt(1 + N(s)) / (1 + n(s, a))

P is the policy's probability of the decision, or uniform; at the root it is mixed with noise, P = (1 - noise) P + noise d with d
drawn from a Dirichlet law, so that a prior that is sharp and wrong leaves a way out. One *evaluation* executes one decision at a
state: that is what budgets count. Q is the share of evaluations below that solved the problem. A state that was seen before is
not searched again, and what was searched to its end is closed.

A search proposes decisions by two factors, and both are recorded: how often the tree chose the decision at its state (the share of
visits), and the prior of the decision, noise included. Neither is the probability with which a row was proposed: PUCT draws
nothing, and a row is taken because it solved the problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from relgrad.core.protocols import DecisionProblem, Place
from relgrad.core.settings import Strict


class TreeSettings(Strict):
    """How a tree of decisions is searched."""

    prior: Literal["policy", "uniform"] = "policy"
    exploration: float = Field(1.5, gt=0, description="weight of the prior in PUCT")
    temperature: float = Field(
        1.8, gt=0, description="the prior is p^(1 / temperature), normalised: above 1 it is flatter"
    )
    noise: float = Field(0.25, ge=0, le=1, description="share of the root's prior that is Dirichlet noise")
    dirichlet: float = Field(0.5, gt=0, description="concentration of the noise; large: uniform")


@dataclass(frozen=True)
class Found:
    """Decisions that a search evaluated, from the start on.

    evaluations          how many the search had made, this one included
    select_logp          nats per decision: the share of visits to its state that took it, when the search ended
    prior_logp           nats per decision: the prior that the tree was searched with
    solved               whether the problem's visible part was solved
    """

    decisions: tuple[int, ...]
    evaluations: int
    select_logp: tuple[float, ...]
    prior_logp: tuple[float, ...]
    solved: bool


class _Node:
    """A state in the tree. `prior`, `visits`, `wins`, `children` and `open` have an entry an action."""

    __slots__ = ("actions", "children", "depth", "open", "parent", "prior", "state", "visits", "wins")

    def __init__(self, state: Any, depth: int, actions: int, parent: tuple[_Node, int] | None) -> None:
        self.state, self.depth, self.actions, self.parent = state, depth, actions, parent
        self.prior: list[float] = []
        self.visits, self.wins = [0] * actions, [0] * actions
        self.children: list[_Node | None] = [None] * actions
        self.open = list(range(actions))


@dataclass
class DecisionTree:
    """The search of one problem, an evaluation at a time, by `grow`.

    most      evaluations at the most
    solutions  how many are looked for before the search ends
    """

    problem: DecisionProblem
    settings: TreeSettings
    most: int
    noise: np.random.Generator
    solutions: int = 1
    evaluations: int = 0
    leaves: list[tuple[_Node, int, int, bool]] = field(default_factory=list)
    """(state before, action, evaluations by then, solved) of every evaluation."""

    def __post_init__(self) -> None:
        self.root = _Node(self.problem.start, 0, self.problem.actions, None)
        self._seen: dict[Any, int] = {self.problem.start: 0}
        self._solved = 0

    @property
    def ended(self) -> bool:
        return self.evaluations >= self.most or self._solved >= self.solutions or not self.root.open

    def expand(self, node: _Node, prior_A: Sequence[float]) -> None:
        """Give a state its prior, at its temperature; the root's is mixed with noise."""
        if self.settings.temperature != 1:
            powers = [p ** (1 / self.settings.temperature) for p in prior_A]
            prior_A = [power / sum(powers) for power in powers]
        if node is self.root and self.settings.noise:
            drawn = self.noise.dirichlet([self.settings.dirichlet] * node.actions)
            share = self.settings.noise
            prior_A = [(1 - share) * p + share * d for p, d in zip(prior_A, drawn.tolist(), strict=True)]
        node.prior = list(prior_A)

    def evaluate(self) -> _Node | None:
        """One evaluation; or, without one, the state on the way to it that has to be given its prior first."""
        node = self.root
        while node.prior:
            action = self._choose(node)
            child = node.children[action]
            if child is None:
                self._execute(node, action)
                return None
            node = child
        return node

    def _choose(self, node: _Node) -> int:
        scale = self.settings.exploration * math.sqrt(1 + sum(node.visits))
        best, chosen = -math.inf, -1
        for action in node.open:
            visits = node.visits[action]
            score = scale * node.prior[action] / (1 + visits)
            if visits:
                score += node.wins[action] / visits
            if score > best:
                best, chosen = score, action
        return chosen

    def _execute(self, node: _Node, action: int) -> None:
        self.evaluations += 1
        state, depth = self.problem.apply(node.state, action), node.depth + 1
        solved = self.problem.solved(state)
        self._solved += solved
        self.leaves.append((node, action, self.evaluations, solved))
        self._count(node, action, solved)
        last = depth == self.problem.most_steps
        if solved or last or self._seen.get(state, self.problem.most_steps) <= depth:
            self._close(node, action)
        else:
            self._seen[state] = depth
            node.children[action] = _Node(state, depth, self.problem.actions, (node, action))

    def _count(self, node: _Node, action: int, solved: bool) -> None:
        way: tuple[_Node, int] | None = (node, action)
        while way is not None:
            way[0].visits[way[1]] += 1
            way[0].wins[way[1]] += solved
            way = way[0].parent

    def _close(self, node: _Node, action: int) -> None:
        """Nothing is left to be searched behind this decision, nor behind those that lead to nothing else."""
        node.open.remove(action)
        while not node.open and node.parent is not None:
            node, action = node.parent
            node.open.remove(action)

    def found(self, leaf: tuple[_Node, int, int, bool]) -> Found:
        """What an evaluation was of."""
        node, action, evaluations, solved = leaf
        way: list[tuple[_Node, int]] = [(node, action)]
        while way[-1][0].parent is not None:
            parent = way[-1][0].parent
            assert parent is not None
            way.append(parent)
        way.reverse()
        return Found(
            decisions=tuple(a for _, a in way),
            evaluations=evaluations,
            select_logp=tuple(math.log(n.visits[a] / sum(n.visits)) for n, a in way),
            prior_logp=tuple(math.log(max(n.prior[a], 1e-30)) for n, a in way),
            solved=solved,
        )

    @property
    def solved(self) -> list[Found]:
        """All that solved the problem, in the order in which they were found."""
        return [self.found(leaf) for leaf in self.leaves if leaf[3]]


def finish(
    rows: Sequence[tuple[DecisionProblem, Found]],
    priors: Callable[[Sequence[Place]], Tensor],
    uniform: Sequence[Sequence[float]],
) -> list[Found]:
    """The rows, continued by decisions drawn from `priors` until each ends as a policy's row does: solved, or at its last step.

    `uniform` has a number in [0, 1) for every step of every row. Of drawn decisions both log-probabilities are the policy's own.
    """
    finished = [row for _, row in rows]
    states = []
    for problem, row in rows:
        state = problem.start
        for action in row.decisions:
            state = problem.apply(state, action)
        states.append(state)
    while True:
        places = [
            place
            for place, (problem, _) in enumerate(rows)
            if not problem.solved(states[place]) and len(finished[place].decisions) < problem.most_steps
        ]
        if not places:
            return finished
        prior_NA = priors([(rows[place][0], states[place], len(finished[place].decisions)) for place in places])
        for place, prior_A in zip(places, prior_NA.double(), strict=True):
            problem, row = rows[place][0], finished[place]
            ends_A = prior_A.cumsum(0)
            action = int((ends_A <= uniform[place][len(row.decisions)] * ends_A[-1]).sum())
            states[place] = problem.apply(states[place], action)
            logp = math.log(float(prior_A[action]))
            finished[place] = replace(
                row,
                decisions=(*row.decisions, action),
                select_logp=(*row.select_logp, logp),
                prior_logp=(*row.prior_logp, logp),
                solved=problem.solved(states[place]),
            )


def grow(
    trees: Sequence[DecisionTree],
    priors: Callable[[Sequence[Place]], Tensor],
    after: Callable[[int], None] = lambda ended: None,
) -> None:
    """Search all trees to their ends, side by side, so that the policy is asked for many priors at once.

    What one tree does depends on no other. `after` is told how many have ended.
    """
    active = [tree for tree in trees if not tree.ended]
    while active:
        waiting = [(tree, node) for tree in active if (node := tree.evaluate()) is not None]
        _expand(waiting, priors)
        left = [tree for tree in active if not tree.ended]
        if len(left) < len(active):
            after(len(trees) - len(left))
        active = left


def _expand(waiting: Sequence[tuple[DecisionTree, _Node]], priors: Callable[[Sequence[Place]], Tensor]) -> None:
    asked = [(tree.problem, node.state, node.depth) for tree, node in waiting if tree.settings.prior == "policy"]
    told = iter(priors(asked).tolist() if asked else ())
    for tree, node in waiting:
        tree.expand(node, [1 / node.actions] * node.actions if tree.settings.prior == "uniform" else next(told))
