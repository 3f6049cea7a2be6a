r"""FS-DFM's teacher for a step of size d: a Runge-Kutta average of four calls at half the size (arXiv:2509.20624, section 3).

    k1 = z(x, t)              x' ~ step of k1 from x
    k2 = z(x', t + d/2)       x'' ~ step of k2 from x'
    k3 = z(x'', t + d/2)      x''' ~ step of k3 from x''
    k4 = z(x''', t + d)       target = softmax((k1 + 2 k2 + 2 k3 + k4) / 6)

z are the log-probabilities of the network told the step d/2; the moves are steps of d/2 by the cumulative kernel. The states run
ahead of the times, and averaged logits are sharper than averaged probabilities: not the law of two halves, but one that decides
earlier, which few steps reward. k4's time is at most 1 - d/2 (FS-DFM's is t + d): beyond it there is no step of d/2, so that the
network was never trained there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.laws.precision import at_least_float32
from relgrad.policies.flow.supervised.half_steps import move
from relgrad.policies.flow.supervised.noise_path import Network, Noised, Path, Uniforms


@torch.no_grad()
def rk4(teacher: Network, noised: Noised, step_B: Tensor, path: Path, uniforms: Uniforms) -> Tensor:
    """[N, V] with mass 1: the target, from one draw of the three states between. `step_B` is float64 [B], d.

    Raises RelgradError for a mask source, where the network is not asked about positions once they are unmasked.
    """
    if path.masked:
        raise RelgradError("the teacher rk4 needs a uniform source; with a mask source use half_steps")
    time_B, half_B = noised.time_B, step_B / 2
    middle_B, end_B = time_B + half_B, torch.minimum(time_B + step_B, 1 - half_B)
    logits_NV = at_least_float32(teacher(noised.x_BL, time_B.float(), half_B.float(), noised.at))
    total_NV, state, now_B = logits_NV.log_softmax(-1), noised, time_B
    for next_B, weight in ((middle_B, 2), (middle_B, 2), (end_B, 1)):
        state = move(path, "cumulative", logits_NV, state._replace(time_B=now_B), half_B, uniforms())
        now_B = next_B
        logits_NV = at_least_float32(teacher(state.x_BL, now_B.float(), half_B.float(), state.at))
        total_NV = total_NV + weight * logits_NV.log_softmax(-1)
    return (total_NV / 6).softmax(-1)
