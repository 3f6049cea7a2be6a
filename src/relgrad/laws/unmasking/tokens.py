"""What a position becomes: softmax with temperature and top-p over a recorded support, its entropy and its KL to a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.laws import categorical
from relgrad.laws.categorical import Truncation
from relgrad.objectives.divergences import categorical_kl


def draw(logits_CV: Tensor, truncation: Truncation, uniform_C: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens int64 [C], log q [C, V] of the law that drew them)."""
    logq_CV = categorical.log_probs(logits_CV, truncation)
    return categorical.invert(logq_CV.exp(), uniform_C), logq_CV


def terms(
    logits_CV: Tensor,
    truncations: tuple[Truncation, Truncation],
    token_C: Tensor,
    support_CV: Tensor | None,
    reference_CV: Tensor | None,
    entropy: bool,
) -> list[Tensor]:
    """[C] each, nats: log q of the token, entropy where wanted, KL to the reference's q where its logits are given.

    `truncations` are those of q and of the reference's q.
    """
    truncation, reference_truncation = truncations
    logq_CV = categorical.log_probs(logits_CV, truncation, support_CV)
    values = [at(logq_CV, token_C)]
    if entropy:
        values.append(entropy_of(logq_CV))
    if reference_CV is not None:
        values.append(categorical_kl(logq_CV, categorical.log_probs(reference_CV, reference_truncation, support_CV)))
    return values


def at(value_CV: Tensor, token_C: Tensor) -> Tensor:
    """[C]: the entry of each row's token."""
    return value_CV.gather(-1, token_C[:, None])[:, 0]


def entropy_of(logp: Tensor) -> Tensor:
    """Entropy over the last axis; entries of probability 0 (-inf) contribute nothing."""
    finite = torch.where(logp.isfinite(), logp, torch.zeros_like(logp))
    return -(torch.where(logp.isfinite(), finite.exp(), torch.zeros_like(logp)) * finite).sum(-1)
