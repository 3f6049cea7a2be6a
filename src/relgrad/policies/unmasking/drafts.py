"""Drafts: what the network would write in all masked positions at once, at a state on the way (MDPO's x_0 predictions)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from relgrad.policies.unmasking.engine import LOGITS, Engine
from relgrad.policies.unmasking.rows import NO_PLACE


@torch.no_grad()
def filled(engine: Engine, trace: Mapping[str, Tensor], group_B: Tensor, state_BE: Tensor, mask_id: int) -> Tensor:
    """int64 [B, E]: the states with the most probable token in every masked position, of whatever block."""
    row_M, number_M = ((state_BE == mask_id) & (trace["place_GE"][group_B] != NO_PLACE)).nonzero(as_tuple=True)
    if not len(row_M):
        return state_BE
    hidden_MH = engine.hidden(trace, group_B, state_BE, (row_M, number_M))
    size = max(LOGITS // engine.network.vocabulary_size, 1)
    token_M = torch.cat([engine.logits(piece).argmax(-1).cpu() for piece in hidden_MH.split(size)])
    return state_BE.index_put((row_M, number_M), token_M)
