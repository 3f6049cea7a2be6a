"""How masked positions are filled: the network's logits there, the laws of drawing and scoring, described to an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.laws import categorical, tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.diffusion_gpt.network import GPT
from relgrad.objectives.divergences import categorical_kl


class Fills(NamedTuple):
    """N fills of masked positions. All completions of a prompt share its positions: M different ones, the *spots*.

    masked_GL, length_G    the prompts' ids, and how many of them the network looks at
    group_M, position_M    of every spot: its prompt, and where it is
    support_MV             the recorded support at every spot; None where nothing is truncated
    spot_N, token_N        of every fill: its spot, and what was written
    decision_M, free_N     every fill is a decision of its own, and nothing is free (see estimators/interface.py)
    """

    masked_GL: Tensor
    length_G: Tensor
    group_M: Tensor
    position_M: Tensor
    support_MV: Tensor | None
    spot_N: Tensor
    token_N: Tensor
    decision_M: Tensor
    free_N: Tensor


class Filling:
    """A network, the ids that it may not write, the law that draws and the law that scores."""

    def __init__(
        self, model: GPT, excluded: Sequence[int], truncation: Truncation, scoring: Literal["law", "untempered"]
    ) -> None:
        self.model, self.device, self.truncation = model, model.device, truncation
        self.untempered = scoring == "untempered"
        vocab_size = model.config.vocab_size
        excluded_K = torch.tensor([i for i in excluded if i < vocab_size])
        self.excluded_V = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, excluded_K, True).to(self.device)

    @property
    def scored_law(self) -> Truncation:
        """The law that scores."""
        return Truncation() if self.untempered else self.truncation

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Inside, the law has this temperature."""
        before, self.truncation = self.truncation, replace(self.truncation, temperature=temperature)
        try:
            yield
        finally:
            self.truncation = before

    # ------------------------------------------------------------------ the network

    def logits(self, masked_GL: Tensor, length_G: Tensor, group_M: Tensor, position_M: Tensor) -> Tensor:
        """Logits [M, V] at (group, position), -inf for ids that are never written. Only the groups named are run."""
        return self.written(self.hidden_at(masked_GL, length_G, group_M, position_M))

    def hidden_at(self, masked_GL: Tensor, length_G: Tensor, group_M: Tensor, position_M: Tensor) -> Tensor:
        """[M, H]: the network's output at (group, position). Only the groups named are run."""
        groups, local_M = torch.unique(group_M, return_inverse=True)
        ids_GL, length_G = masked_GL[groups].long(), length_G[groups]
        hidden_GLH = self.hidden_of(ids_GL[:, : int(length_G.max())], length_G)
        return hidden_GLH[local_M.to(self.device), position_M.to(self.device)]

    def hidden_of(self, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        """[B, L, H]: the network's output for padded texts, of each of which it looks at the first `length_B` ids."""
        valid_BL = torch.arange(ids_BL.shape[1])[None] < length_B[:, None]
        return self.model.hidden(ids_BL.to(self.device), valid_BL.to(self.device))

    def written(self, hidden_MH: Tensor) -> Tensor:
        """Logits [M, V], -inf for ids that are never written."""
        return self.model.logits(hidden_MH).masked_fill(self.excluded_V, -torch.inf)

    def scored(self, hidden_MH: Tensor, support_MV: Tensor | None) -> Tensor:
        """log pi [M, V] under the law that scores."""
        logits_MV = self.model.logits(hidden_MH) if self.untempered else self.written(hidden_MH)
        return categorical.log_probs(logits_MV, self.scored_law, support_MV)

    # ------------------------------------------------------------------ described to an estimator

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> Fills:
        """The fills of the cells (row, decision) given; every spot once, whatever the number of rows that need it."""
        trace, (row_N, cell_N) = rollouts.trace, cells_N2.unbind(-1)
        width = trace["position_GT"].shape[1]
        spot_M, spot_N = torch.unique(rollouts.group_B[row_N] * width + cell_N, return_inverse=True)
        group_M, cell_M = spot_M // width, spot_M % width
        return Fills(
            trace["masked_GL"],
            trace["length_G"],
            group_M,
            trace["position_GT"][group_M, cell_M].long(),
            self._support(trace, group_M, cell_M),
            spot_N.to(self.device),
            trace["token_BT"][row_N, cell_N].long().to(self.device),
            torch.arange(len(cells_N2)),
            torch.zeros(len(cells_N2), dtype=torch.float64),
        )

    def hidden(self, choices: Fills) -> Tensor:
        """[M, H]: the network's output at the spots."""
        return self.hidden_at(choices.masked_GL, choices.length_G, choices.group_M, choices.position_M)

    def terms(
        self, choices: Fills, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted
    ) -> Sequence[Tensor]:
        """Log-probability, entropy where wanted, exact KL where wanted, each [N]."""
        logp_MV = self.scored(hidden, choices.support_MV)
        terms = [logp_MV[choices.spot_N, choices.token_N]]
        if wanted.entropy:
            entropy_M = -(logp_MV.exp() * torch.where(logp_MV.isfinite(), logp_MV, 0.0)).sum(-1)
            terms.append(entropy_M[choices.spot_N])
        if wanted.reference is not None and reference_hidden is not None:
            with torch.no_grad(), wanted.reference():
                reference_MV = self.scored(reference_hidden, choices.support_MV)
            terms.append(categorical_kl(logp_MV, reference_MV)[choices.spot_N])
        return terms

    def _support(self, trace: Mapping[str, Tensor], group_M: Tensor, cell_M: Tensor) -> Tensor | None:
        if "support_index" not in trace or self.untempered:
            return None
        used_GT = trace["position_GT"] >= 0
        spot_GT = (used_GT.flatten().cumsum(0) - 1).view_as(used_GT)
        support = tiled.Support(trace["support_offset"], trace["support_index"]).take(spot_GT[group_M, cell_M])
        return support.dense(0, len(group_M), self.model.config.vocab_size).to(self.device)
