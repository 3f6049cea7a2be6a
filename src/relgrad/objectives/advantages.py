r"""Group-relative credit: rewards in, advantages out. Pure, NaN-aware; NaN means *unscored*.

For a group g with scored rewards r_1..r_K:   A_i = (r_i - mean_g) / (std + 1e-4),   std with K-1 in the denominator

as in GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 2) with TRL's sample standard deviation and epsilon: [1, 1, 0] gives
.577, .577, -1.155 (up to the epsilon). Constant groups, groups of one and unscored rows give exactly 0.

Where the rows of a group make the same decisions and rewards score them one by one, credit can be given per decision:
decision t of a row is compared with decision t of the group's other rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import RewardTable

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4


class Advantages(NamedTuple):
    """`advantage_B`, the total `reward_B` (NaN: unscored), `std_G` per group and which groups have no spread.

    `advantage_BT` is there where credit was given per decision; `advantage_B` is then its mean over the row's decisions.
    """

    advantage_B: Tensor
    reward_B: Tensor
    std_G: Tensor
    flat_G: Tensor
    advantage_BT: Tensor | None = None


def group_stats(score_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count_G, mean_G, std_G) over the scored rows; std is the sample one, 0 for fewer than two scored rows.

    Of scores [B, T], all three are [G, T]: every decision by itself.
    """
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    scored_B = ~score_B.isnan()
    value_B = torch.where(scored_B, score_B, 0.0)
    zeros_G = score_B.new_zeros(groups, *score_B.shape[1:])
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
    """bool [G]: True where the scored rows of a group are all equal (or fewer than two): no learning signal.

    Of scores [B, T] it is [G, T]: every decision by itself.
    """
    low_G, high_G = group_range(score_B, group_B)
    return ~(high_G > low_G)


