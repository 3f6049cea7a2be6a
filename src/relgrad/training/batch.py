"""One generation batch on its way through the GRPO loop: its rows, their credit, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relgrad.core.types import Output, Prompt, RewardTable, Rollouts, Stop
from relgrad.objectives.advantages import Advantages


@dataclass
class Batch:
    """Rows of one or several Rollouts (several where groups without spread were replaced), numbered through.

    keep_B             False for rows of groups that were replaced
    behaviour_logp_BT  what ratios are taken against: recorded when drawn, or this policy's own where another engine drew
    mask_BT            trainable decisions, after truncated or failed rows were dropped
    advantage_BT       where credit was given per decision; `advantage_B` is then its mean over the row's decisions
    used               optimizer steps already taken on the batch
    """

    parts: list[Rollouts]
    keep_B: Tensor
    group_B: Tensor
    behaviour_logp_BT: Tensor
    mask_BT: Tensor
    advantage_B: Tensor
    reward_B: Tensor
    advantage_BT: Tensor | None = None
    reference_logp_BT: Tensor | None = None
    correction_BT: Tensor | None = None
    used: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(parts: list[Rollouts], keep_B: Tensor, *, mask_truncated: bool) -> Batch:
        """The parts one below the other, padded to one width; no credit yet. Rows that failed are never trained on."""
        group_B, first = [], 0
        for part in parts:
            group_B.append(part.group_B + first)
            first += len(part.prompts)
        dropped = {"error", "length"} if mask_truncated else {"error"}
        usable_B = torch.tensor([stop not in dropped for part in parts for stop in part.stop])
        return Batch(
            parts=parts,
            keep_B=keep_B,
            group_B=torch.cat(group_B),
            behaviour_logp_BT=_stack([p.behaviour_logp_BT for p in parts]),
            mask_BT=_stack([p.mask_BT for p in parts]) & usable_B[:, None],
            advantage_B=torch.zeros(len(keep_B)),
            reward_B=torch.zeros(len(keep_B)),
        )

    @property
    def prompts(self) -> list[Prompt]:
        """One per group."""
        return [prompt for part in self.parts for prompt in part.prompts]

    @property
    def outputs(self) -> list[Output]:
        return [output for part in self.parts for output in part.outputs]

    @property
    def stop(self) -> list[Stop]:
        return [stop for part in self.parts for stop in part.stop]

    @property
    def length_B(self) -> Tensor:
        """Elementary choices (tokens) per row, trainable or not."""
        return torch.cat([(p.size_BT * p.mask_BT).sum(-1) for p in self.parts])

    @property
    def drawn_BT(self) -> Tensor:
        """bool [B, T]: all decisions the policy made, also those of rows that were dropped since."""
        return _stack([part.mask_BT for part in self.parts])

    def credit(self, rows: Tensor) -> Tensor:
        """Advantages [n, T] of the given rows' decisions; one per row, spread over its decisions, where that is how they are."""
        if self.advantage_BT is not None:
            return self.advantage_BT[rows]
        return self.advantage_B[rows][:, None].expand(-1, self.mask_BT.shape[1])

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
        """(part, its own row numbers, number of its first row) for the parts that the given rows lie in."""
        found, first = [], 0
        for part in self.parts:
            own = rows[(rows >= first) & (rows < first + part.rows)] - first
            if len(own):
                found.append((part, own, first))
            first += part.rows
        return found

    def describe(self, table: RewardTable, credit: Advantages) -> None:
        """Take over the credit; fill `metrics` (TRL's names) and `samples`."""
        self.advantage_B, self.reward_B, self.advantage_BT = credit.advantage_B, credit.reward_B, credit.advantage_BT
        self.metrics |= reward_metrics(table, credit, self.group_B, self.keep_B) | self._length_metrics()
        prompts, stop = self.prompts, self.stop
        for row, output in enumerate(self.outputs):
            values = dict(zip(table.names, table.value_BR[row].tolist(), strict=True))
            group = int(self.group_B[row])
            self.samples.append(
                {
                    "group": group,
                    "prompt": prompts[group].text,
                    "completion": output.text,
                    "reward": float(self.reward_B[row]),
                    "parts": values | dict(table.parts[row] if table.parts else {}),
                    "advantage": float(self.advantage_B[row]),
                    "stop": stop[row],
                    "why": table.why[row] if table.why else "",
                    "kept": bool(self.keep_B[row]),
                }
            )

    def _length_metrics(self) -> dict[str, float]:
        length_B = self.length_B[self.keep_B].double()
        clipped_B = torch.tensor([stop == "length" for stop in self.stop])[self.keep_B]
        metrics = {
            "completions/mean_length": float(length_B.mean()),
            "completions/min_length": float(length_B.min()),
            "completions/max_length": float(length_B.max()),
            "completions/clipped_ratio": float(clipped_B.double().mean()),
            "completions/total_tokens": float(self.length_B.sum()),
        }
        if not bool(clipped_B.all()):
            metrics["completions/mean_terminated_length"] = float(length_B[~clipped_B].mean())
        return metrics


def reward_metrics(table: RewardTable, credit: Advantages, group_B: Tensor, keep_B: Tensor) -> dict[str, float]:
    """Mean, spread and failures of the rewards; groups without spread, all-best and all-worst told apart.

    A group without spread counts as all-best (all-worst) when it sits at the batch's highest (lowest) total reward.
    """
    reward_B = credit.reward_B[keep_B]
    scored_B = reward_B[~reward_B.isnan()]
    kept_G = group_B[keep_B].unique()
    flat_G = credit.flat_G[kept_G]
    level_G = torch.stack([reward_B[group_B[keep_B] == g].nanmean() for g in kept_G])
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
        value_B = table.value_BR[keep_B, column]
        value_B = value_B[~value_B.isnan()]
        metrics[f"rewards/{name}/mean"] = _mean(value_B)
        metrics[f"rewards/{name}/std"] = float(value_B.std()) if len(value_B) > 1 else 0.0
    return metrics


def mismatch_metrics(own_BT: Tensor, engine_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """TRL's sampling/*: how far another engine's log-probs are from the policy's own."""
    gap = (own_BT - engine_BT)[mask_BT]
    ratio = gap.exp()
    return {
        "sampling/sampling_logp_difference/mean": float(gap.abs().mean()),
        "sampling/sampling_logp_difference/max": float(gap.abs().max()),
        "sampling/importance_sampling_ratio/min": float(ratio.min()),
        "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
        "sampling/importance_sampling_ratio/max": float(ratio.max()),
    }


def merge_tables(tables: Sequence[RewardTable], decisions: int) -> RewardTable:
    """The tables of several parts one below the other; scores per decision padded with NaN to so many decisions."""
    return RewardTable(
        tables[0].names,
        tables[0].weights_R,
        torch.cat([t.value_BR for t in tables]),
        tuple(p for t in tables for p in t.parts),
        tuple(w for t in tables for w in t.why),
        _merge_decisions(tables, decisions),
    )


def _merge_decisions(tables: Sequence[RewardTable], decisions: int) -> Tensor | None:
    if all(table.decision_BRT is None for table in tables):
        return None
    merged = []
    for table in tables:
        whole_BRT = table.value_BR.new_full((*table.value_BR.shape, decisions), math.nan)
        if table.decision_BRT is not None:
            whole_BRT[..., : table.decision_BRT.shape[-1]] = table.decision_BRT
        merged.append(whole_BRT)
    return torch.cat(merged)


def _mean(value_B: Tensor) -> float:
    return float(value_B.mean()) if len(value_B) else math.nan


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """[B_i, T_i] one below the other, padded with zeros on the right to the widest."""
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])
