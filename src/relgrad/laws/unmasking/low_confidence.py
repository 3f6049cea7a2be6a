r"""Low-confidence remasking: every masked position drafts, the quota of most confident drafts stay (LLaDA, arXiv:2502.09992).

    x_j ~ q_j for all j in M,   S = the quota of highest c_j(x_j),   the other drafts are forgotten

    P(S, x_S) = prod_{i in S} q_i(x_i)  prod_{j in M without S} F_j,     F_j = sum_v q_j(v) 1[c_j(v) comes after the last of S]

Exact: the second product is the probability that every other draft falls short; with quota |M| it is 1. Without it this is no
probability: every S would have mass 1 by itself, C(|M|, quota) together. Which drafts fall short is read from the weights of the
moment and has no gradient: where a confidence crosses another one, P jumps (likelihoods, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.confidence import IMPOSSIBLE, confidences, from_sample, log_law, log_mass
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places


@dataclass(frozen=True)
class LowConfidence:
    """See the module and interface.Law. `tempered`: the confidence is that of the law that drafts.

    threshold  None here. For threshold.py: the log-probability from which on a draft stays, whatever the quota
    """

    truncation: Truncation
    tempered: bool = False
    threshold: float | None = None
    ordered = rewrites = False

    @property
    def adaptive(self) -> bool:
        return self.threshold is not None

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """All."""
        return torch.ones_like(places.step_M, dtype=torch.bool), places.token_M

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """A draft everywhere, of which the most confident stay."""
        token_C, logq_CV = tokens.draw(logits_CV, self.truncation, uniform_C2[:, 1])
        sure_C = tokens.at(confidences(logits_CV, logq_CV, tempered=self.tempered), token_C)
        stay_N = places.quota_N
        if self.threshold is not None:
            stay_N = torch.maximum(stay_N, places.sum((sure_C >= self.threshold).long()))
        stays_C = places.highest(sure_C) < stay_N[places.step_M]
        return Outcome(torch.where(stays_C, token_C, MASKED), torch.zeros_like(token_C))

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        """All."""
        return torch.ones_like(places.step_M, dtype=torch.bool)

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
        """The log-probability in closed form, the others from the outcome."""
        logp_N = self._log_prob(logits_CV, places, outcome, support_CV)
        reference_N = None
        if reference_CV is not None:
            law = replace(self, truncation=reference_truncation or self.truncation)
            reference_N = law._log_prob(reference_CV, places, outcome, support_CV)
        return from_sample(logp_N, reference_N, entropy)

    def _log_prob(self, logits_CV: Tensor, places: Places, outcome: Outcome, support_CV: Tensor | None) -> Tensor:
        """[N]; differentiable."""
        stays_C, step_C, number_C = outcome.token_M != MASKED, places.step_M, places.number_M
        logq_CV = log_law(logits_CV, self.truncation, support_CV)
        sure_CV = confidences(logits_CV, logq_CV, tempered=self.tempered)
        token_C = outcome.token_M.clamp(min=0)
        sure_C = torch.where(stays_C, tokens.at(sure_CV, token_C), torch.inf)
        least_N = sure_C.new_full((places.steps,), torch.inf).scatter_reduce(0, step_C, sure_C, "amin")
        is_last_C = stays_C & (sure_C == least_N[step_C])
        last_N = torch.where(is_last_C, number_C, MASKED)
        last_N = last_N.new_full((places.steps,), MASKED).scatter_reduce(0, step_C, last_N, "amax")
        least_C1, after_C1 = least_N[step_C][:, None], (number_C > last_N[step_C])[:, None]
        short_CV = (sure_CV < least_C1) | ((sure_CV == least_C1) & after_C1)
        log_prob_N = torch.zeros_like(least_N)
        if self.threshold is not None:
            all_sure_N = least_N >= self.threshold
            short_CV = torch.where(all_sure_N[step_C][:, None], sure_CV < self.threshold, short_CV)
            never_N = ~all_sure_N & (places.sum(stays_C.long()) > places.quota_N)
            log_prob_N = torch.where(never_N, IMPOSSIBLE, log_prob_N)
        written_C = torch.where(stays_C, tokens.at(logq_CV, token_C), 0.0)
        return log_prob_N + places.sum(torch.where(stays_C, written_C, log_mass(logq_CV, short_CV)))

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """0."""
        return torch.zeros(places.steps, dtype=torch.float64)

    def free_entropy(self, places: Places) -> Tensor:
        """0."""
        return torch.zeros(places.steps, dtype=torch.float64)
