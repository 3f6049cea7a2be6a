r"""How sure a draft is, how likely another position's draft falls short of it, and entropy and KL from a single outcome.

The confidence of token v at position j is log p_j(v), of the untempered softmax of the logits (as LLaDA has it), or that of the
very law q_j that draws (tempered and truncated, as SDAR has it). *The tie rule*: confidences are rounded to whole GRAINs, and of
equals the left position comes first. Rounding errors of the network are a thousand times smaller, so that where confidences are
equal but for them (all near 1, or no context that tells positions apart) position decides, in drawing and scoring alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.laws import categorical
from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import at_least_float32

GRAIN = 2**-10
"""Nats: a tenth of a percent of a probability."""
IMPOSSIBLE = -100.0
"""Nats, without gradient: in place of -inf for an outcome that other weights drew and these cannot (its ratio is 0)."""


def confidences(logits_CV: Tensor, logq_CV: Tensor, *, tempered: bool) -> Tensor:
    """[C, V] without gradient: log p of every token, in whole GRAINs."""
    logits_CV = at_least_float32(logits_CV.detach())
    logp_CV = logq_CV.detach() if tempered else torch.log_softmax(logits_CV, -1)
    return (logp_CV / GRAIN).round() * GRAIN


def log_law(logits_CV: Tensor, truncation: Truncation, support_CV: Tensor | None = None) -> Tensor:
    """log q [C, V] of the law that drafts."""
    return categorical.log_probs(logits_CV, truncation, support_CV)


def log_mass(logq_CV: Tensor, among_CV: Tensor) -> Tensor:
    """[C]: log of the mass q of the tokens in `among_CV`; IMPOSSIBLE where it is 0. Differentiable."""
    among_CV = among_CV & logq_CV.isfinite()
    some_C = among_CV.any(-1)
    safe_CV = torch.where(among_CV | ~some_C[:, None], torch.where(logq_CV.isfinite(), logq_CV, -1e30), -torch.inf)
    return torch.where(some_C, safe_CV.logsumexp(-1), IMPOSSIBLE)


def from_sample(logp_N: Tensor, reference_N: Tensor | None, entropy: bool) -> list[Tensor]:
    r"""[log pi, entropy where wanted, KL where a reference's log pi is given] of laws without a closed form, from the outcome.

        H ~ -log pi,   KL ~ log pi - log pi_ref,   each times (1 + log pi - sg(log pi))

    On outcomes that this law drew, value and gradient are unbiased: grad H = -E[log pi grad log pi], and
    grad KL = E[(log pi - log pi_ref) grad log pi].
    """
    values = [logp_N]
    slope_N = 1 + logp_N - logp_N.detach()
    if entropy:
        values.append(-logp_N.detach() * slope_N)
    if reference_N is not None:
        values.append((logp_N.detach() - reference_N.detach()) * slope_N)
    return values
