"""Laws compute in float32 whatever the network's precision is, and in float64 where the network does."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
"""Nats by which rounding may move the log-probability of one token between two orders of the same arithmetic, by its dtype.

float32    logits of up to 2^6, rounded by 2^-24 of their size in some 2^12 additions that matter; such errors add up like a random
           walk: 2^6 2^-24 2^6 = 2^-12, and 8 times that
bfloat16   sums are float32, but activations are rounded by 2^-9 between some 2^6 layers, logits of up to 2^5: 2^5 2^-9 2^3 / 2
float16    is 8 times as fine, but keeps small numbers badly
"""


def at_least_float32(value: Tensor) -> Tensor:
    """float64 as it is, everything narrower as float32."""
    return value if value.dtype == torch.float64 else value.float()
