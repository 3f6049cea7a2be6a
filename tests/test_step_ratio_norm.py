"""Ratios brought to one scale, decision number by decision number: what changes, and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import PolicyLoss, normalised_by_step
from relgrad.training.grpo import GrpoSettings

EVERY = torch.ones(400, 3, dtype=torch.bool)


def drifted() -> Tensor:
    """Log-ratios as old samples have them: at each step another width, and a mean below 0 that grows with it."""
    width_T = torch.tensor([0.02, 0.1, 0.5])
    noise_BT = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise_BT * width_T - width_T.square() / 2


def terms(log_ratio_BT: Tensor, mask_BT: Tensor, advantage_BT: Tensor | None = None) -> LossTerms:
    behaviour_BT = torch.full_like(log_ratio_BT, -50.0)
    if advantage_BT is None:
        advantage_BT = torch.ones_like(log_ratio_BT)
    return LossTerms(behaviour_BT + log_ratio_BT, behaviour_BT, advantage_BT, mask_BT, float(mask_BT.sum()), 3)


def test_every_step_gets_mean_0_and_the_pooled_spread() -> None:
    raw_BT = drifted()
    found_BT = normalised_by_step(raw_BT, EVERY)
    pooled = raw_BT.var(0, correction=0).mean().sqrt()
    assert torch.allclose(found_BT.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found_BT.std(0, correction=0), pooled.expand(3), rtol=0.06)
    for t in range(3):
        assert torch.equal(found_BT[:, t].argsort(), raw_BT[:, t].argsort())


def test_the_clip_then_acts_at_every_step_and_on_both_sides() -> None:
    """Raw, it hits only the widest step, and decisions that became less likely more often."""

    def clipped(on: bool) -> tuple[list[float], float, float]:
        raw_BT = drifted().requires_grad_()
        sign_BT = torch.where(raw_BT.detach() > raw_BT.detach().mean(0), 1.0, -1.0)
        loss, metrics = PolicyLoss(epsilon=0.2, step_ratio_norm=on)(terms(raw_BT, EVERY, sign_BT))
        (slope_BT,) = torch.autograd.grad(loss, raw_BT)
        share_T = (slope_BT == 0).double().mean(0).tolist()
        return share_T, metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]

    raw_T, raw_low, raw_high = clipped(False)
    assert raw_T[0] == 0.0
    assert raw_T[1] < 0.1 < 0.5 < raw_T[2]
    assert raw_low > 1.4 * raw_high
    even_T, low, high = clipped(True)
    assert max(even_T) - min(even_T) < 0.08
    assert 0.8 < low / high < 1.35


def test_fresh_samples_are_left_as_they_are() -> None:
    advantage_BT = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    found = []
    for on in (False, True):
        logp_BT = torch.full((4, 3), -700.0).requires_grad_()
        given = LossTerms(logp_BT, logp_BT.detach(), advantage_BT, torch.ones(4, 3, dtype=torch.bool), 12.0, 3)
        loss, _ = PolicyLoss(step_ratio_norm=on)(given)
        found.append((loss.detach(), torch.autograd.grad(loss, logp_BT)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_decisions_outside_the_mask_do_not_count_and_single_rows_are_left_alone() -> None:
    raw_BT = drifted()[:6]
    mask_BT = torch.tensor([[True, True, True]] * 3 + [[True, False, False]] * 3)
    mask_BT[1:, 2] = False
    found_BT = normalised_by_step(raw_BT, mask_BT)
    other_BT = torch.where(mask_BT, raw_BT, torch.full_like(raw_BT, 99.0))
    assert torch.equal(found_BT[mask_BT], normalised_by_step(other_BT, mask_BT)[mask_BT])
    assert found_BT[0, 2] == raw_BT[0, 2]
    assert float(found_BT[:3, 1].mean().abs()) < 1e-12


def test_rounding_noise_is_not_blown_up() -> None:
    raw_BT = drifted()
    raw_BT[:, 0] *= 1e-5
    assert float(normalised_by_step(raw_BT, EVERY)[:, 0].abs().max()) < 1e-3


def test_the_divergence_keeps_the_plain_ratio() -> None:
    raw_BT = drifted().float()
    given = terms(raw_BT, EVERY)
    given = LossTerms(**{**vars(given), "reference_logp_BT": given.behaviour_logp_BT - 0.3})
    plain, on = (PolicyLoss(beta=0.1, step_ratio_norm=on)(given)[1]["kl"] for on in (False, True))
    assert plain == on


@pytest.mark.parametrize("options", [{"importance_sampling_level": "sequence"}, {"loss_type": "reinforce"}])
def test_it_is_refused_where_there_are_no_ratios_of_single_decisions(options: dict) -> None:
    with pytest.raises(ValueError, match="step_ratio_norm needs"):
        GrpoSettings(step_ratio_norm=True, **options)
