"""Whether a network's outputs stand where its shift says, by the loss on given texts.

Masked positions are read twice: as the network's shift says, and the other way round. Weights that were trained one way have a much
lower cross-entropy read that way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.networks.masked.network import LibraryNetwork, delayed

MARGIN = 0.25
"""Nats by which the other way round must be better to be told of: chance differences of a small batch are smaller."""


class Evidence(NamedTuple):
    """Mean masked cross-entropy, in nats: as the network's shift says, and the other way round."""

    as_declared: float
    otherwise: float
    shifted: bool

    @property
    def doubtful(self) -> bool:
        """Whether the other way round is clearly better."""
        return self.otherwise < self.as_declared - MARGIN

    def __str__(self) -> str:
        other = str(not self.shifted).lower()
        return (
            f"masked cross-entropy of the first batch: {self.as_declared:.3f} nats with policy.shift={str(self.shifted).lower()}, "
            f"{self.otherwise:.3f} with shift={other}. What comes out at a position seems to speak for "
            f"{'that position' if self.shifted else 'the next one'}: set policy.shift={other}"
        )


@torch.no_grad()
def shift_evidence(network: LibraryNetwork, ids_BL: Tensor, valid_BL: Tensor, target_BL: Tensor) -> Evidence:
    """The two losses at the masked positions of `ids_BL`, whose true ids are `target_BL`.

    Raises ValueError where nothing is masked.
    """
    masked_BL = (ids_BL == network.mask_id) & valid_BL
    if not bool(masked_BL.any()):
        raise ValueError("no position is masked")
    out_BLH = network.outputs(ids_BL, valid_BL)
    read = {True: delayed(out_BLH), False: out_BLH}
    loss = {
        shifted: float(torch.nn.functional.cross_entropy(network.logits(hidden_BLH[masked_BL]), target_BL[masked_BL]))
        for shifted, hidden_BLH in read.items()
    }
    return Evidence(loss[network.shifted], loss[not network.shifted], network.shifted)
