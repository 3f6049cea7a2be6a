"""Laws compute in float32 whatever the network's precision is, and in float64 where the network does."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """float64 as it is, everything narrower as float32."""
    return value if value.dtype == torch.float64 else value.float()
