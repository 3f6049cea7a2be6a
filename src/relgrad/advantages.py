r"""Group-relative credit: rewards in, advantages out. Pure, NaN-aware; NaN means *unscored*.

For a group g with scored rewards r_1..r_K:   A_i = (r_i - mean_g) / (std + 1e-4),   std with K-1 in the denominator

as in GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 2) with TRL's sample standard deviation and epsilon: [1, 1, 0] gives
.577, .577, -1.155 (up to the epsilon). Constant groups, groups of one and unscored rows give exactly 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relgrad.types import RewardTable

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4


class Advantages(NamedTuple):
    """`advantage_B`, the total `reward_B` (NaN: unscored), `std_G` per group and which groups have no spread."""

    advantage_B: Tensor
    reward_B: Tensor
    std_G: Tensor
    flat_G: Tensor


def group_stats(score_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count_G, mean_G, std_G) over the scored rows; std is the sample one, 0 for fewer than two scored rows."""
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    scored_B = ~score_B.isnan()
    value_B = torch.where(scored_B, score_B, 0.0)
    zeros_G = score_B.new_zeros(groups)
    count_G = zeros_G.index_add(0, group_B, scored_B.to(score_B.dtype))
    mean_G = zeros_G.index_add(0, group_B, value_B) / count_G.clamp(min=1)
    residual_B = torch.where(scored_B, value_B - mean_G[group_B], 0.0)
    square_G = zeros_G.index_add(0, group_B, residual_B**2)
    return count_G, mean_G, (square_G / (count_G - 1).clamp(min=1)).sqrt()


def group_advantages(
    score_B: Tensor, group_B: Tensor, *, scale: Scale = "group", leave_one_out: bool = False
) -> Tensor:
    """Advantages [B] of scores [B] (any real dtype; NaN: unscored) for rows of groups `group_B` (int64 [B]).

    scale="group" divides by the group's sample std + 1e-4, "batch" by that of all scored rows, "none" not at all (Dr. GRPO,
    Liu et al. 2025, arXiv:2503.20783). `leave_one_out` takes each row's baseline from the others of its group (RLOO,
    Ahmadian et al. 2024, arXiv:2402.14740): K/(K-1) times the centred score.
    """
    count_G, mean_G, std_G = group_stats(score_B, group_B)
    scored_B = ~score_B.isnan()
    centred_B = torch.where(scored_B, score_B - mean_G[group_B], 0.0)
    if leave_one_out:
        centred_B = centred_B * (count_G / (count_G - 1).clamp(min=1))[group_B]
    if scale == "group":
        centred_B = centred_B / (std_G[group_B] + EPSILON)
    elif scale == "batch":
        everyone = score_B[scored_B]
        std = everyone.std() if everyone.numel() > 1 else everyone.new_zeros(())
        centred_B = centred_B / (std + EPSILON)
    elif scale != "none":
        raise ValueError(f"scale={scale!r}: must be 'group', 'batch' or 'none'")
    # a constant group must give exactly 0, not rounding noise divided by 1e-4
    live_B = scored_B & ~flat_groups(score_B, group_B)[group_B]
    return torch.where(live_B, centred_B, 0.0)


def flat_groups(score_B: Tensor, group_B: Tensor) -> Tensor:
    """bool [G]: True where the scored rows of a group are all equal (or fewer than two): no learning signal."""
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    scored_B = ~score_B.isnan()
    low_G = score_B.new_full((groups,), torch.inf).scatter_reduce(0, group_B[scored_B], score_B[scored_B], "amin")
    high_G = score_B.new_full((groups,), -torch.inf).scatter_reduce(0, group_B[scored_B], score_B[scored_B], "amax")
    return ~(high_G > low_G)


def combine(
    table: RewardTable,
    group_B: Tensor,
    *,
    scale: Scale = "group",
    leave_one_out: bool = False,
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize",
    penalty_B: Tensor | None = None,
) -> Advantages:
    """Several weighted rewards to one advantage per row.

    "sum_then_normalize": weighted sum first, group-relative afterwards (GRPO). "normalize_then_sum": each reward made
    group-relative by itself, weighted sum, then standardised over the batch (GDPO, arXiv:2601.05242), so that a reward of
    small scale is heard. A reward that is NaN for a row is left out of its sum; a row with no reward at all is unscored.
    `penalty_B` (nats, already times beta) is subtracted from the total reward: the k1 divergence *in the reward*
    ("normalize_then_sum": from the sum of the normalised rewards, centred within its group).
    """
    weighted_BR = table.value_BR * table.weights_R
    reward_B = weighted_BR.nansum(-1)
    unscored_B = table.value_BR.isnan().all(-1)
    if penalty_B is not None:
        reward_B = reward_B - penalty_B.to(reward_B.dtype)
    reward_B = torch.where(unscored_B, torch.nan, reward_B)
    if aggregation == "sum_then_normalize":
        advantage_B = group_advantages(reward_B, group_B, scale=scale, leave_one_out=leave_one_out)
    elif aggregation == "normalize_then_sum":
        columns = [table.value_BR[:, r] for r in range(len(table.names))]
        total_B = torch.zeros_like(reward_B)
        for column_B, weight in zip(columns, table.weights_R, strict=True):
            total_B += weight * group_advantages(column_B, group_B, scale="group", leave_one_out=leave_one_out)
        if penalty_B is not None:  # centred only: divided by its own spread, beta would cancel
            columns.append(torch.where(unscored_B, torch.nan, -penalty_B.to(reward_B.dtype)))
            total_B += group_advantages(columns[-1], group_B, scale="none", leave_one_out=leave_one_out)
        total_B = torch.where(unscored_B, torch.nan, total_B)
        scored = total_B[~unscored_B]
        std = scored.std() if scored.numel() > 1 else scored.new_zeros(())
        advantage_B = torch.where(unscored_B, 0.0, (total_B - scored.mean()) / (std + EPSILON))
        flat_G = torch.stack([flat_groups(column_B, group_B) for column_B in columns]).all(0)
        advantage_B = torch.where(flat_G[group_B], 0.0, advantage_B)
    else:
        raise ValueError(f"aggregation={aggregation!r}: must be 'sum_then_normalize' or 'normalize_then_sum'")
    _, _, std_G = group_stats(reward_B, group_B)
    return Advantages(advantage_B.float(), reward_B, std_G, flat_groups(reward_B, group_B))
