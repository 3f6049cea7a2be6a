"""Attention to both sides in the language models of transformers, which look back only.

What a position may look at travels as a keyword argument through the model (`relgrad_visible`): a bool mask [B, 1, Q, K], or None
where everything is visible, so that the kernels for plain attention are used. Without it, attention is the library's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ATTENTION = "relgrad_masked"


def register_attention() -> None:
    """Offer `ATTENTION` to transformers."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if "relgrad_visible" in kwargs:
            for extra in ("softcap", "s_aux", "sliding_window"):
                if kwargs.get(extra) is not None:
                    raise NotImplementedError(
                        f"its attention has an extra ({extra}) that attention to both sides lacks"
                    )
            attention_mask = kwargs.pop("relgrad_visible")
            kwargs["is_causal"] = False
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


def hidden_states(
    decoder: torch.nn.Module, ids_BL: Tensor, position_BL: Tensor, visible: Tensor | None, cache: Any = None
) -> Tensor:
    """Final hidden states [B, L, H]. With a `cache` of transformers, `visible` has its keys first, and these are added to it."""
    # a ready-made 4-D mask is passed through untouched; `visible` replaces it
    no_mask = torch.empty(1, 1, 1, 1, device=ids_BL.device)
    output = decoder(
        input_ids=ids_BL,
        position_ids=position_BL,
        attention_mask=no_mask,
        past_key_values=cache,
        use_cache=cache is not None,
        relgrad_visible=visible,
    )
    hidden_BLH: Tensor = output.last_hidden_state
    return hidden_BLH
