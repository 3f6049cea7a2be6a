r"""A head that learns which filled-in tokens are wrong, for remasking them when text is written in several steps.

    y ~ p(. | x) at the masked positions,   BCE(critic(x filled with y)_i, 1[y_i != truth_i])     summed over them

The fills are drawn from the model's own (detached) distribution, so the head is trained on the mistakes it will meet
(in the manner of ELECTRA, Clark et al. 2020, arXiv:2003.10555, with generator and discriminator in one network).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from relgrad.laws import categorical
from relgrad.networks.diffusion_gpt.network import GPT


def critic_loss(
    model: GPT,
    ids_BL: Tensor,
    valid_BL: Tensor,
    at: tuple[Tensor, Tensor],
    logits_NV: Tensor,
    label_N: Tensor,
    uniform_N: Tensor,
) -> Tensor:
    """Summed binary cross-entropy (nats) at `at` (rows, columns), filled from `logits_NV` by one uniform number each."""
    uniform_N = uniform_N.to(logits_NV.device)
    token_N, _, _ = categorical.sample(logits_NV.detach(), categorical.Truncation(), uniform_N=uniform_N)
    filled_BL = ids_BL.index_put(at, token_N)
    logit_N = model.critic(model.hidden(filled_BL, valid_BL)[at])
    return functional.binary_cross_entropy_with_logits(logit_N, (token_N != label_N).to(logit_N.dtype), reduction="sum")
