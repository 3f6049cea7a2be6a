"""Which steps of a trajectory are trained: all, some at random, or those after a branch; and how much text each counts as."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.randomness import Draws


class TrainedSteps(NamedTuple):
    """Which steps of B rows are trained.

    mask_BT     bool [B, T]: True at the trained steps
    branch_B    int64 [B]: the step before which each row leaves the trajectory that its group has in common; None where the rows of
                a group have none in common
    stands_for  every step is trained with probability 1 / stands_for, so that a sum over trained steps times it is, on average, the
                sum over all
    """

    mask_BT: Tensor
    branch_B: Tensor | None
    stands_for: float


def all_steps(rows: int, steps: int) -> TrainedSteps:
    """All steps of all rows."""
    return TrainedSteps(torch.ones(rows, steps, dtype=torch.bool), None, 1.0)


def random_steps(draws: Draws, each: int, steps: int, kept: int) -> TrainedSteps:
    """`kept` steps of each of the `each` rows of every prompt, without replacement. A prompt's random numbers are its own."""
    order_BT = draws.rand(each, steps).flatten(0, 1).argsort(-1)
    mask_BT = torch.zeros(order_BT.shape, dtype=torch.bool).scatter_(-1, order_BT[:, :kept], True)
    return TrainedSteps(mask_BT, None, steps / kept)


def steps_after_branch(draws: Draws, each: int, steps: int, window: int) -> TrainedSteps:
    """The first `window` steps after a branch that the `each` rows of a prompt have in common (Flow-GRPO-Fast, arXiv:2505.05470).

    The window begins anywhere on 1 - window .. steps - 1 and is cut at both ends: that way every step lies in `window` of
    steps + window - 1 windows.
    """
    first_B1 = draws.randint(1 - window, steps).repeat_interleave(each)[:, None]
    step_T = torch.arange(steps)
    mask_BT = (step_T >= first_B1) & (step_T < first_B1 + window)
    return TrainedSteps(mask_BT, first_B1[:, 0].clamp(min=0), (steps + window - 1) / window)


def tokens_per_step(mask_BT: Tensor, length_B: Tensor) -> Tensor:
    """int64 [B, T]: the tokens of each text, shared out over the trained steps of its row; a row's sum is its `length_B`.

    A token belongs to no single step, so the shares are as even as whole numbers go, and 0 at some steps of short texts.
    """
    number_BT, length_B1 = mask_BT.cumsum(-1), length_B[:, None]
    count_B1 = number_BT[:, -1:].clamp(min=1)
    share_BT = number_BT * length_B1 // count_B1 - (number_BT - 1) * length_B1 // count_B1
    return torch.where(mask_BT, share_BT, 0)
