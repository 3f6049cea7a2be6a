"""Blocks, and what a step has to reveal: a function of its number and of the state before it, so that scoring finds it again.

    block b      written positions b * block .. (b + 1) * block - 1, counted along the positions that are written
    steps        S steps for every block. Where the law does not adapt, step t belongs to block t // S, and reveals
                 ceil(masked positions of the block / steps that the block has left): LLaDA's even shares, the larger ones first
    adaptive     a step belongs to the first block with a mask, and reveals at least ceil(block / S) of it
    remask       after step i = 0 .. S - 2 of a block round(share_(i + 1) * block) of it are masked again, and none after the last

A text is finished where nothing is masked any more, and where a whole block before the current one holds an end of sequence: what
would follow is never read, and is not written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.laws.unmasking.interface import MASKED, Law, Places


class Work(NamedTuple):
    """What N steps have to do. `at` names the positions of `places`: (step, number of the written position)."""

    places: Places
    at: tuple[Tensor, Tensor]
    live_N: Tensor
    """bool [N]: whether the step is one at all: the text is not finished, and the block has something to change."""


@dataclass(frozen=True)
class Schedule:
    """See the module. `block_steps` is S; `end_ids` end a text; none where no end of sequence is written."""

    block: int
    block_steps: int
    shares: tuple[float, float]
    mask_id: int
    end_ids: tuple[int, ...]

    def work(self, law: Law, state_NE: Tensor, there_NE: Tensor, step_N: Tensor) -> Work:
        """The steps number `step_N` from the states given; `there_NE` is False behind the written positions of a row."""
        masked_NE = (state_NE == self.mask_id) & there_NE
        block_E = torch.arange(state_NE.shape[1]) // self.block
        current_N = self._current(law, masked_NE, block_E, step_N)
        inside_NE = there_NE & (block_E == current_N[:, None])
        changing_NE = inside_NE if law.rewrites else inside_NE & masked_NE
        live_N = ~self._finished(state_NE, there_NE, block_E < current_N[:, None]) & changing_NE.any(-1)
        changing_NE = changing_NE & live_N[:, None]
        row_M, number_M = changing_NE.nonzero(as_tuple=True)
        at = (row_M, number_M)
        token_M = torch.where(masked_NE[at], MASKED, state_NE[at])
        left_N = self.block_steps - step_N % self.block_steps
        quota_N = self._quota(law, changing_NE.sum(-1), inside_NE.sum(-1), left_N)
        return Work(Places(at[0], token_M, quota_N, left_N, changing_NE.sum(-1)), at, live_N)

    def _current(self, law: Law, masked_NE: Tensor, block_E: Tensor, step_N: Tensor) -> Tensor:
        """int64 [N]: the block that is written; behind the last one where nothing is masked."""
        if not law.adaptive:
            return step_N // self.block_steps
        return torch.where(masked_NE, block_E, len(block_E)).amin(-1)

    def _finished(self, state_NE: Tensor, there_NE: Tensor, before_NE: Tensor) -> Tensor:
        """bool [N]: whether a block that is whole holds an end of sequence."""
        if not self.end_ids:
            return torch.zeros(len(state_NE), dtype=torch.bool)
        ends_NE = torch.isin(state_NE, torch.tensor(self.end_ids))
        return (ends_NE & there_NE & before_NE).any(-1)

    def _quota(self, law: Law, changing_N: Tensor, block_N: Tensor, left_N: Tensor) -> Tensor:
        """int64 [N]; see interface.Places."""
        if law.rewrites:
            start, end = self.shares
            done_N = self.block_steps + 1 - left_N  # steps of the block when this one is over
            slope = (end - start) / max(self.block_steps - 1, 1)
            again_N = ((start + slope * done_N.double()) * changing_N).round().long()
            return torch.where(left_N == 1, 0, again_N)
        if law.adaptive:
            return torch.minimum(changing_N, -(-block_N // self.block_steps))
        return -(-changing_N // left_N)
