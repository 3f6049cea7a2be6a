"""The credit that a recipe asks for: rewards of a batch in, advantages out, by objectives/advantages.py."""

from __future__ import annotations

from torch import Tensor

from relgrad.core.types import RewardTable
from relgrad.objectives import advantages
from relgrad.objectives.advantages import Advantages
from relgrad.training.settings import CreditSettings


def give_credit(
    settings: CreditSettings, table: RewardTable, group_B: Tensor, mask_BT: Tensor, penalty_B: Tensor | None = None
) -> Advantages:
    """Advantages of the rows of `group_B`, or of their decisions (`mask_BT`). `penalty_B`: see advantages.combine."""
    scale, leave_one_out = settings.scale_rewards, settings.leave_one_out
    if settings.credit == "decision":
        return advantages.combine_decisions(table, group_B, mask_BT, scale=scale, leave_one_out=leave_one_out)
    aggregation = settings.multi_objective_aggregation
    return advantages.combine(
        table, group_B, scale=scale, leave_one_out=leave_one_out, aggregation=aggregation, penalty_B=penalty_B
    )
