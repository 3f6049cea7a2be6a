"""What a policy that unmasks asks of its network, whatever the family: attention, shift and heads are the network's own."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

PROMPT = -1
"""The block number of prompt positions."""


class MaskedNetwork(Protocol):
    """A network that is given rows with masks and says, position by position, what stands there.

    mask_id          the id of the mask
    vocabulary_size  V: how many logits a position has
    length           how many positions a row can have
    module           the weights: what a keeper of weights holds, trains and puts others in place of
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def mask_id(self) -> int: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def module(self) -> torch.nn.Module: ...

    def hidden(self, ids_BL: Tensor, valid_BL: Tensor, block_BL: Tensor) -> Tensor:
        """[B, L, H], differentiable: entry i speaks for position i (a shift of the family is undone in here).

        ids_BL    int64; the text of a row begins at column 0, which is position 0
        valid_BL  bool; False at the padding behind shorter rows, which nothing may look at
        block_BL  int64; the block of every position: PROMPT (-1) in the prompt, 0, 1, ... in the answer, in order. Block-causal
                  networks look at blocks up to their own, networks of full attention at everything valid. Anything at padding

        All three are on the network's device. What it says at padding means nothing. Rows do not depend on each other.
        """
        ...

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """float32 [M, V]: logits at chosen positions of `hidden`, of every id, also of those that are never written."""
        ...

    def dropout(self, on: bool) -> None:
        """Whether layers of dropout drop from now on; at first they do not."""
        ...


@runtime_checkable
class CachesBlocks(Protocol):
    """A network that may have an exact cache for rows that are being written and keep what is written."""

    def while_writing(self) -> MaskedNetwork:
        """The network for one batch of rows, which come in the same order in every call.

        At the masked positions of the block that is being written it says what the network says; elsewhere it means nothing. Where
        there is no exact cache it is the network itself.
        """
        ...
