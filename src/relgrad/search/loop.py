"""The search: choose a workflow, edit it, execute the result until its interval is clear, and back up what it is worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relgrad.core.randomness import derived
from relgrad.environments.workflows.language import Step
from relgrad.search import records
from relgrad.search.budget import BudgetSpent
from relgrad.search.proposals import Proposer
from relgrad.search.selection import choose
from relgrad.search.settings import Search
from relgrad.search.tree import Node, Tree
from relgrad.search.trials import Trials

Write = Callable[[Mapping[str, Any]], None]
"""Takes the lines of trajectories.jsonl."""


@dataclass
class Grower:
    """Grows one tree.

    run, proposed_by  names of the run and the proposer, for trajectories
    after             called after every iteration
    """

    settings: Search
    tree: Tree
    trials: Trials
    proposer: Proposer
    seed: int
    run: str
    proposed_by: str
    write: Write
    after: Callable[[Tree], None]
    iteration: int = 0
    worse_in_a_row: int = 0

    async def grow(self, starts: Sequence[Step]) -> str:
        """Grow until something ends it; why it ended. Raises CallFailed where no call can succeed, and the proposer's NoReply."""
        try:
            for step in dict.fromkeys(starts):
                if not self.tree.has(step):
                    await self._start(step)
            while (reason := self._reason()) is None:
                if not await self._iterate():
                    return "every edit of every workflow was tried"
            return reason
        except BudgetSpent as spent:
            return str(spent)
        finally:
            self.tree.back_up(self.iteration)
            self.after(self.tree)

    def _reason(self) -> str | None:
        """Why no further workflow is tried; None where one is."""
        if len(self.tree.nodes) >= self.settings.iterations:
            return f"iterations, {self.settings.iterations}"
        if self.settings.patience is not None and self.worse_in_a_row >= self.settings.patience:
            return f"patience: {self.worse_in_a_row} workflows in a row were clearly worse than the best"
        return None

    async def _start(self, step: Step) -> None:
        parent = self.tree.root.number if self.tree.nodes else None
        await self._evaluate(Node(len(self.tree.nodes), parent, step, "given", self.iteration))

    async def _iterate(self) -> bool:
        """Try one edit; False where there is nothing left to edit."""
        self.iteration += 1
        seed = derived(self.seed, "iteration", self.iteration)
        choice = choose(self.tree, self.settings.selection, random.Random(derived(seed, "select")))
        if choice is None:
            return False
        parent = choice.node
        proposal, rejected = await self.proposer.propose(self.tree, parent, seed)
        for one in rejected:
            self.write(records.rejection(self.run, self.tree, parent, self.iteration, one))
        if proposal is None:
            parent.exhausted = True
            return True
        node = Node(
            len(self.tree.nodes), parent.number, proposal.step, proposal.words, self.iteration, prior=proposal.prior,
            select_logp=choice.logp, edit_logp=proposal.logp, completion=proposal.completion,
        )  # fmt: skip
        await self._evaluate(node)
        return True

    async def _evaluate(self, node: Node) -> None:
        """Execute a new workflow and, where the settings say so, the best one once more."""
        errors = self.settings.trials.errors
        best = self.tree.best(errors) if self.tree.nodes else None
        self.tree.add(node)
        try:
            await self.trials.until_clear(node, best if best is not None and best.values else None)
            await self._merge(node)
            if best is not None and node.same_as is None:
                worse = bool(node.values) and node.mean < best.mean and self.trials.clear(node, best)
                self.worse_in_a_row = self.worse_in_a_row + 1 if worse else 0
            await self._confirm()
        finally:
            self.tree.back_up(self.iteration)
            self.write(records.trajectory(self.run, self.tree, node, self.proposed_by))
            self.after(self.tree)

    async def _merge(self, node: Node) -> None:
        """Where the workflow does the same as another in its first trials, and in as many as are ever made: they are one.

        Whoever repeats the same questions is answered by the journal, so that looking closely costs little.
        """
        limits = self.settings.trials
        if (same := self.tree.find_same(node, limits.first)) is None:
            return
        for count in range(limits.first + 1, limits.most + 1):
            for one in (node, same):
                await self.trials.repeat(one, max(0, count - len(one.trials)))
            if self.tree.find_same(node, limits.first) is not same:
                return
        node.same_as, node.exhausted = same.number, True

    async def _confirm(self) -> None:
        """Repeat the workflow with the highest mean, unless it was executed often enough: luck does not last."""
        limits = self.settings.trials
        if not limits.confirm:
            return
        hopeful = max(self.tree.scored(), key=lambda node: (node.mean, -node.number), default=None)
        if hopeful is not None and len(hopeful.trials) < limits.most:
            await self.trials.repeat(hopeful, min(limits.first, limits.most - len(hopeful.trials)))
