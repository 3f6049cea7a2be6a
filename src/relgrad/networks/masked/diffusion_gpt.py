"""The diffusion GPT as a masked network: full attention, no shift."""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.network import GPT


class MaskedGPT:
    """See interface.MaskedNetwork. Raises RelgradError for a network without a language-model head or of causal attention."""

    def __init__(self, model: GPT, mask_id: int) -> None:
        if model.config.mode != "language_model":
            raise RelgradError(f"a {model.config.mode} writes nothing: give a diffusion GPT with mode: language_model")
        if model.config.attention_type == "causal":
            raise RelgradError(
                "attention_type: causal: a masked position would not see what stands behind it, nor one before it what is "
                "written later. Use attention_type: bidirectional"
            )
        self.model, self.mask_id = model.eval(), mask_id

    @property
    def module(self) -> GPT:
        return self.model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def length(self) -> int:
        return self.model.config.block_size

    def hidden(self, ids_BL: Tensor, valid_BL: Tensor, block_BL: Tensor) -> Tensor:
        """[B, L, H]. The blocks are not looked at."""
        return self.model.hidden(ids_BL, valid_BL)

    def dropout(self, on: bool) -> None:
        """See interface.MaskedNetwork."""
        self.model.train(on)

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """float32 [M, V]."""
        return self.model.logits(hidden_MH)
