"""Which steps of a trajectory are trained: all, some at random, or those after a branch; and how much text each counts as."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Trained(NamedTuple):
    """`mask_BT`: the trained steps. `branch_B`: the step at which each row leaves its group's common trajectory, or None.

    `stands_for`: every step is trained with probability 1 / stands_for, so a sum over trained steps times it is, on average,
    the sum over all.
    """

    mask_BT: Tensor
    branch_B: Tensor | None
    stands_for: float


def everything(rows: int, steps: int) -> Trained:
    """All steps of all rows."""
    return Trained(torch.ones(rows, steps, dtype=torch.bool), None, 1.0)


def some(rows: int, steps: int, kept: int, generator: torch.Generator) -> Trained:
    """`kept` steps of each row, without replacement."""
    order_BT = torch.rand(rows, steps, generator=generator).argsort(-1)
    mask_BT = torch.zeros(rows, steps, dtype=torch.bool).scatter_(-1, order_BT[:, :kept], True)
    return Trained(mask_BT, None, steps / kept)


def after_branch(groups: int, each: int, steps: int, window: int, generator: torch.Generator) -> Trained:
    """The first `window` steps after a branch that the rows of a group have in common (Flow-GRPO-Fast).

    The window begins anywhere on 1 - window .. steps - 1 and is cut at both ends: that way every step lies in `window` of
    steps + window - 1 windows.
    """
    first_G = torch.randint(1 - window, steps, (groups,), generator=generator)
    first_B1 = first_G.repeat_interleave(each)[:, None]
    step_T = torch.arange(steps)
    mask_BT = (step_T >= first_B1) & (step_T < first_B1 + window)
    return Trained(mask_BT, first_B1[:, 0].clamp(min=0), (steps + window - 1) / window)


def sizes(mask_BT: Tensor, length_B: Tensor) -> Tensor:
    """int64 [B, T]: the tokens of each text, shared out over its row's trained steps; a row's sum is its `length_B`.

    No token belongs to one step, so the shares are as even as whole numbers go, and 0 at some steps of short texts.
    """
    number_BT, length_B1 = mask_BT.cumsum(-1), length_B[:, None]
    count_B1 = number_BT[:, -1:].clamp(min=1)
    share_BT = number_BT * length_B1 // count_B1 - (number_BT - 1) * length_B1 // count_B1
    return torch.where(mask_BT, share_BT, 0)
