r"""Label smoothing over what can be written (Szegedy et al. 2016, arXiv:1512.00567, section 7).

CE_eps = -(1 - eps) log p(truth) - eps / |A| sum_{v in A} log p(v),    A = ordinary ids
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logp_NV: Tensor, label_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """[N], nats. `logp_NV` is -inf outside A. With smoothing 0 it is the plain cross-entropy."""
    plain_N = -logp_NV.gather(-1, label_N[:, None])[:, 0]
    if not smoothing:
        return plain_N
    allowed_NV = logp_NV.isfinite()
    spread_N = -torch.where(allowed_NV, logp_NV, 0.0).sum(-1) / allowed_NV.sum(-1)
    return (1 - smoothing) * plain_N + smoothing * spread_N
