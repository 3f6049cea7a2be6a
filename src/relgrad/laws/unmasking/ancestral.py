r"""MDLM's ancestral sampler: every masked position is revealed by itself (Sahoo et al. 2024, arXiv:2406.07524).

    a = (alpha_s - alpha_t) / (1 - alpha_t) = 1 / steps left,       alpha_t = 1 - t: the linear schedule
    P = a^|S| (1 - a)^(|M| - |S|) prod_{i in S} q_i(x_i)

The last step of a block reveals what is left. A step may reveal nothing. The powers of a are the same for all weights: `free`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places


@dataclass(frozen=True)
class Ancestral:
    """See the module and interface.Law. `Places.quota_N` has no effect."""

    truncation: Truncation
    ordered = rewrites = adaptive = False

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """The positions that will be revealed; the others stay masked."""
        return uniform_M * places.left_N[places.step_M] < 1, places.token_M

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
        """|S| log a + (|M| - |S|) log(1 - a)."""
        revealed_N = places.sum((outcome.token_M != MASKED).double())
        return self._log_chances(places, revealed_N)

    def free_entropy(self, places: Places) -> Tensor:
        """|M| times the entropy of a coin of chance a."""
        return -self._log_chances(places, places.count_N.double() / places.left_N)

    def _log_chances(self, places: Places, revealed_N: Tensor) -> Tensor:
        left_N = places.left_N.double()
        masked_N = places.count_N - revealed_N
        return torch.xlogy(revealed_N, 1 / left_N) + torch.xlogy(masked_N, (left_N - 1) / left_N)
