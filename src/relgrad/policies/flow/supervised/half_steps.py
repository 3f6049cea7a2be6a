r"""A teacher for a step of size d: two steps of half the size, composed exactly (after shortcut models, arXiv:2410.12557).

With the mixture kernel, e1 and e2 the stay factors of the halves, e = e1 e2, p1 = p(. | x_t, t, d/2), y ~ K(. | x_t) after the
first half and p2 = p(. | y, t + d/2, d/2), a position's law after both halves is e 1[c] + (1 - e) p* with

    uniform:  p* = ( e2 (1 - e1) p1 + (1 - e2) E_y p2 ) / (1 - e)
    mask:     p* = ( (1 - e1) p1 + (1 - e2) E_y 1[y^i is masked] p2 ) / (1 - e)             at masked positions

One step of size d with p* has, position by position, the law of two halves. One y is drawn, so the target is p* on average (from
a mask source it need not have mass 1), and so is the gradient of sum_v target_v log p_v. From a uniform source p* differs from
p1: x_t serves as a plan, which breaks ties between answers before they are written. From a mask source there is nothing to
read in x_t, and p* = p1 for an exact p: more positions per step cost what they cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.laws import ctmc
from relgrad.laws.precision import at_least_float32
from relgrad.policies.flow.supervised.noise_path import Network, Noised, Path, Uniforms


@torch.no_grad()
def half_steps(teacher: Network, noised: Noised, step_B: Tensor, path: Path, uniforms: Uniforms) -> Tensor:
    """[N, V]: the target p*, estimated from one y. `step_B` is float64 [B], d; t + d may reach 1."""
    time_B, half_B, row_N = noised.time_B, step_B / 2, noised.at[0]
    logits_NV = at_least_float32(teacher(noised.x_BL, time_B.float(), half_B.float(), noised.at))
    moved = move(path, "mixture", logits_NV, noised, half_B, uniforms())
    p2_NV = at_least_float32(teacher(moved.x_BL, (time_B + half_B).float(), half_B.float(), noised.at)).softmax(-1)
    stay1_B = path.scheduler.stay_factor(time_B, half_B)
    stay2_B = path.scheduler.stay_factor(time_B + half_B, half_B)
    first_N, second_N = shares(stay1_B[row_N], stay2_B[row_N], path, moved.current_N)
    return first_N[:, None] * logits_NV.softmax(-1) + second_N[:, None] * p2_NV


def shares(stay1_N: Tensor, stay2_N: Tensor, path: Path, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """float32 ([N], [N]): the factors of p1 and p2 in the formula above, for the y that was drawn."""
    changed_N = 1 - stay1_N * stay2_N
    if path.masked:
        masked_N = path.law("mixture").live(y_N)
        return ((1 - stay1_N) / changed_N).float(), ((1 - stay2_N) * masked_N / changed_N).float()
    return (stay2_N * (1 - stay1_N) / changed_N).float(), ((1 - stay2_N) / changed_N).float()


def move(
    path: Path, kernel: ctmc.Kernel, logits_NV: Tensor, noised: Noised, step_B: Tensor, uniform_N2: Tensor
) -> Noised:
    """The rows after one step of the kernel. `noised.time_B` is the time they are at, and stays."""
    hazard_N = ctmc.hazard(kernel, path.scheduler, noised.time_B, step_B)[noised.at[0]]
    uniform_N2 = uniform_N2.to(logits_NV.device)
    return noised.moved(ctmc.sample(path.law(kernel), logits_NV, noised.current_N, hazard_N, uniform_N2))
