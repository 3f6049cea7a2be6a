"""Dream (Ye et al. 2025, arXiv:2508.15487) and DiffuCoder (Gong et al. 2025, arXiv:2506.20639): Qwen2 with full attention.

What comes out at a position speaks for the next one, as in the causal model they were made from: to speak for position i take
what comes out at i - 1, and at the first position what comes out there. Their own code takes the word "full", or a bool mask
[B, 1, L, L]; positions are `position_ids` (`tok_idx` in their sampler). There are more logits than tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from relgrad.networks.masked.family import Family, Library, Sight


def inputs(sight: Sight, dtype: torch.dtype) -> dict[str, Any]:
    """What their own code is given."""
    return {
        "attention_mask": "full" if sight.everything else sight.visible(),
        "position_ids": sight.position_BL,
    }


FAMILY = Family(
    name="dream",
    model_types=("Dream", "dream"),
    mask_id=151666,
    shifted=True,
    auto="AutoModel",
    inputs=inputs,
    library=Library("Qwen2ForCausalLM", tokenizer="Qwen2Tokenizer"),
)
