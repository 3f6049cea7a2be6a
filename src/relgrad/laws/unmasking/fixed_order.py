r"""Positions in an order that the network does not decide.

    random         S uniform among the quota-subsets of the masked set M:   P = 1 / C(|M|, quota) prod_{i in S} q_i(x_i)
    left_to_right  S the first ones:                                        P = prod_{i in S} q_i(x_i)

The first factor is the same for all weights: it is in `free`, and the mass of all outcomes is 1. Exact (likelihoods, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places, log_choose


@dataclass(frozen=True)
class FixedOrder:
    """See the module and interface.Law."""

    truncation: Truncation
    order: Literal["random", "left_to_right"]
    ordered = rewrites = adaptive = False

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """The positions that will be revealed; the others stay masked."""
        number_M = places.number_M if self.order == "left_to_right" else places.highest(uniform_M)
        return number_M < places.quota_N[places.step_M], places.token_M

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """A token for every position that was asked about."""
        token_C, _ = tokens.draw(logits_CV, self.truncation, uniform_C2[:, 1])
        return Outcome(token_C, torch.zeros_like(token_C))

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        """The revealed positions."""
        return outcome.token_M != MASKED

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
        """Sums over the revealed positions."""
        truncations = self.truncation, reference_truncation or self.truncation
        values = tokens.terms(logits_CV, truncations, outcome.token_M, support_CV, reference_CV, entropy)
        return [places.sum(value_C) for value_C in values]

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """-log C(|M|, quota) of a random order, 0 of left to right."""
        return -self.free_entropy(places)

    def free_entropy(self, places: Places) -> Tensor:
        """log C(|M|, quota) of a random order, 0 of left to right."""
        ways_N = log_choose(places.count_N, places.quota_N)
        return ways_N if self.order == "random" else torch.zeros_like(ways_N)
