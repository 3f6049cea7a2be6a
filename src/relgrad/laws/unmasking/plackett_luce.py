r"""Positions drawn one after the other by how sure the network is there, whatever token it then draws: Gumbel top-k.

    P = prod_{m = 1 .. quota}  exp(s_{a_m} / sigma) / sum_{j in M, not a_1 .. a_(m-1)} exp(s_j / sigma)   x   prod_{i in S} q_i(x_i)

The scores s_j are of the network's distribution p_j at the position, untempered or over the temperature, never truncated:

    confidence  max_v log p_j(v)
    margin      the difference of the two largest probabilities
    entropy     -H(p_j)

Taking the largest s_j / sigma + Gumbel noise draws just so, in this order (Kool et al. 2019, arXiv:1903.06059). The order in a step
is part of the outcome. Exact, and smooth in the weights: small sigma approaches the arg-max of the field's samplers
(Dream's `alg_temp` is this sigma on probabilities).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import at_least_float32
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places
from relgrad.objectives.divergences import categorical_kl

Score = Literal["confidence", "margin", "entropy"]
NOWHERE = -1e30
"""The score of padding: finite, so that no gradient is inf - inf, and without mass beside any other."""


@dataclass(frozen=True)
class PlackettLuce:
    """See the module and interface.Law. `order_temperature` is sigma > 0; `tempered`: p_j is over the truncation's temperature."""

    truncation: Truncation
    score: Score = "confidence"
    order_temperature: float = 1.0
    tempered: bool = False
    ordered, rewrites, adaptive = True, False, False

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """All."""
        return torch.ones_like(places.step_M, dtype=torch.bool), places.token_M

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """The quota of highest s / sigma + Gumbel, in this order, and a token for each."""
        tiny = torch.finfo(torch.float32).tiny
        gumbel_C = -(-uniform_C2[:, 0].clamp(min=tiny).log()).log()
        rank_C = places.highest(self.scores(logits_CV) + gumbel_C)
        token_C, _ = tokens.draw(logits_CV, self.truncation, uniform_C2[:, 1])
        revealed_C = rank_C < places.quota_N[places.step_M]
        return Outcome(torch.where(revealed_C, token_C, MASKED), torch.where(revealed_C, rank_C, 0))

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
        """Of the order, position by position given those before it, and of the tokens."""
        revealed_C = outcome.token_M != MASKED
        law = replace(self, truncation=reference_truncation or self.truncation)
        written = tokens.terms(
            logits_CV[revealed_C],
            (self.truncation, law.truncation),
            outcome.token_M[revealed_C],
            None if support_CV is None else support_CV[revealed_C],
            None if reference_CV is None else reference_CV[revealed_C],
            entropy,
        )
        reference_C = None if reference_CV is None else law.scores(reference_CV)
        order = self._order_terms(self.scores(logits_CV), places, outcome, reference_C, entropy)
        shown = places.only(revealed_C)
        return [shown.sum(value_C) + value_N for value_C, value_N in zip(written, order, strict=True)]

    def scores(self, logits_CV: Tensor) -> Tensor:
        """[C]: s / sigma; differentiable."""
        logits_CV = at_least_float32(logits_CV)
        logp_CV = torch.log_softmax(logits_CV / self.truncation.temperature if self.tempered else logits_CV, -1)
        if self.score == "confidence":
            score_C = logp_CV.max(-1).values
        elif self.score == "margin":
            first_C, second_C = logp_CV.topk(2, -1).values.exp().unbind(-1)
            score_C = first_C - second_C
        else:
            score_C = -tokens.entropy_of(logp_CV)
        return score_C / self.order_temperature

    def _order_terms(
        self, score_C: Tensor, places: Places, outcome: Outcome, reference_C: Tensor | None, entropy: bool
    ) -> list[Tensor]:
        """[N] each: of the positions that were drawn, each among those that were left, by their scores and the reference's."""
        revealed_C = outcome.token_M != MASKED
        turn_C = torch.where(revealed_C, outcome.order_M, len(places.step_M) + places.number_M)
        order_NK = places.table(turn_C, 3 * len(places.step_M)).argsort(-1)
        drawn_NK = torch.arange(order_NK.shape[1], device=order_NK.device) < places.sum(revealed_C.long())[:, None]

        def in_turn(score_C: Tensor) -> tuple[Tensor, Tensor]:
            """([N, K] scores as the positions were drawn, [N, K] the logarithm of the mass that was left before each)."""
            score_NK = places.table(score_C, NOWHERE).gather(-1, order_NK)
            return score_NK, score_NK.flip(-1).logcumsumexp(-1).flip(-1)

        score_NK, rest_NK = in_turn(score_C)
        values = [torch.where(drawn_NK, score_NK - rest_NK, 0.0)]
        if entropy or reference_C is not None:
            law_NKK = _among_the_rest(score_NK, rest_NK, drawn_NK)
            if entropy:
                values.append(torch.where(drawn_NK, tokens.entropy_of(law_NKK), 0.0))
            if reference_C is not None:
                other_NKK = _among_the_rest(*in_turn(reference_C), drawn_NK)
                values.append(torch.where(drawn_NK, categorical_kl(law_NKK, other_NKK), 0.0))
        return [value_NK.sum(-1) for value_NK in values]

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """0."""
        return torch.zeros(places.steps, dtype=torch.float64)

    def free_entropy(self, places: Places) -> Tensor:
        """0."""
        return torch.zeros(places.steps, dtype=torch.float64)


def _among_the_rest(score_NK: Tensor, rest_NK: Tensor, drawn_NK: Tensor) -> Tensor:
    """[N, K, K]: at every turn the log-probability of every position, -inf for those that were drawn before it and for padding."""
    width = score_NK.shape[1]
    left_KK = torch.ones(width, width, dtype=torch.bool, device=score_NK.device).triu()
    allowed_NKK = left_KK & (score_NK > NOWHERE / 2)[:, None, :] & drawn_NK[:, :, None]
    logp_NKK = score_NK[:, None, :] - rest_NK[:, :, None]
    return torch.where(allowed_NKK, logp_NKK, -torch.inf)
