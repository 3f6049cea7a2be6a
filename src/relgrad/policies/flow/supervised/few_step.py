r"""Few-step distillation: a step-conditioned student learns to take one step where its own slow average takes two (FS-DFM).

    d in {1/S, 2/S, 4/S ... 1}, drawn with probability proportional to 1/d;  t uniform on {0, 1/S ...} with t + d <= 1
    d = 1/S:  the loss of the data (flow_matching.py), told the step
    else:     KL(target || p(. | x_t, t, d)),   target = half_steps or rk4 of the teacher: the student's moving average

Half of the rows keep the finest step a good model, and each size learns from the size below. The sizes are halvings of 1, so a
student writes in S, S/2 ... 2 or 1 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.core.settings import Strict
from relgrad.core.types import SupervisedLoss
from relgrad.laws.precision import at_least_float32
from relgrad.policies.flow.supervised.flow_matching import DATA_LOSSES, DataLoss
from relgrad.policies.flow.supervised.half_steps import half_steps
from relgrad.policies.flow.supervised.noise_path import Network, Noised, Path, Uniforms
from relgrad.policies.flow.supervised.rk4 import rk4

Teacher = Callable[[Network, Noised, Tensor, Path, Uniforms], Tensor]
TEACHERS: dict[str, Teacher] = {"half_steps": half_steps, "rk4": rk4}


class FewStep(Strict):
    """`finest` is S, a power of two: 1024 in FS-DFM."""

    finest: int = Field(1024, ge=2)
    teacher: Literal["rk4", "half_steps"] = "rk4"
    data_loss: DataLoss = "cross_entropy"

    @model_validator(mode="after")
    def _legal(self) -> FewStep:
        if self.finest & (self.finest - 1):
            raise ValueError(
                f"finest={self.finest}: step sizes are halvings of 1, so it must be a power of two (64, 1024)"
            )
        return self

    def require_steps(self, steps: int) -> None:
        """Raise RelgradError unless a student trained so can write in this many steps."""
        if steps < 1 or steps > self.finest or steps & (steps - 1):
            raise RelgradError(f"steps={steps}: this student takes a power of two up to {self.finest}")


def draw_steps(settings: FewStep, draws: Draws) -> tuple[Tensor, Tensor]:
    """(time_B, step_B), float64, on the CPU: of every example from two uniform numbers of its own, by inversion."""
    finest = settings.finest
    size_K = 2 ** torch.arange(finest.bit_length(), dtype=torch.float64)  # in units of 1/S
    uniform_B2 = draws.rand(2, dtype=torch.float64)
    reached_K = (1 / size_K).cumsum(0)
    size_B = size_K[torch.searchsorted(reached_K, uniform_B2[:, 0] * reached_K[-1], right=True)]
    start_B = torch.floor(uniform_B2[:, 1] * (finest - size_B + 1))
    return start_B / finest, size_B / finest


def few_step_loss(
    student: Network,
    teacher: Network,
    ids_BL: Tensor,
    editable_BL: Tensor,
    path: Path,
    settings: FewStep,
    draws: Draws,
) -> SupervisedLoss:
    """The loss summed over the editable positions, as `flow_matching_loss`; most of it is no likelihood, so that it has no `nll`.

    `teacher` is called without gradient. Raises RelgradError for a row without an editable position.
    """
    time_B, step_B = (b.to(ids_BL.device) for b in draw_steps(settings, draws))
    noised = path.noise(ids_BL, editable_BL, time_B, draws)
    learns_B = step_B * settings.finest > 1
    learns_N = learns_B[noised.at[0]]
    apart, target_MV = noised.rows(learns_B), None
    if bool(learns_B.any()):
        count_B = (editable_BL.sum(-1) * learns_B).tolist()
        target_MV = TEACHERS[settings.teacher](
            teacher, apart, step_B[learns_B], path, lambda: draws.rand_each(count_B, 2)
        )
    logits_NV = student(noised.x_BL, time_B.float(), step_B.float(), noised.at)
    loss = DATA_LOSSES[settings.data_loss](logits_NV[~learns_N], noised.rows(~learns_B), path).sum()
    if target_MV is not None:
        live_M = path.law("mixture").live(apart.current_N)
        loss = loss + divergence(target_MV, logits_NV[learns_N])[live_M].sum()
    return SupervisedLoss(loss, len(noised.label_N))


def divergence(target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """[N], nats, >= 0: sum_v T log(T / p) - T + p. It is KL(T || p) where T has mass 1, and 0 only at T = p."""
    logp_NV = at_least_float32(logits_NV).log_softmax(-1)
    some_NV = target_NV > 0
    finite_NV = torch.where(some_NV, logp_NV, torch.zeros_like(logp_NV))
    logt_NV = torch.where(some_NV, target_NV, torch.ones_like(target_NV)).log()
    return (target_NV * (logt_NV - finite_NV)).sum(-1) - target_NV.sum(-1) + 1
