"""Keys and values of finished blocks, kept while rows are written: exact where attention is block-causal.

A position of a finished block sees nothing behind it, so what was computed there once stays what it is. A call computes, per row,
the blocks after the kept ones, up to the end of the block that is being written; of these, those without a mask are kept.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from relgrad.networks.masked.attention import hidden_states
from relgrad.networks.masked.interface import MaskedNetwork


class Cacheable(MaskedNetwork, Protocol):
    """A masked network of one of transformers' classes, whose outputs are not shifted."""

    @property
    def decoder(self) -> torch.nn.Module: ...


class BlockCache:
    """A network for the rows of one batch while they are written; see interface.MaskedNetwork.

    block     positions per block of its block-causal attention
    computed  how many positions have gone through the network

    Every call has the same rows, in the same order, and what has been written stays; where it is otherwise, everything is computed
    again. Gradients are not taken.
    """

    def __init__(self, network: Cacheable, block: int) -> None:
        self.network, self.block = network, block
        self.module, self.device, self.mask_id = network.module, network.device, network.mask_id
        self.vocabulary_size, self.length = network.vocabulary_size, network.length
        self.cache: Any = None
        self.kept_B: Tensor | None = None
        self.inside_BK: Tensor | None = None
        self.finished_BL: Tensor | None = None
        self.computed = 0

    @torch.no_grad()
    def hidden(self, ids_BL: Tensor, valid_BL: Tensor, block_BL: Tensor) -> Tensor:
        """[B, L, H]: what the network says at the masked positions of the answer's block that is being written, in every row.

        Elsewhere it means nothing.
        """
        kept_B, inside_BK = self._kept(ids_BL)
        masked_BL = (ids_BL == self.mask_id) & valid_BL
        last_B = self._end(masked_BL, valid_BL, block_BL)
        width = max(int((last_B - kept_B).max()), 1)
        column_W = torch.arange(width, device=ids_BL.device)
        position_BW = kept_B[:, None] + column_W
        within_BW = position_BW < last_B[:, None]
        from_BW = position_BW.clamp_max(ids_BL.shape[1] - 1)
        out_BWH = self._run(ids_BL.gather(1, from_BW), position_BW, within_BW, inside_BK)
        first_B = torch.where(masked_BL.any(1), masked_BL.to(torch.int8).argmax(1), valid_BL.sum(1))
        self._keep(kept_B, first_B // self.block * self.block, within_BW, inside_BK, width)
        self.finished_BL = ids_BL
        hidden_BLH = out_BWH.new_zeros(*ids_BL.shape, out_BWH.shape[-1])
        place_BW = torch.where(within_BW, from_BW, from_BW[:, :1])
        value_BWH = torch.where(within_BW[..., None], out_BWH, out_BWH[:, :1])
        hidden_BLH.scatter_(1, place_BW[..., None].expand_as(value_BWH), value_BWH)
        return hidden_BLH

    def dropout(self, on: bool) -> None:
        """See interface.MaskedNetwork."""
        self.network.dropout(on)

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """See interface.MaskedNetwork."""
        return self.network.logits(hidden_MH)

    def _kept(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """How many positions of every row are kept, and which columns of the cache are a row's own."""
        if self.kept_B is None or self.inside_BK is None or not self._same(ids_BL):
            from transformers import DynamicCache

            self.cache = DynamicCache()
            self.kept_B = torch.zeros(len(ids_BL), dtype=torch.int64, device=ids_BL.device)
            self.inside_BK = torch.zeros(len(ids_BL), 0, dtype=torch.bool, device=ids_BL.device)
        return self.kept_B, self.inside_BK

    def _same(self, ids_BL: Tensor) -> bool:
        """Whether the rows have what the kept blocks had."""
        before_BL, kept_B = self.finished_BL, self.kept_B
        if before_BL is None or kept_B is None or before_BL.shape != ids_BL.shape:
            return False
        beyond_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) >= kept_B[:, None]
        return bool(((before_BL == ids_BL) | beyond_BL).all())

    def _end(self, masked_BL: Tensor, valid_BL: Tensor, block_BL: Tensor) -> Tensor:
        """[B]: where the network's block ends in which the answer's present block ends; the row's end where nothing is masked."""
        length_B = valid_BL.sum(1)
        none = torch.iinfo(block_BL.dtype).max
        present_B1 = block_BL.masked_fill(~masked_BL, none).amin(1, keepdim=True)
        place_L = torch.arange(block_BL.shape[1], device=block_BL.device)
        end_B = torch.where(masked_BL & (block_BL == present_B1), place_L + 1, 0).amax(1)
        end_B = torch.where(end_B > 0, (end_B + self.block - 1) // self.block * self.block, length_B)
        return torch.minimum(end_B, length_B)

    def _run(self, ids_BW: Tensor, position_BW: Tensor, within_BW: Tensor, inside_BK: Tensor) -> Tensor:
        """[B, W, H]; the cache grows by W columns."""
        block_BW = position_BW // self.block
        own_BWW = (block_BW[:, :, None] >= block_BW[:, None, :]) & within_BW[:, None, :]
        own_BWW |= torch.eye(own_BWW.shape[1], dtype=torch.bool, device=own_BWW.device)
        seen_BWK = inside_BK[:, None, :].expand(-1, own_BWW.shape[1], -1)
        visible = torch.cat([seen_BWK, own_BWW], -1)[:, None]
        self.computed += ids_BW.numel()
        return hidden_states(self.network.decoder, ids_BW, position_BW, visible, self.cache)

    def _keep(self, kept_B: Tensor, finished_B: Tensor, within_BW: Tensor, inside_BK: Tensor, width: int) -> None:
        """Of the W columns that the cache grew by, keep those of blocks that are finished."""
        new_B = (torch.minimum(finished_B, kept_B + within_BW.sum(1)) - kept_B).clamp_min(0)
        widest = int(new_B.max())
        self.cache.crop(-(width - widest))
        column_W = torch.arange(widest, device=kept_B.device)
        self.inside_BK = torch.cat([inside_BK, column_W < new_B[:, None]], 1)
        self.kept_B = kept_B + new_B
