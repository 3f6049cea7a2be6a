r"""The generalised KL of a position's jump rates, the evidence bound of discrete flow matching (arXiv:2412.03487; FS-DFM).

    l = -w [ p(c) - 1[c = x_1] + 1[c != x_1] log p(x_1) ],    c = x_t^i,   p = p(. | x_t),   w = kappa' / (1 - kappa)

Given x_t its average over x_1 is w [q_c - p_c - sum_{v != c} q_v log p_v] with q the posterior, smallest where p = q. The bracket
is a difference of rates, so this is not only a loss of position i but, integrated over t, a bound on -log p(text).

w grows without bound towards t = 1, where only a share 1 - kappa of the positions still counts. It is bounded by `max_weight`:
w = min(kappa' / (1 - kappa), max_weight). With kappa = t, 1000 touches the last thousandth of the times, which FS-DFM leaves out.
The minimiser is the same for any w > 0. From a mask source, positions that are unmasked count 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.laws.precision import at_least_float32
from relgrad.laws.schedule import Scheduler
from relgrad.policies.flow.supervised.noise_path import Noised, Path

MAX_WEIGHT = 1000.0


def generalised_kl(logits_NV: Tensor, noised: Noised, path: Path, max_weight: float = MAX_WEIGHT) -> Tensor:
    """[N], nats per unit of time; `logits_NV` are those of the positions `noised.at`. Finite at every t in [0, 1]."""
    logits_NV = at_least_float32(logits_NV)
    total_N = logits_NV.logsumexp(-1)
    is_target_N = noised.current_N == noised.label_N
    p_current_N = (logits_NV.gather(-1, noised.current_N[:, None])[:, 0] - total_N).exp()
    log_p_label_N = logits_NV.gather(-1, noised.label_N[:, None])[:, 0] - total_N
    bracket_N = p_current_N + torch.where(is_target_N, -torch.ones_like(log_p_label_N), log_p_label_N)
    loss_N = -weight(path.scheduler, noised.time_B, max_weight).to(bracket_N.dtype)[noised.at[0]] * bracket_N
    return torch.where(path.law("mixture").live(noised.current_N), loss_N, torch.zeros_like(loss_N))


def weight(scheduler: Scheduler, time_B: Tensor, max_weight: float = MAX_WEIGHT) -> Tensor:
    """[B]: min(kappa' / (1 - kappa), max_weight), without a division by zero at t = 1."""
    slope_B, left_B = scheduler.slope(time_B), scheduler.left(time_B)
    return slope_B / torch.maximum(left_B, slope_B / max_weight).clamp_min(torch.finfo(time_B.dtype).tiny)
