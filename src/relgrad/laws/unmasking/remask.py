r"""All masked positions are filled in, then some of the block are masked again, also of what stood there before.

    y_i ~ q_i at the masked positions,   R uniform among the subsets of `quota` positions of the block,   R is masked again

    P(x') = 1 / C(block, quota)  prod_{i masked before, not in R} q_i(y_i)

What was drawn at a position of R is forgotten, so its probabilities add up to 1. R is read off the state after the step, and does
not depend on the network: exact. Early tokens are drawn anew in the light of later ones (`denoise` of fill-in with
`remask: random`; ReMDM, arXiv:2503.00307).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places, log_choose


@dataclass(frozen=True)
class Remask:
    """See the module and interface.Law. The places are all positions of the block, written or not."""

    truncation: Truncation
    ordered, rewrites, adaptive = False, True, False

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """The masked positions that are not masked again; the others are masked, or stay as they are."""
        again_M = places.highest(uniform_M) < places.quota_N[places.step_M]
        return (places.token_M == MASKED) & ~again_M, places.token_M.masked_fill(again_M, MASKED)

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """A token for every position that was asked about."""
        token_C, _ = tokens.draw(logits_CV, self.truncation, uniform_C2[:, 1])
        return Outcome(token_C, torch.zeros_like(token_C))

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        """The positions that were filled in and stayed."""
        return (places.token_M == MASKED) & (outcome.token_M != MASKED)

    def terms(
        self,
        logits_CV: Tensor,
        places: Places,
        outcome: Outcome,
        support_CV: Tensor | None,
        reference_CV: Tensor | None = None,
        entropy: bool = False,
        reference_truncation: Truncation | None = None,
    ) -> list[Tensor]:
        """Sums over the positions that were filled in and stayed."""
        truncations = self.truncation, reference_truncation or self.truncation
        values = tokens.terms(logits_CV, truncations, outcome.token_M, support_CV, reference_CV, entropy)
        return [places.sum(value_C) for value_C in values]

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """-log C(block, quota)."""
        return -self.free_entropy(places)

    def free_entropy(self, places: Places) -> Tensor:
        """log C(block, quota)."""
        return log_choose(places.count_N, places.quota_N)
