"""Search: where the policy's own samples all fail, a tree search looks for a solution; a source of experience on top of another.

For a group that is rewarded for nothing, and that the past (replay.py) has no solution for, the policy's prior guides a search
over decisions (search/decisions.py) within a budget of evaluations. What it finds and the rewards confirm joins the group as one
more row; then there is something to compare, and it is kept as replay keeps solutions. The next batch is searched with the prior
that learnt from it.

The row was not drawn from the policy, and its probability is not known: PUCT draws nothing, and the row is there because it solved
the task. So no weight makes it unbiased. Three ways to weigh it, `search.weights`:

    shaping      the slope of p / (p + gamma), p the policy's own probability (LUFFY, Yan et al. 2025, arXiv:2504.14945); 0 where
                 the row is no better than its group, since rows of others are there to be learnt and not to be avoided
    importance   min(pi / s, importance_sampling_cap), s the share of the tree's visits at the state that took the decision: a
                 heuristic that has the form of importance sampling and is none
    none         as if the policy had drawn it itself: biased, and here to be compared with. Only so are `search.failures` possible:
                 what else the search tried, drawn at random and finished by the policy, since the law of its rows ends none before
                 the task is solved or the steps are used up
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import GuidesSearch, Policy
from relgrad.core.randomness import derived, generator
from relgrad.core.ranks import Ranks
from relgrad.core.tables import merge_tables, stack
from relgrad.core.types import Experience, Prompt
from relgrad.search.decisions import DecisionTree, Found, finish, grow
from relgrad.training.credit import give_credit
from relgrad.training.experience import Collected, Fresh, Source, elsewhere
from relgrad.training.replay import Replay
from relgrad.training.settings import GrpoSettings, SearchSettings


@dataclasses.dataclass
class Figures:
    """Of one batch: groups that were searched, evaluations made, groups whose search found a solution that rewards confirm, and
    decisions with which the policy finished failures."""

    groups: int = 0
    evaluations: int = 0
    solved: int = 0
    finished: int = 0


class Searched:
    """Implements experience.Source. `source` is what it builds on: `fresh` itself, or the past on top of it."""

    def __init__(self, source: Source, fresh: Fresh, policy: Policy, settings: GrpoSettings, seed: int) -> None:
        assert settings.search is not None
        self.search: SearchSettings = settings.search
        self.source, self.fresh, self.settings, self.seed = source, fresh, settings, seed
        if not isinstance(policy, GuidesSearch):
            raise RelgradError(
                f"grpo.search needs a policy that a tree search can walk with, and {type(policy).__name__} is none: use "
                "policy.kind=workflow, or leave grpo.search out"
            )
        self.policy: GuidesSearch = policy

    def draw(self, number: int, prompts: int) -> Collected:
        """Generation batch `number`, and what searches found for its groups."""
        collected = self.source.draw(number, prompts)
        started = time.perf_counter()
        due = self._due(collected)
        parts = self._search(due, number)
        for part, keep_B in parts:
            collected.parts.append(part)
            collected.keep_B = torch.cat([collected.keep_B, keep_B])
        if isinstance(self.source, Replay) and parts:
            self.source.remember(collected, number)
        figures = self._figures
        collected.metrics |= {
            "search/groups": float(figures.groups),
            "search/evaluations": float(figures.evaluations),
            "search/solved": float(figures.solved),
            "search/finished": float(figures.finished),
            "time/search": time.perf_counter() - started,
        }
        return collected

    # ------------------------------------------------------------------ which groups

    def _due(self, collected: Collected) -> list[tuple[int, Prompt]]:
        """Groups to search, with their prompts: those whose rows are all equally bad, rewarded for nothing; or all."""
        group_B = torch.cat([part.group_B for part in collected.parts])
        mask_BT = stack([part.rollouts.mask_BT for part in collected.parts])
        table = merge_tables([part.rewards for part in collected.parts], mask_BT.shape[1]).only(collected.keep_B)
        reward_B = give_credit(self.settings, table, group_B, mask_BT).reward_B
        due = []
        for group, prompt in self._prompts(collected).items():
            rows_B = (group_B == group) & collected.keep_B
            reward_K = reward_B[rows_B]
            reward_K = reward_K[~reward_K.isnan()]
            failed = len(reward_K) > 0 and bool(reward_K.max() == reward_K.min()) and float(reward_K.max()) <= 0
            if bool(rows_B.any()) and (failed or self.search.when == "always"):
                due.append((group, prompt))
        return due

    def _prompts(self, collected: Collected) -> dict[int, Prompt]:
        return {
            group: part.rollouts.prompts[own]
            for part in collected.parts
            for group, own in zip(part.group_B.tolist(), part.rollouts.group_B.tolist(), strict=True)
        }

    # ------------------------------------------------------------------ the searches

    def _search(self, due: Sequence[tuple[int, Prompt]], number: int) -> list[tuple[Experience, Tensor]]:
        """Every process searches for its share of the groups; parts as all processes hold them, and which rows count."""
        ranks: Ranks = self.fresh.ranks
        own: list[Experience] = []
        share = ranks.share(len(due))
        evaluations = finished = 0

        def search() -> Experience | None:
            nonlocal evaluations, finished
            mine = due[share.start : share.stop]
            trees = [self._tree(prompt, number, group) for group, prompt in mine]
            grow(trees, self.policy.priors)
            evaluations = sum(tree.evaluations for tree in trees)
            failures, finished = self._failures(trees, [group for group, _ in mine], number)
            part = self._part(mine, [tree.solved + more for tree, more in zip(trees, failures, strict=True)])
            if part is not None:
                own.append(part)
            return None if part is None else elsewhere(part, part.rollouts.prompts)

        parts = []
        solved = 0
        for rank, part in enumerate(ranks.collect(search)):
            if part is not None:
                right_B = self._right(part)
                solved += len(part.group_B[right_B].unique())
                keep_B = right_B if not self.search.failures else torch.ones_like(right_B)
                parts.append((own[0] if rank == ranks.rank else part, keep_B))
        made, drawn = (sum(int(each[0]) for each in ranks.numbers(float(own))) for own in (evaluations, finished))
        self._figures = Figures(len(due), made, solved, drawn)
        return parts

    def _tree(self, prompt: Prompt, number: int, group: int) -> DecisionTree:
        noise = np.random.default_rng(derived(self.seed, "search", number, group))
        return DecisionTree(
            self.policy.problem(prompt), self.search, self.search.evaluations, noise, solutions=self.search.solutions
        )

    def _failures(
        self, trees: Sequence[DecisionTree], groups: Sequence[int], number: int
    ) -> tuple[list[list[Found]], int]:
        """As many failures of every tree as are asked for, drawn at random, finished by the policy; and by how many decisions."""
        failures: list[list[Found]] = []
        finished = 0
        for tree, group in zip(trees, groups, strict=True):
            draw = generator(self.seed, "failures", number, group)
            failed = [leaf for leaf in tree.leaves if not leaf[3]]
            order = torch.randperm(len(failed), generator=draw)[: self.search.failures].tolist()
            uniform = torch.rand(len(order), tree.problem.most_steps, generator=draw, dtype=torch.float64).tolist()
            begun = [tree.found(failed[place]) for place in order]
            failures.append(finish([(tree.problem, row) for row in begun], self.policy.priors, uniform))
            finished += sum(len(row.decisions) for row in failures[-1]) - sum(len(row.decisions) for row in begun)
        return failures, finished

    def _part(self, due: Sequence[tuple[int, Prompt]], found: Sequence[Sequence[Found]]) -> Experience | None:
        """Rows of what was found, rewarded; None where nothing was."""
        rows = [(local, one) for local, ones in enumerate(found) for one in ones]
        if not rows:
            return None
        local_B = torch.tensor([local for local, _ in rows])
        rollouts = self.policy.rollouts_of([prompt for _, prompt in due], local_B, [one.decisions for _, one in rows])
        table = self.fresh.rewards(rollouts)
        figures = [
            {
                "search/evaluations": float(one.evaluations),
                "search/select_logp": math.fsum(one.select_logp),
                "search/prior_logp": math.fsum(one.prior_logp),
            }
            for _, one in rows
        ]
        own = table.parts or ({},) * len(rows)
        table = dataclasses.replace(table, parts=tuple({**a, **b} for a, b in zip(own, figures, strict=True)))
        proposal_BT = torch.zeros_like(rollouts.behaviour_logp_BT)
        for row, (_, one) in enumerate(rows):
            proposal_BT[row, : len(one.decisions)] = torch.tensor(one.select_logp)
        foreign = self.search.weights != "none"
        return Experience(
            rollouts=rollouts,
            rewards=table,
            group_B=torch.tensor([due[local][0] for local, _ in rows]),
            source="search",
            age_B=torch.zeros(len(rows), dtype=torch.int64),
            proposal_logp_BT=proposal_BT if foreign else None,
            shaping=self.search.gamma if self.search.weights == "shaping" else None,
        )

    def _right(self, part: Experience) -> Tensor:
        """bool [B]: rows that are rewarded."""
        return (
            give_credit(self.settings, part.rewards, part.group_B, part.rollouts.mask_BT).reward_B.nan_to_num(-1.0) > 0
        )

    # ------------------------------------------------------------------ see experience.Source

    def undo(self) -> None:
        self.source.undo()

    def save(self, folder: Path) -> None:
        """What the source below keeps: searches depend on the weights, the seed and the batch's number alone."""
        self.source.save(folder)

    def load(self, folder: Path) -> None:
        self.source.load(folder)
