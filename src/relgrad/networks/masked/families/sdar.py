"""SDAR (Cheng et al. 2025, arXiv:2510.06303) and TraDo (Wang et al. 2025, arXiv:2509.06949): Qwen3 with block-causal attention.

A position sees its own block to both sides, and the blocks before. Blocks are counted from the beginning of the row, so that the
end of a prompt shares a block with the first positions of the answer. Finished blocks do not depend on later ones, which makes a
cache of their keys and values exact (block_cache.py). Their own code takes a bool mask [B, 1, L, L].
"""

from __future__ import annotations

from typing import Any

import torch

from relgrad.networks.masked.family import Family, Library, Sight


def inputs(sight: Sight, dtype: torch.dtype) -> dict[str, Any]:
    """What their own code is given."""
    return {"attention_mask": sight.visible(), "position_ids": sight.position_BL, "use_cache": False}


FAMILY = Family(
    name="sdar",
    model_types=("sdar",),
    mask_id=151669,
    block=4,
    inputs=inputs,
    library=Library("Qwen3ForCausalLM", tokenizer="Qwen2Tokenizer"),
)
