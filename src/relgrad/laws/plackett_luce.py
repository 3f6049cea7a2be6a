r"""Plackett-Luce: an ordered choice of K of N things without replacement, by one score each (Plackett 1975).

    P(a_1, ..., a_K) = prod_k  exp s_{a_k} / sum_{j not in a_1 .. a_{k-1}} exp s_j

Things that cannot be chosen have the score -inf. Adding Gumbel noise to the scores and taking the K largest draws from it
(Yellott 1977). The k-th choice is a categorical one given those before: `choices` gives each its row of scores.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(score_BN: Tensor, count: int, uniform_BN: Tensor) -> Tensor:
    """int64 [B, count]: what is chosen, in order; -1 where a row has fewer things to choose from. One uniform number a thing."""
    gumbel_BN = -(-uniform_BN.double().clamp(min=1e-300).log()).log()
    noisy_BK, chosen_BK = (score_BN.double() + gumbel_BN).topk(min(count, score_BN.shape[1]), -1)
    chosen_BK = chosen_BK.masked_fill(noisy_BK == -torch.inf, -1)
    return torch.nn.functional.pad(chosen_BK, (0, count - chosen_BK.shape[1]), value=-1)


def choices(score_NJ: Tensor, chosen_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The choices of N ordered draws one by one, M in all, as categorical ones over J things.

    Returns (log-probabilities [M, J], -inf for what cannot be chosen any more; what was chosen [M]; which draw it belongs to [M]).
    """
    row_M, number_M = (chosen_NK >= 0).nonzero(as_tuple=True)
    chosen_NKJ = (
        torch.nn.functional.one_hot(chosen_NK.clamp(min=0), score_NJ.shape[1]).bool() & (chosen_NK >= 0)[..., None]
    )
    before_NKJ = torch.nn.functional.pad(chosen_NKJ.cummax(1).values, (0, 0, 1, 0))[:, :-1]
    score_MJ = score_NJ[row_M].masked_fill(before_NKJ[row_M, number_M], -torch.inf)
    return torch.log_softmax(score_MJ, -1), chosen_NK[row_M, number_M], row_M


def entropy(logp_MJ: Tensor) -> Tensor:
    """[M], nats."""
    return -(logp_MJ.exp() * logp_MJ.masked_fill(logp_MJ == -torch.inf, 0.0)).sum(-1)
