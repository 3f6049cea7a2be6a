r"""The cross-entropy of a position: l = -log p(x_1^i | x_t), nats.

Averaged over x_1 given x_t it is smallest where p is the posterior, at every t alike. From a mask source, positions that are
unmasked count 0: they never change again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.laws.precision import at_least_float32
from relgrad.policies.flow.supervised.noise_path import Noised, Path


def cross_entropy(logits_NV: Tensor, noised: Noised, path: Path) -> Tensor:
    """[N]; `logits_NV` are those of the positions `noised.at`."""
    logits_NV = at_least_float32(logits_NV)
    loss_N = logits_NV.logsumexp(-1) - logits_NV.gather(-1, noised.label_N[:, None])[:, 0]
    return torch.where(path.law("mixture").live(noised.current_N), loss_N, torch.zeros_like(loss_N))
