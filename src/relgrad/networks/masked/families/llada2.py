"""LLaDA 2 (Bie et al. 2025, arXiv:2512.15745): a mixture of experts with block-causal attention in blocks of 32.

Blocks are counted from the beginning of the row. Only its own code computes it, which takes an additive mask [B, 1, L, L]: the log
of what is visible, 0 or minus infinity.
"""

from __future__ import annotations

from typing import Any

import torch

from relgrad.networks.masked.family import Family, Sight


def inputs(sight: Sight, dtype: torch.dtype) -> dict[str, Any]:
    """What its own code is given."""
    return {"attention_mask": sight.visible().to(dtype).log(), "position_ids": sight.position_BL, "use_cache": False}


FAMILY = Family(
    name="llada2",
    model_types=("llada2_moe",),
    mask_id=156895,
    block=32,
    inputs=inputs,
)
