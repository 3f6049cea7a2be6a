"""A policy's way through its network: states of many texts in, logits at chosen written positions out, and the law on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from relgrad.estimators.interface import Wanted
from relgrad.laws.categorical import Truncation
from relgrad.laws.tiled import Support
from relgrad.laws.unmasking.interface import Law, Outcome, Places
from relgrad.networks.masked.interface import PROMPT, CachesBlocks, MaskedNetwork
from relgrad.policies.unmasking.rows import NO_PLACE, written_into

LOGITS = 2**25
"""Logits computed at once (128 MB in float32); with gradients, more than these are computed again in the backward pass."""


class Drawn(NamedTuple):
    """Of N steps with C positions: the outcome, log-probabilities [N] without what is free, supports where tokens are truncated."""

    outcome: Outcome
    logp_N: Tensor
    support: Support | None


class Engine:
    """The network, the ids that it may write, the law of a step, and the length of a block."""

    def __init__(
        self,
        network: MaskedNetwork,
        drawable_K: Tensor,
        law_of: Callable[[Truncation], Law],
        truncation: Truncation,
        block: int,
    ) -> None:
        self.network, self.device, self.block = network, network.device, block
        self._writer: MaskedNetwork | None = None
        self._law_of, self.law = law_of, law_of(truncation)
        excluded_V = torch.ones(network.vocabulary_size, dtype=torch.bool).index_fill(0, drawable_K, False)
        self._excluded_V = excluded_V.to(self.device)

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Inside, logits are divided by this temperature."""
        before = self.law
        self.law = self._law_of(replace(before.truncation, temperature=temperature))
        try:
            yield
        finally:
            self.law = before

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, every call has the rows of one batch that are being written: what a network keeps of finished blocks is used."""
        if isinstance(self.network, CachesBlocks) and not self.law.rewrites:
            self._writer = self.network.while_writing()
        try:
            yield
        finally:
            self._writer = None

    # ------------------------------------------------------------------ the network

    def hidden(
        self,
        trace: Mapping[str, Tensor],
        group_N: Tensor,
        state_NE: Tensor,
        at: tuple[Tensor, Tensor],
        veiled_NL: Tensor | None = None,
    ) -> Tensor:
        """[M, H]: the network's output at written positions `at` (row, number) of N rows.

        Positions of the prompt that are veiled are masked. Rows without such a position are left out. `trace` has the prompts of
        the groups, see rows.py.
        """
        writer = self._writer or self.network
        row_R, local_M = torch.unique(at[0], return_inverse=True)
        if writer is not self.network:  # a cache has every row
            row_R, local_M = torch.arange(len(state_NE)), at[0]
        if not len(row_R):
            row_R = torch.tensor([0])  # nothing is asked, and the answer must still have a gradient
        group_R = group_N[row_R]
        length_R = trace["length_G"][group_R]
        width = int(length_R.max())
        ids_RL = written_into(trace, group_R, state_NE[row_R])[:, :width]
        if veiled_NL is not None:
            ids_RL = torch.where(veiled_NL[row_R, :width], self.network.mask_id, ids_RL)
        valid_RL = torch.arange(width) < length_R[:, None]
        place_RE = trace["place_GE"][group_R].long()
        block_RL = self._blocks(place_RE, trace["row_GL"].shape[1])[:, :width]
        hidden_RLH = writer.hidden(*(t.to(self.device) for t in (ids_RL, valid_RL, block_RL)))
        return hidden_RLH[local_M.to(self.device), place_RE[local_M, at[1]].to(self.device)]

    def _blocks(self, place_RE: Tensor, width: int) -> Tensor:
        """int64 [R, L]: the block of every position; between holes, that of the hole before."""
        block_RE = (torch.arange(place_RE.shape[1]) // self.block).expand_as(place_RE)
        block_RL = torch.full((len(place_RE), width + 1), PROMPT)
        block_RL = block_RL.scatter(1, torch.where(place_RE == NO_PLACE, width, place_RE), block_RE)[:, :width]
        return block_RL.cummax(-1).values

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """float32 [C, V], -inf for ids that are never written."""
        return self.network.logits(hidden_CH).masked_fill(self._excluded_V, -torch.inf)

    # ------------------------------------------------------------------ the law

    def draw(self, hidden_CH: Tensor, places: Places, uniform_C2: Tensor) -> Drawn:
        """The outcome of N steps at the C positions that the law asks about, on the CPU."""
        outcomes, logps, supports = list[Outcome](), list[Tensor](), list[Support]()
        for rows, part in self._pieces(places):
            logits_CV, part = self.logits(hidden_CH[rows]), part.to(self.device)
            outcome = self.law.draw(logits_CV, part, uniform_C2[rows].to(self.device))
            support_CV = self.law.truncation.support(logits_CV) if self.law.truncation.truncates else None
            logps.append(self.law.terms(logits_CV, part, outcome, support_CV)[0].cpu())
            outcomes.append(Outcome(outcome.token_M.cpu(), outcome.order_M.cpu()))
            if support_CV is not None:
                supports.append(Support.pack(support_CV).to("cpu"))
        outcome = Outcome(torch.cat([o.token_M for o in outcomes]), torch.cat([o.order_M for o in outcomes]))
        return Drawn(outcome, torch.cat(logps), Support.concatenate(supports) if supports else None)

    def terms(
        self,
        hidden_CH: Tensor,
        reference_CH: Tensor | None,
        places: Places,
        outcome: Outcome,
        support: Support | None,
        wanted: Wanted,
    ) -> list[Tensor]:
        """[N] each, without what is free: log-probability, entropy where wanted, KL where the reference's output is given."""

        def work(hidden_CH: Tensor, reference_CH: Tensor | None, rows: slice, part: Places) -> list[Tensor]:
            logits_CV, reference_CV, truncation = self.logits(hidden_CH), None, None
            support_CV = None if support is None else support.dense(rows.start, rows.stop, logits_CV.shape[1])
            if wanted.reference is not None and reference_CH is not None:
                with torch.no_grad(), wanted.reference():
                    reference_CV, truncation = self.logits(reference_CH), self.law.truncation
            here = Outcome(outcome.token_M[rows].to(self.device), outcome.order_M[rows].to(self.device))
            support_CV = None if support_CV is None else support_CV.to(self.device)
            places = part.to(self.device)
            return self.law.terms(logits_CV, places, here, support_CV, reference_CV, wanted.entropy, truncation)

        pieces, parts = list(self._pieces(places)), list[list[Tensor]]()
        for rows, part in pieces:
            columns = hidden_CH[rows], None if reference_CH is None else reference_CH[rows], rows, part
            if torch.is_grad_enabled() and len(pieces) > 1:
                parts.append(checkpoint(work, *columns, use_reentrant=False))
            else:
                parts.append(work(*columns))
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def token_logp(self, hidden_MH: Tensor, token_M: Tensor) -> Tensor:
        """float32 [M], nats: log-probability of each token alone, at the law's temperature and without truncation."""

        def work(hidden_MH: Tensor, token_M: Tensor) -> Tensor:
            logp_MV = (self.logits(hidden_MH) / self.law.truncation.temperature).log_softmax(-1)
            return logp_MV.gather(-1, token_M[:, None])[:, 0]

        size, token_M = max(LOGITS // self.network.vocabulary_size, 1), token_M.to(self.device)
        pieces = list(zip(hidden_MH.split(size), token_M.split(size), strict=True))
        if torch.is_grad_enabled() and len(pieces) > 1:
            return torch.cat([checkpoint(work, *piece, use_reentrant=False) for piece in pieces])
        return torch.cat([work(*piece) for piece in pieces])

    def _pieces(self, places: Places) -> Iterator[tuple[slice, Places]]:
        """The steps in runs of about LOGITS logits, each with its stretch of the positions; never none."""
        end_N = places.count_N.cumsum(0)
        piece_N = (end_N - 1).clamp(min=0) // max(LOGITS // self.network.vocabulary_size, 1)
        count_P = torch.unique_consecutive(piece_N, return_counts=True)[1].tolist() or [0]
        first = start = 0
        for count in count_P:
            stop = int(end_N[first + count - 1]) if count else 0
            yield slice(start, stop), places.part(first, first + count)
            first, start = first + count, stop
