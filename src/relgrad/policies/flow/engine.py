"""A flow policy's way through the network: states of many trajectories in, logits at chosen editable positions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from relgrad.estimators.interface import Wanted
from relgrad.laws import ctmc
from relgrad.laws.ctmc import Law
from relgrad.networks.fsdfm.network import DiT
from relgrad.policies.flow.supervised.noise_path import At
from relgrad.policies.flow.symbols import Symbols

LOGITS = 2**25
"""Logits computed at once (128 MB in float32); with gradients, more than these are computed again in the backward pass."""


class Engine:
    """The network, the ids that it may write, the law of a step and its temperature."""

    def __init__(self, model: DiT, symbols: Symbols, law: Law, temperature: float) -> None:
        self.model, self.symbols, self.law = model, symbols, law
        self.temperature, self.device = temperature, model.device
        excluded_V = torch.ones(symbols.size, dtype=torch.bool).index_fill(0, symbols.drawable_K, False)
        self._excluded_V = excluded_V.to(self.device) if bool(excluded_V.any()) else None

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Inside, logits are divided by this temperature."""
        before, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = before

    def hidden(
        self, trace: Mapping[str, Tensor], group_N: Tensor, state_NE: Tensor, step_N: Tensor, steps: int, at: At
    ) -> Tensor:
        """[M, H]: the network's output at editable positions `at` (row, number) of N rows, each at its own step of `steps`.

        Rows without such a position are left out. `trace` has the prompts of the groups: `prompt_GP`, `prompt_length_G`.
        """
        row_R, local_M = torch.unique(at[0], return_inverse=True)
        if not len(row_R):
            row_R = torch.tensor([0])  # nothing is asked, and the answer must still have a gradient
        start_R, positions = trace["prompt_length_G"][group_N[row_R]], state_NE.shape[1]
        width = int(start_R.max()) + positions
        ids_RL = torch.zeros(len(row_R), width, dtype=torch.int64)
        prompt_RP = trace["prompt_GP"][group_N[row_R]][:, :width]
        ids_RL[:, : prompt_RP.shape[1]] = prompt_RP
        ids_RL.scatter_(1, start_R[:, None] + torch.arange(positions), state_NE[row_R])
        valid_RL = None  # known here, on the CPU: attention without a mask takes the faster kernels
        if bool((start_R + positions < width).any()):
            valid_RL = (torch.arange(width) < (start_R + positions)[:, None]).to(self.device)
        student = self.model.config.step_conditioned
        size_R = torch.full((len(row_R),), 1 / steps, device=self.device) if student else None
        hidden_RLH = self.model.hidden(
            ids_RL.to(self.device), (step_N[row_R] / steps).to(self.device), size_R, valid_RL
        )
        return hidden_RLH[local_M.to(self.device), (start_R[local_M] + at[1]).to(self.device)]

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """float32 [M, V]: logits over the temperature, -inf for ids that are never written."""
        logits_MV = self.model.logits(hidden_MH)
        return self._written(logits_MV if self.temperature == 1 else logits_MV / self.temperature)

    def network(self, ids_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        """[N, V] at `at`, which names every editable position (a row ends at its last one), at temperature 1: for losses."""
        last_B = torch.zeros(len(ids_BL), dtype=torch.int64, device=self.device).scatter_reduce(0, at[0], at[1], "amax")
        valid_BL = torch.arange(ids_BL.shape[1], device=self.device) <= last_B[:, None]
        hidden_BLH = self.model.hidden(ids_BL, time_B, step_B, valid_BL)
        return self._written(self.model.logits(hidden_BLH[at]))

    def _written(self, logits_MV: Tensor) -> Tensor:
        """The same logits, in place, with -inf for ids that are never written."""
        return logits_MV if self._excluded_V is None else logits_MV.masked_fill_(self._excluded_V, -torch.inf)

    def draw(self, hidden_MH: Tensor, token_M: Tensor, hazard_M: Tensor, uniform_M2: Tensor) -> tuple[Tensor, Tensor]:
        """(next tokens, their log-probability), each [M]."""
        logits_MV = self.logits(hidden_MH)
        next_M = ctmc.sample(self.law, logits_MV, token_M, hazard_M, uniform_M2)
        return next_M, ctmc.log_prob(self.law, logits_MV, token_M, next_M, hazard_M)

    def chance(self, hidden_MH: Tensor, token_M: Tensor, next_M: Tensor, hazard_M: Tensor) -> tuple[Tensor, Tensor]:
        """([M] the network's probability of each next token, [M] that of the transition which the law makes of it)."""
        logits_MV = self.logits(hidden_MH)
        p_M = logits_MV.softmax(-1).gather(-1, next_M[:, None])[:, 0]
        return p_M, ctmc.log_prob(self.law, logits_MV, token_M, next_M, hazard_M).exp()

    def terms(
        self,
        hidden_MH: Tensor,
        token_M: Tensor,
        next_M: Tensor,
        hazard_M: Tensor,
        reference_MH: Tensor | None,
        wanted: Wanted,
    ) -> tuple[Tensor, ...]:
        """(log-probability, entropy where wanted, exact KL where wanted), each [M]; `reference_MH` is the reference's `hidden`."""
        logits_MV = self.logits(hidden_MH)
        terms = [ctmc.log_prob(self.law, logits_MV, token_M, next_M, hazard_M)]
        if wanted.entropy:
            terms.append(ctmc.entropy(self.law, logits_MV, token_M, hazard_M))
        if wanted.reference is not None and reference_MH is not None:
            with torch.no_grad(), wanted.reference():
                reference_MV = self.logits(reference_MH)
            terms.append(ctmc.kl(self.law, logits_MV, reference_MV, token_M, hazard_M))
        return tuple(terms)

    def by_pieces(self, work: Callable[..., tuple[Tensor, ...]], hidden_MH: Tensor, *columns: Any) -> list[Tensor]:
        """What `work` says of the positions, in pieces of LOGITS logits. Tensors among `columns` are cut along."""
        size = max(LOGITS // self.model.config.vocab_size, 1)
        parts = []
        for first in range(0, max(len(hidden_MH), 1), size):
            piece = slice(first, first + size)
            cut = [c[piece].to(self.device) if isinstance(c, Tensor) else c for c in columns]
            if torch.is_grad_enabled() and len(hidden_MH) > size:
                parts.append(checkpoint(work, hidden_MH[piece], *cut, use_reentrant=False))
            else:
                parts.append(work(hidden_MH[piece], *cut))
        return [torch.cat(column) for column in zip(*parts, strict=True)]
