r"""Divergence of the policy from its reference, from samples or exactly. Pure; nats.

With Delta = log pi - log pi_ref at a decision drawn from pi (Schulman 2020, "Approximating KL divergence"):

    k1 = Delta                    unbiased for KL(pi || pi_ref); as a loss term its expected gradient is zero, so it
                                  belongs in the reward
    k2 = Delta^2 / 2              biased; its gradient is that of KL(pi || pi_ref) on policy
    k3 = exp(-Delta) - 1 + Delta  unbiased, non-negative, low variance; its plain gradient is that of KL(pi_ref || pi).
                                  Times the importance ratio (DeepSeek-V3.2; TRL `use_bias_correction_kl`) it is that
                                  of KL(pi || pi_ref)
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """log pi - log pi_ref, any shape. Assumes decisions drawn from pi. Use it in the reward, detached."""
    return logp - reference_logp


def k2(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2, any shape."""
    return (logp - reference_logp).square() / 2


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """exp(log pi_ref - log pi) - 1 + log pi - log pi_ref, any shape; >= 0, 0 exactly at equality."""
    delta = reference_logp - logp
    return torch.expm1(delta) - delta


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis of two normalised log-distributions; entries with p = 0 contribute 0.

    An entry with p > 0 and q = 0 gives inf: the reference cannot draw what the policy can. The gradient is
    sum_v p_v (log p_v - log q_v) grad log p_v: the other term, sum_v p_v grad log p_v, is 0 because p is normalised. Left
    out, it leaves no rounding noise, and at p = q the gradient is exactly 0 (Adam would make full steps of the noise).
    There is no gradient in log_q, and no second derivative.
    """
    p = log_p.detach().exp()
    # entries outside the support may be -inf - -inf: chosen before the product, they are 0 and not 0 * nan
    weight = p * torch.where(p > 0, log_p.detach() - log_q.detach(), torch.zeros_like(p))
    slope = (weight * torch.where(p > 0, log_p, torch.zeros_like(p))).sum(-1)
    # at an infinite divergence there is nothing to follow, and inf - inf would be nan
    return weight.sum(-1) + torch.where(slope.isfinite(), slope - slope.detach(), torch.zeros_like(slope))
