"""One generation batch on its way through the GRPO loop: its rows, their credit, and what is logged of them.

Every process holds the same tables, of all rows; the traces of rows that another process wrote are with that process, which
scores them (`local`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import KnowsTruth
from relgrad.core.tables import stack
from relgrad.core.types import Experience, Output, Prompt, RewardTable, Rollouts, Stop
from relgrad.objectives.advantages import Advantages


@dataclass
class Batch:
    """Rows of one or several parts (of several processes, of groups that were written again, of the past), numbered through.

    keep_B             False for rows of groups that were replaced, and of the past that was not taken
    behaviour_logp_BT  what ratios are taken against: recorded when drawn, or this policy's own where another proposal drew
    mask_BT            trainable decisions, after truncated or failed rows were dropped
    policy_version     of the policy whose log-probs `behaviour_logp_BT` are
    advantage_BT       where credit was given per decision; `advantage_B` is then its mean over the row's decisions
    used               optimizer steps already taken on the batch
    """

    parts: list[Experience]
    keep_B: Tensor
    group_B: Tensor
    behaviour_logp_BT: Tensor
    mask_BT: Tensor
    policy_version: int
    advantage_B: Tensor
    reward_B: Tensor
    advantage_BT: Tensor | None = None
    reference_logp_BT: Tensor | None = None
    correction_BT: Tensor | None = None
    used: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    _table: RewardTable | None = field(default=None, init=False, repr=False)
    _policy: object = field(default=None, init=False, repr=False)

    @staticmethod
    def of(parts: list[Experience], keep_B: Tensor, *, mask_truncated: bool, policy_version: int) -> Batch:
        """The parts one below the other, padded to one width; no credit yet. Rows that failed are never trained on."""
        dropped = {"error", "length"} if mask_truncated else {"error"}
        usable_B = torch.tensor([stop not in dropped for part in parts for stop in part.rollouts.stop])
        return Batch(
            parts=parts,
            keep_B=keep_B,
            group_B=torch.cat([part.group_B for part in parts]),
            behaviour_logp_BT=stack([part.rollouts.behaviour_logp_BT for part in parts]),
            mask_BT=stack([part.rollouts.mask_BT for part in parts]) & usable_B[:, None],
            policy_version=policy_version,
            advantage_B=torch.zeros(len(keep_B)),
            reward_B=torch.zeros(len(keep_B)),
        )

    @property
    def prompts(self) -> dict[int, Prompt]:
        """By number of group."""
        return {
            group: part.rollouts.prompts[own]
            for part in reversed(self.parts)
            for group, own in zip(part.group_B.tolist(), part.rollouts.group_B.tolist(), strict=True)
        }

    @property
    def outputs(self) -> list[Output]:
        return [output for part in self.parts for output in part.rollouts.outputs]

    @property
    def stop(self) -> list[Stop]:
        return [stop for part in self.parts for stop in part.rollouts.stop]

    @property
    def fresh_B(self) -> Tensor:
        """bool [B]: kept rows that the policy wrote for this batch. Figures of what the policy writes are of these."""
        return self.keep_B & self._written_B

    @property
    def _written_B(self) -> Tensor:
        return torch.cat([(part.age_B == 0) & (part.source != "search") for part in self.parts])

    @property
    def shaping_B(self) -> Tensor:
        """float32 [B]: gamma of rows that are weighted by shaping; NaN for all others."""
        return torch.cat(
            [
                torch.full((part.rollouts.rows,), math.nan if part.shaping is None else part.shaping)
                for part in self.parts
            ]
        )

    @property
    def length_B(self) -> Tensor:
        """Elementary choices (tokens) per row, trainable or not."""
        return torch.cat([(p.rollouts.size_BT * p.rollouts.mask_BT).sum(-1) for p in self.parts])

    @property
    def drawn_BT(self) -> Tensor:
        """bool [B, T]: all decisions the policy made, also those of rows that were dropped since."""
        return stack([part.rollouts.mask_BT for part in self.parts])

    @property
    def stands_for(self) -> float:
        return self.parts[0].rollouts.stands_for

    def proposal_logp_BT(self) -> Tensor | None:
        """Log-probs under which rows were drawn, where another than the current policy drew any; NaN where it drew itself."""
        if all(part.proposal_logp_BT is None for part in self.parts):
            return None
        return stack(
            [
                torch.full_like(part.rollouts.behaviour_logp_BT, math.nan)
                if part.proposal_logp_BT is None
                else part.proposal_logp_BT
                for part in self.parts
            ]
        )

    def credit(self, rows: Tensor) -> Tensor:
        """Advantages [n, T] of the given rows' decisions; one per row, spread over its decisions, where that is how they are."""
        if self.advantage_BT is not None:
            return self.advantage_BT[rows]
        return self.advantage_B[rows][:, None].expand(-1, self.mask_BT.shape[1])

    def learn_only_what_is_better(self) -> None:
        """Weight 0 for rows weighted by shaping that are no better than their group: they are there to be learnt."""
        if self.correction_BT is not None:
            worse_B = ~self.shaping_B.isnan() & (self.advantage_B <= 0)
            self.correction_BT = self.correction_BT.masked_fill(worse_B[:, None], 0.0)

    def figures(self) -> dict[str, float]:
        """What every step that uses the batch logs of its rewards."""
        return {
            "mean_reward": self.metrics["reward"],
            "std_reward": self.metrics["reward_std"],
            "mean_advantage": float(self.advantage_B[self.keep_B].mean()),
        }

    def minibatches(self, pieces: int, order: torch.Generator) -> list[Tensor]:
        """Kept rows in `pieces` parts of whole groups, groups in random order."""
        groups = self.group_B[self.keep_B].unique()
        if pieces > 1:
            groups = groups[torch.randperm(len(groups), generator=order)]
        return [
            (torch.isin(self.group_B, piece) & self.keep_B).nonzero()[:, 0] for piece in groups.tensor_split(pieces)
        ]

    def local(self, rows: Tensor) -> list[tuple[Rollouts, Tensor, int]]:
        """(rollouts, their own row numbers, number of their first row) for the parts of this process that the rows lie in."""
        pieces, first = [], 0
        for part in self.parts:
            own = rows[(rows >= first) & (rows < first + part.rollouts.rows)] - first
            if len(own) and part.local:
                pieces.append((part.rollouts, own, first))
            first += part.rollouts.rows
        return pieces

    def describe(self, table: RewardTable, credit: Advantages, policy: object) -> None:
        """Take over the credit and fill `metrics` (TRL's names); `samples` then tells the rest."""
        self.advantage_B, self.reward_B, self.advantage_BT = credit.advantage_B, credit.reward_B, credit.advantage_BT
        self._table, self._policy = table, policy
        fresh_B = self.fresh_B
        self.metrics |= reward_metrics(table, credit, self.group_B, fresh_B) | self._length_metrics(fresh_B)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Rows that count or were written for this batch, as samples/*.jsonl has them, beside the truth where the policy knows it.

        Only whoever writes them asks; empty for a batch that a checkpoint brought back.
        """
        table = self._table
        if table is None:
            return []
        prompts, stop, outputs = self.prompts, self.stop, self.outputs
        age_B = torch.cat([part.age_B for part in self.parts])
        source_B = [part.source for part in self.parts for _ in range(part.rollouts.rows)]
        proposal_BT = self.proposal_logp_BT()
        samples = []
        for row in (self.keep_B | self._written_B).nonzero()[:, 0].tolist():
            values = dict(zip(table.names, table.value_BR[row].tolist(), strict=True))
            group = int(self.group_B[row])
            truth = (
                self._policy.beside_truth(prompts[group], outputs[row]) if isinstance(self._policy, KnowsTruth) else {}
            )
            samples.append(
                {
                    "group": group,
                    "prompt": prompts[group].text,
                    "completion": outputs[row].text,
                    "reward": float(self.reward_B[row]),
                    "parts": values | dict(table.parts[row] if table.parts else {}),
                    "advantage": float(self.advantage_B[row]),
                    "stop": stop[row],
                    "why": table.why[row] if table.why else "",
                    "kept": bool(self.keep_B[row]),
                    **({"age": int(age_B[row])} if age_B[row] else {}),
                    **self._proposed(row, source_B[row], proposal_BT),
                    **truth,
                }
            )
        return samples

    def _proposed(self, row: int, source: str, proposal_BT: Tensor | None) -> dict[str, Any]:
        """Of a row that a search chose: that it did, and the log-probabilities (nats) it is weighed by, decision by decision."""
        if source != "search":
            return {}
        told: dict[str, Any] = {"source": source}
        if proposal_BT is not None and not bool(proposal_BT[row].isnan().any()):
            told["proposal_logp"] = [round(value, 4) for value in proposal_BT[row][self.mask_BT[row]].tolist()]
        return told

    def _length_metrics(self, fresh_B: Tensor) -> dict[str, float]:
        length_B = self.length_B[fresh_B].double()
        clipped_B = torch.tensor([stop == "length" for stop in self.stop])[fresh_B]
        decisions_B = torch.cat([p.rollouts.mask_BT.sum(-1) * p.rollouts.stands_for for p in self.parts])[fresh_B]
        metrics = {
            "completions/mean_decisions": float(decisions_B.double().mean()),
            "completions/mean_length": float(length_B.mean()),
            "completions/min_length": float(length_B.min()),
            "completions/max_length": float(length_B.max()),
            "completions/clipped_ratio": float(clipped_B.double().mean()),
            "completions/total_tokens": float(self.written_tokens),
        }
        if not bool(clipped_B.all()):
            metrics["completions/mean_terminated_length"] = float(length_B[~clipped_B].mean())
        return metrics

    @property
    def written_tokens(self) -> int:
        """Tokens written for this batch, those of replaced groups included."""
        return int(self.length_B[self._written_B].sum())


def reward_metrics(table: RewardTable, credit: Advantages, group_B: Tensor, rows_B: Tensor) -> dict[str, float]:
    """Mean, spread and failures of the rewards of `rows_B`; groups without spread, all-best and all-worst told apart.

    A group without spread counts as all-best (all-worst) when it sits at the batch's highest (lowest) total reward.
    """
    reward_B = credit.reward_B[rows_B]
    scored_B = reward_B[~reward_B.isnan()]
    kept_G = group_B[rows_B].unique()
    flat_G = credit.flat_G[kept_G]
    level_G = torch.stack([reward_B[group_B[rows_B] == g].nanmean() for g in kept_G])
    high, low = (scored_B.max(), scored_B.min()) if len(scored_B) else (torch.nan, torch.nan)
    at_high, at_low = flat_G & (level_G >= high), flat_G & (level_G <= low)
    if len(scored_B) and bool(high == low):
        at_high, at_low = at_high & (level_G > 0), at_low & (level_G <= 0)
    metrics = {
        "reward": _mean(scored_B),
        "reward_std": float(scored_B.std()) if len(scored_B) > 1 else 0.0,
        "frac_reward_zero_std": float(flat_G.double().mean()),
        "frac_groups_all_max": float(at_high.double().mean()),
        "frac_groups_all_min": float(at_low.double().mean()),
        "rewards/unscored": float(reward_B.isnan().double().mean()),
    }
    for column, name in enumerate(table.names):
        value_B = table.value_BR[rows_B, column]
        value_B = value_B[~value_B.isnan()]
        metrics[f"rewards/{name}/mean"] = _mean(value_B)
        metrics[f"rewards/{name}/std"] = float(value_B.std()) if len(value_B) > 1 else 0.0
    return metrics


def mismatch_metrics(own_BT: Tensor, proposal_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """TRL's sampling/*: how far the log-probs of another proposal are from the policy's own. Nothing where no decision is left."""
    gap = (own_BT - proposal_BT)[mask_BT]
    if not len(gap):
        return {}
    ratio = gap.exp()
    return {
        "sampling/sampling_logp_difference/mean": float(gap.abs().mean()),
        "sampling/sampling_logp_difference/max": float(gap.abs().max()),
        "sampling/importance_sampling_ratio/min": float(ratio.min()),
        "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
        "sampling/importance_sampling_ratio/max": float(ratio.max()),
    }


def _mean(value_B: Tensor) -> float:
    return float(value_B.mean()) if len(value_B) else math.nan
