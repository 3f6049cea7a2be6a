"""Divergence estimators: their expectations and gradients, exactly, by summing over a small categorical."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation, log_probs
from relgrad.objectives.divergences import categorical_kl, k1, k2, k3

Z = torch.tensor([0.4, -0.7, 1.1, 0.2], dtype=torch.float64)
Z_REF = torch.tensor([-0.3, 0.5, 0.9, 0.0], dtype=torch.float64)


def expected_gradient(estimator) -> Tensor:
    """E_{v ~ pi}[d estimator(log pi(v)) / dz]: what a loss term on on-policy samples does on average."""
    z = Z.clone().requires_grad_()
    logp = torch.log_softmax(z, -1)
    (gradient,) = torch.autograd.grad((logp.exp().detach() * estimator(logp)).sum(), z)
    return gradient


def kl_forward_gradient() -> Tensor:
    """d KL(pi || ref) / dz_v = pi_v (Delta_v - KL)."""
    p, delta = Z.softmax(-1), Z.log_softmax(-1) - Z_REF.log_softmax(-1)
    return p * (delta - (p * delta).sum())


@pytest.mark.parametrize("estimator", [k1, k3])
def test_unbiased(estimator):
    p, logp, ref = Z.softmax(-1), Z.log_softmax(-1), Z_REF.log_softmax(-1)
    by_hand = sum(a * math.log(a / b) for a, b in zip(p.tolist(), Z_REF.softmax(-1).tolist(), strict=True))
    assert (p * estimator(logp, ref)).sum().item() == pytest.approx(by_hand, abs=1e-12)


def test_k2_is_biased_but_known():
    p, logp, ref = Z.softmax(-1), Z.log_softmax(-1), Z_REF.log_softmax(-1)
    by_hand = sum(a * (b - c) ** 2 / 2 for a, b, c in zip(p.tolist(), logp.tolist(), ref.tolist(), strict=True))
    assert (p * k2(logp, ref)).sum().item() == pytest.approx(by_hand, abs=1e-12)


def test_known_values():
    logp, ref = torch.tensor([0.0, -1.0]), torch.tensor([-1.0, 0.0])
    assert k1(logp, ref).tolist() == [1.0, -1.0]
    assert k2(logp, ref).tolist() == [0.5, 0.5]
    assert k3(logp, ref).tolist() == pytest.approx([math.exp(-1) - 1 + 1, math.e - 1 - 1])


def test_k3_is_non_negative_and_zero_at_equality():
    logp = torch.linspace(-30, 0, 301)
    assert torch.equal(k3(logp, logp), torch.zeros_like(logp))
    assert (k3(logp, logp + 1e-4) >= 0).all()
    assert (k3(logp, logp.flip(0)) >= 0).all()


def test_k1_has_no_expected_gradient():
    gradient = expected_gradient(lambda logp: k1(logp, Z_REF.log_softmax(-1)))
    torch.testing.assert_close(gradient, torch.zeros_like(Z), atol=1e-12, rtol=0)


def test_k2_has_the_gradient_of_kl_from_the_policy():
    gradient = expected_gradient(lambda logp: k2(logp, Z_REF.log_softmax(-1)))
    torch.testing.assert_close(gradient, kl_forward_gradient(), atol=1e-12, rtol=0)


def test_plain_k3_has_the_gradient_of_kl_from_the_reference():
    # d KL(ref || pi) / dz = pi - ref
    gradient = expected_gradient(lambda logp: k3(logp, Z_REF.log_softmax(-1)))
    torch.testing.assert_close(gradient, Z.softmax(-1) - Z_REF.softmax(-1), atol=1e-12, rtol=0)


def test_corrected_k3_has_the_gradient_of_kl_from_the_policy():
    gradient = expected_gradient(lambda logp: k3(logp, Z_REF.log_softmax(-1)) * (logp - logp.detach()).exp())
    torch.testing.assert_close(gradient, kl_forward_gradient(), atol=1e-12, rtol=0)


def test_categorical_kl_known_answer_and_gradient():
    p = torch.tensor([0.5, 0.25, 0.25])
    q = torch.tensor([0.25, 0.25, 0.5])
    assert categorical_kl(p.log(), q.log()).item() == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(categorical_kl(z.log_softmax(-1), Z_REF.log_softmax(-1)), z)
    torch.testing.assert_close(gradient, kl_forward_gradient(), atol=1e-12, rtol=0)


def test_categorical_kl_with_zeros():
    zero = torch.tensor([0.5, 0.5, 0.0]).log()
    full = torch.tensor([0.25, 0.25, 0.5]).log()
    assert categorical_kl(zero, full).item() == pytest.approx(math.log(2))
    assert categorical_kl(zero, zero).item() == 0
    assert categorical_kl(full, zero).item() == math.inf


def test_categorical_kl_on_a_truncated_support_has_a_finite_gradient():
    law = Truncation(top_k=2)
    logits_NV = Z[None].float().requires_grad_()
    support_NV = law.support(logits_NV)
    kl_N = categorical_kl(log_probs(logits_NV, law, support_NV), log_probs(Z_REF[None].float(), law, support_NV))
    (gradient_NV,) = torch.autograd.grad(kl_N.sum(), logits_NV)
    keep = support_NV[0]
    p, q = Z[keep].softmax(-1), Z_REF[keep].softmax(-1)
    delta = (p / q).log()
    expected = torch.zeros_like(Z).masked_scatter(keep, p * (delta - (p * delta).sum()))
    torch.testing.assert_close(gradient_NV[0].double(), expected, atol=1e-6, rtol=1e-5)
