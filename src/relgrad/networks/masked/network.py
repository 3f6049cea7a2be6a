"""A model of transformers, or of a folder's own code, as a masked network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.causal.adapted import bare
from relgrad.networks.causal.load import context
from relgrad.networks.causal.modes import Modes
from relgrad.networks.masked.attention import hidden_states
from relgrad.networks.masked.block_cache import BlockCache
from relgrad.networks.masked.family import Family, Sight
from relgrad.networks.masked.interface import MaskedNetwork

UNBOUNDED = 2**20
"""Positions of a network that names no bound."""


class LibraryNetwork:
    """See interface.MaskedNetwork.

    model     of transformers, perhaps with an adapter of peft on it
    own_code  whether the model is of the folder's own code; otherwise it is the class that computes the same (family.Library)
    shifted   whether what comes out at a position speaks for the next one
    block     positions per block of block-causal attention; None: full attention
    config    what the folder's config.json says
    source    the folder, or the hub name
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        config: Mapping[str, Any],
        *,
        source: str,
        own_code: bool,
        mask_id: int,
        shifted: bool,
        block: int | None,
    ) -> None:
        self.model, self.family, self.config = model.eval(), family, dict(config)
        self.source, self.own_code, self.mask_id, self.shifted, self.block = source, own_code, mask_id, shifted, block
        self.language_model = bare(model)
        self.modes, self._dropout = Modes(self.language_model, recompute=False), False
        self.head = self.language_model.get_output_embeddings()

    @property
    def module(self) -> torch.nn.Module:
        module: torch.nn.Module = self.model
        return module

    @property
    def decoder(self) -> torch.nn.Module:
        """What is between the ids and the head, of a class of transformers."""
        decoder: torch.nn.Module = self.language_model.get_decoder()
        return decoder

    @property
    def device(self) -> torch.device:
        device: torch.device = self.head.weight.device
        return device

    @property
    def vocabulary_size(self) -> int:
        return int(self.head.weight.shape[0])

    @property
    def length(self) -> int:
        own_name = self.config.get("max_sequence_length")  # LLaDA's code
        return int(own_name or context(self.language_model.config) or UNBOUNDED)

    # ------------------------------------------------------------------ how its layers run

    def recompute(self, on: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them. Raises RelgradError where the model cannot."""
        self.modes = Modes(self.language_model, recompute=on)

    def dropout(self, on: bool) -> None:
        """See interface.MaskedNetwork. All else stays in evaluation mode: some families' code then does another thing."""
        self._dropout = on

    # ------------------------------------------------------------------ what the interface asks

    def hidden(self, ids_BL: Tensor, valid_BL: Tensor, block_BL: Tensor) -> Tensor:
        """[B, L, H]. Block-causal attention is that of the network's own blocks, which are counted from the row's beginning."""
        out_BLH = self.outputs(ids_BL, valid_BL)
        return delayed(out_BLH) if self.shifted else out_BLH

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """float32 [M, V] (float64 of a float64 network)."""
        logits_MV: Tensor = self.head(hidden_MH)
        return logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()

    def while_writing(self) -> MaskedNetwork:
        """See interface.CachesBlocks."""
        if self.block is None or self.own_code or self.shifted:
            return self
        return BlockCache(self, self.block)

    # ------------------------------------------------------------------ what is under it

    def outputs(self, ids_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, L, H]: what comes out at every position, whichever position it speaks for."""
        self.modes.score(dropout=self._dropout)
        position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        sight = Sight(valid_BL, position_BL, self.block)
        if not self.own_code:
            visible = None if sight.everything else sight.visible()
            return hidden_states(self.decoder, ids_BL, position_BL, visible)
        if self.family.reads_padding or sight.everything:
            return self._head_input(ids_BL, sight)
        return self._each_length(ids_BL, valid_BL)

    def _each_length(self, ids_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """The same for code that does not look at padding: rows of each length by themselves."""
        length_B = valid_BL.sum(1)
        rows, parts = [], []
        for length in torch.unique(length_B).tolist():
            row_R = (length_B == length).nonzero()[:, 0]
            part = self.outputs(ids_BL[row_R, :length], valid_BL[row_R, :length])
            rows.append(row_R)
            parts.append(torch.nn.functional.pad(part, (0, 0, 0, ids_BL.shape[1] - length)))
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _head_input(self, ids_BL: Tensor, sight: Sight) -> Tensor:
        """What the own code's forward hands to its head, which itself is left with nothing to compute."""
        head_inputs: list[Tensor] = []

        def take(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            head_inputs.append(inputs[0])
            return (inputs[0][:, :0],)

        hook = self.head.register_forward_pre_hook(take)
        try:
            self.language_model(input_ids=ids_BL, **self.family.inputs(sight, self.head.weight.dtype))
        finally:
            hook.remove()
        if len(head_inputs) != 1:
            raise RelgradError(
                f"{type(self.language_model).__name__}: its forward calls its head {len(head_inputs)} times, not once, so that its "
                "hidden states cannot be had. Leave policy.trust_remote_code out where the family has a class of transformers"
            )
        return head_inputs[0]


def delayed(out_BLH: Tensor) -> Tensor:
    """Of outputs that speak for the next position: entry i is what came out at i - 1; the first is its own."""
    return torch.cat([out_BLH[:, :1], out_BLH[:, :-1]], 1)
