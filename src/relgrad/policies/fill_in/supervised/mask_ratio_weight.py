r"""A weight per sample by how much of it is hidden, so that heavily masked samples, whose loss is large, do not drown the rest.

w(r) = (max(r, MIN) / 0.5)^-power        1 at half hidden; power 0 is no weight
"""

from __future__ import annotations

from torch import Tensor

MIN = 0.05


def weights(ratio_B: Tensor, power: float) -> Tensor:
    """[B] for the share of positions that are asked for [B] in (0, 1], taken as at least MIN.

    Power 1 gives every sample the same total weight.
    """
    return (ratio_B.clamp(min=MIN) / 0.5) ** -power