def group_range(score_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """(lowest, highest) score of a group's scored rows, each [G], or [G, ...] of scores [B, ...]; inf and -inf where none is."""
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    index_B = group_B.view(-1, *[1] * (score_B.dim() - 1)).expand_as(score_B)
    low_G, high_G = (
        score_B.new_full((groups, *score_B.shape[1:]), fill).scatter_reduce(
            0, index_B, score_B.masked_fill(score_B.isnan(), fill), side
        )
        for fill, side in ((torch.inf, "amin"), (-torch.inf, "amax"))
    )
    return low_G, high_G


def decision_advantages(
    score_BT: Tensor, group_B: Tensor, *, scale: Scale = "group", leave_one_out: bool = False
) -> Tensor:
    """Advantages [B, T] of scores [B, T] (NaN: no decision, or unscored), each relative to its group's mean at the same t.

    scale="group" divides by one std per group + 1e-4: the sample variances at every t, pooled by their degrees of freedom. A
    score that is the same for all decisions of a row so gets exactly the advantage that `group_advantages` gives the row,
    and a decision with little spread stays small beside its neighbours. "batch" divides by the std of all scored
    cells, with the share of degrees of freedom that the rows have. A decision at which a group's scored rows
    agree (or of which one row alone is scored) gives exactly 0; so does everything that is unscored.
    """
    count_GT, mean_GT, std_GT = group_stats(score_BT, group_B)
    scored_BT = ~score_BT.isnan()
    centred_BT = torch.where(scored_BT, score_BT - mean_GT[group_B], 0.0)
    if leave_one_out:
        centred_BT = centred_BT * (count_GT / (count_GT - 1).clamp(min=1))[group_B]
    if scale == "group":
        centred_BT = centred_BT / (pooled_std(count_GT, std_GT)[group_B] + EPSILON)[:, None]
    elif scale == "batch":
        everyone, rows = score_BT[scored_BT], int(scored_BT.any(-1).sum())
        variance = everyone.var(correction=0) * rows / (rows - 1) if rows > 1 else everyone.new_zeros(())
        centred_BT = centred_BT / (variance.sqrt() + EPSILON)
    elif scale != "none":
        raise ValueError(f"scale={scale!r}: must be 'group', 'batch' or 'none'")
    live_BT = scored_BT & ~flat_groups(score_BT, group_B)[group_B]
    return torch.where(live_BT, centred_BT, 0.0)


def pooled_std(count_GT: Tensor, std_GT: Tensor) -> Tensor:
    """[G]: root of the sample variances of a group's decisions, weighted by their degrees of freedom; 0 where it has none."""
    freedom_GT = (count_GT - 1).clamp(min=0)
    return ((std_GT.square() * freedom_GT).sum(-1) / freedom_GT.sum(-1).clamp(min=1)).sqrt()


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
    small scale is heard. What a missing score does is said at `completed`; a row with no reward at all is unscored, also where a
    monitor (a reward of weight 0) scored it.
    `penalty_B` (nats, already times beta) is the k1 divergence *in the reward*: centred within its group, it is subtracted from
    the advantage. It is divided by no spread, so its effect is linear in beta; which groups are flat, the rewards alone say.
    """
    reward_B = total_reward(table, group_B)
    unscored_B = reward_B.isnan()
    if aggregation == "sum_then_normalize":
        advantage_B = group_advantages(reward_B, group_B, scale=scale, leave_one_out=leave_one_out)
        flat_G = flat_groups(reward_B, group_B)
    elif aggregation == "normalize_then_sum":
        columns = table.value_BR[:, table.counted_R].unbind(-1)
        total_B = torch.zeros_like(reward_B)
        for column_B, weight in zip(columns, table.weights_R[table.counted_R], strict=True):
            total_B += weight * group_advantages(column_B, group_B, scale="group", leave_one_out=leave_one_out)
        scored = total_B[~unscored_B]
        std = scored.std() if scored.numel() > 1 else scored.new_zeros(())
        advantage_B = torch.where(unscored_B, 0.0, (total_B - scored.mean()) / (std + EPSILON))
        flat_G = torch.stack([flat_groups(column_B, group_B) for column_B in columns]).all(0)
        advantage_B = torch.where(flat_G[group_B], 0.0, advantage_B)
    else:
        raise ValueError(f"aggregation={aggregation!r}: must be 'sum_then_normalize' or 'normalize_then_sum'")
    if penalty_B is not None:
        charged_B = torch.where(unscored_B, torch.nan, penalty_B.to(reward_B.dtype))
        advantage_B = advantage_B - group_advantages(charged_B, group_B, scale="none", leave_one_out=leave_one_out)
    _, _, std_G = group_stats(reward_B, group_B)
    return Advantages(advantage_B.float(), reward_B, std_G, flat_G)


def completed(value: Tensor, group_B: Tensor) -> Tensor:
    """Scores with the gaps filled that must not speak: a missing one becomes the mean of its reward over the row's group.

    So a score that could not be computed neither raises nor lowers its row against its equals: 0 would praise it under a penalty
    and punish it under a bonus. Where a reward is missing for a whole group it stays NaN, and is left out of that group (a data
    set of several tasks, each with rewards of its own). `value` is [B, R] or, for scores of decisions, [B, R, T].
    """
    count_G, mean_G, _ = group_stats(value, group_B)
    low_G, high_G = group_range(value, group_B)
    # between the two, also where rounding would put the mean of equal scores beside them
    mean_G = torch.where(count_G > 0, mean_G.clamp(low_G, high_G), torch.nan)
    return torch.where(value.isnan(), mean_G[group_B], value)


def total_reward(table: RewardTable, group_B: Tensor) -> Tensor:
    """Weighted sum [B] of a row's rewards, missing ones `completed`; NaN for rows that no reward of any weight scored."""
    value_BR = table.value_BR[:, table.counted_R]
    total_B = (completed(value_BR, group_B) * table.weights_R[table.counted_R]).nansum(-1)
    return torch.where(value_BR.isnan().all(-1), torch.nan, total_B)


def combine_decisions(
    table: RewardTable, group_B: Tensor, mask_BT: Tensor, *, scale: Scale = "group", leave_one_out: bool = False
) -> Advantages:
    """Several weighted rewards to one advantage per decision, for groups whose rows make the same decisions (fill-in).

    The total of a decision is the weighted sum of its scores; a reward without scores per decision gives its score of the row
    to each of them. Raises RelgradError where no reward of any weight scores decisions, or where rows of a group
    that are compared differ in their decisions (`mask_BT`).
    """
    score_BT = total_decisions(table, mask_BT, group_B)
    scored_B = ~score_BT.isnan().all(-1)
    _require_aligned(mask_BT[scored_B], group_B[scored_B])
    advantage_BT = decision_advantages(score_BT, group_B, scale=scale, leave_one_out=leave_one_out)
    count_GT, _, std_GT = group_stats(score_BT, group_B)
    return Advantages(
        advantage_B=(advantage_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).float(),
        reward_B=total_reward(table, group_B),
        std_G=pooled_std(count_GT, std_GT),
        flat_G=flat_groups(score_BT, group_B).all(-1),
        advantage_BT=advantage_BT.float(),
    )


def total_decisions(table: RewardTable, mask_BT: Tensor, group_B: Tensor) -> Tensor:
    """Weighted sum [B, T] of the rewards' scores of a decision; NaN where none of any weight has one, or is no decision.

    A score that is missing is `completed`: by the mean of that reward for the same decision of the group's other rows.
    """
    value_BR1 = table.value_BR[:, table.counted_R, None]
    own_BRT = torch.full_like(value_BR1, torch.nan).expand(-1, -1, mask_BT.shape[1])
    if table.decision_BRT is not None:
        own_BRT = table.decision_BRT[:, table.counted_R]
    offers_BR = ~own_BRT.isnan().all(-1)
    # a reward that failed on the whole batch may be the one that scores decisions
    if not bool((offers_BR.any(0) | value_BR1.isnan().all(0)[:, 0]).any()):
        names = ", ".join(name for name, counted in zip(table.names, table.counted_R.tolist(), strict=True) if counted)
        raise RelgradError(
            f"credit: decision needs a reward that scores decisions (Score.per_decision), but {names} scored whole "
            "completions only. Add one that does, or use credit: row"
        )
    score_BRT = torch.where(offers_BR[:, :, None], own_BRT, value_BR1).masked_fill(value_BR1.isnan(), torch.nan)
    total_BT = (completed(score_BRT, group_B) * table.weights_R[table.counted_R, None]).nansum(1)
    return torch.where(mask_BT & ~score_BRT.isnan().all(1), total_BT, torch.nan)


def _require_aligned(mask_BT: Tensor, group_B: Tensor) -> None:
    """Raise RelgradError unless all rows of a group have their decisions at the same places."""
    for group in sorted(set(group_B.tolist())):
        mask_KT = mask_BT[group_B == group]
        if not bool((mask_KT == mask_KT[0]).all()):
            raise RelgradError(
                "credit: decision compares decision t of a group's completions, so they must make the same decisions; those of "
                f"group {group} have {sorted(set(mask_KT.sum(-1).tolist()))} of them. Use credit: row"
            )
