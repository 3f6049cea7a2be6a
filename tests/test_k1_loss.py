"""The original's loss as a baseline: it is the formula, and it has the fault that it is kept for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fill_prompts
from relgrad.baselines import k1_loss
from relgrad.baselines.k1_loss import K1Loss
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import LossTerms
from relgrad.core.randomness import generator
from relgrad.objectives.advantages import group_advantages
from relgrad.objectives.losses import PolicyLoss
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
REWARD = torch.tensor([1.0, 0.0, 0.5, 10.0, 11.0, 10.0], dtype=torch.float64)


def terms(advantage_B: Tensor, reference: float = 0.3) -> LossTerms:
    draw = torch.Generator().manual_seed(0)
    logp_BT = (-torch.rand(6, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    mask_BT = torch.tensor([[True, True, True], [True, True, False]] * 3)
    shift_BT = torch.rand(6, 3, generator=draw, dtype=torch.float64)
    return LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=logp_BT.detach(),
        advantage_BT=advantage_B[:, None].expand(-1, 3),
        mask_BT=mask_BT,
        batch_decisions=15.0,
        max_decisions=3,
        reference_logp_BT=logp_BT.detach() - reference * shift_BT,
    )


def seeds_advantages() -> Tensor:
    """As the original has it: minus the group's mean, then minus the batch's mean, over the batch's std + 1e-8."""
    centred = torch.cat([REWARD[:3] - REWARD[:3].mean(), REWARD[3:] - REWARD[3:].mean()])
    return (centred - centred.mean()) / (centred.std() + 1e-8)


@pytest.mark.parametrize("scale", ["none", "batch"])
def test_the_formula(scale: Any):
    advantage_B = group_advantages(REWARD, GROUP, scale=scale)
    batch = terms(advantage_B)
    loss, metrics = K1Loss(beta=0.1)(batch)
    lengths = batch.mask_BT.sum(-1).tolist()
    row_B = [sum(row[:n]) for row, n in zip(batch.logp_BT.tolist(), lengths, strict=True)]
    start_B = [sum(row[:n]) for row, n in zip(batch.reference_logp_BT.tolist(), lengths, strict=True)]
    policy = -sum(a * r for a, r in zip(seeds_advantages().tolist(), row_B, strict=True)) / 6
    gap = sum(r - s for r, s in zip(row_B, start_B, strict=True)) / 6
    assert metrics["pg_loss"] == pytest.approx(policy, rel=1e-6)
    assert metrics["mean_kl"] == pytest.approx(gap)
    assert metrics["kl_penalty"] == pytest.approx(0.1 * gap)
    assert metrics["kl"] == pytest.approx(gap * 6 / 15)
    assert loss.item() == metrics["loss"] == pytest.approx(policy + 0.1 * gap, rel=1e-6)


def test_scaling_by_the_batch_is_not_yet_the_originals():
    """TRL's batch std is of the rewards, prompts' differences included; the original's is of the centred ones."""
    by_rewards = group_advantages(REWARD, GROUP, scale="batch")
    ratio = seeds_advantages() / by_rewards
    expected = (REWARD.std() + 1e-4) / (REWARD - torch.tensor([0.5] * 3 + [31 / 3] * 3)).std()
    torch.testing.assert_close(ratio[ratio.isfinite()], expected.expand(int(ratio.isfinite().sum())), rtol=1e-6, atol=0)
    assert ratio[0] > 5
    same_level = torch.cat([REWARD[:3], REWARD[:3].flip(0)])  # with equal group means the two agree
    centred = same_level - 0.5
    expected = centred / (centred.std() + 1e-8)
    torch.testing.assert_close(group_advantages(same_level, GROUP, scale="batch"), expected, rtol=1e-3, atol=0)


def test_without_spread_and_without_beta_nothing_happens():
    batch = terms(torch.zeros(6, dtype=torch.float64))
    loss, metrics = K1Loss(beta=0.0)(batch)
    (slope_BT,) = torch.autograd.grad(loss, batch.logp_BT)
    assert not slope_BT.any()
    assert metrics == {"loss": 0, "pg_loss": 0, "kl_penalty": 0}
    assert K1Loss(0.0).needs == frozenset()
    assert K1Loss(0.1).needs == {"reference"}


def test_the_reference_has_no_part_in_its_gradient():
    slopes = []
    for reference in (0.0, 0.3, 50.0):
        batch = terms(group_advantages(REWARD, GROUP, scale="none"), reference)
        slopes.append(torch.autograd.grad(K1Loss(beta=0.5)(batch)[0], batch.logp_BT)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


# ---------------------------------------------------------------------- on a fill-in policy


def loop(name: str, **options: Any) -> Grpo:
    """GRPO with the baseline ("k1_loss") or with relgrad's exact divergence."""
    own = (
        {"loss": "relgrad.baselines.k1_loss", "scale_rewards": "none"}
        if name == "k1_loss"
        else {"kl_estimator": "exact"}
    )
    settings = GrpoSettings(
        **{"num_prompts": 5, "num_generations": 8, "beta": 0.5, "learning_rate": 0.01, **own, **options}
    )
    if settings.loss is not None:
        loss = registry.find("losses", settings.loss).build(settings)
    else:
        loss = PolicyLoss(beta=settings.beta, kl_estimator="exact", loss_type="reinforce")
    rewards = RewardSet([NamedReward("right", fill_prompts.right)], 60)
    return Grpo(fill_prompts.policy(), fill_prompts.PROMPTS, rewards, loss, settings, seed=1)


def after_one_step(name: str, shift: float) -> tuple[Tensor, dict[str, float]]:
    """The weights after one step from the same start, with a reference that is `shift` away from it."""
    made = loop(name)
    with torch.no_grad(), made.policy.reference():  # the parameters are the frozen start's here
        for parameter_name, parameter in made.policy.parameters():
            parameter.add_(shift * torch.randn(parameter.shape, generator=generator(3, parameter_name)))
    metrics = made.update().metrics
    return torch.cat([p.detach().flatten().clone() for _, p in made.policy.parameters()]), metrics


def test_its_update_ignores_the_reference_and_ours_does_not():
    weights, logged = {}, {}
    for name in ("k1_loss", "exact"):
        for shift in (0.0, 1.0):
            weights[name, shift], metrics = after_one_step(name, shift)
            logged[name, shift] = metrics["mean_kl"]
    assert torch.equal(weights["k1_loss", 0.0], weights["k1_loss", 1.0]), "bit for bit"
    assert not torch.equal(weights["exact", 0.0], weights["exact", 1.0])
    for name in ("k1_loss", "exact"):
        assert logged[name, 0.0] == pytest.approx(0, abs=1e-5)
        assert abs(logged[name, 1.0]) > 0.1, "it is logged all the same"


@pytest.mark.parametrize(("name", "stays"), [("k1_loss", False), ("exact", True)])
def test_with_nothing_to_gain_it_leaves_its_start_and_ours_stays(name: str, stays: bool):
    """Equal rewards: only the term that should hold the policy acts. Sampled sharper than scored, as the original does."""
    flat = RewardSet([NamedReward("flat", lambda completions: [1.0 for _ in completions])], 60)
    sharper = fill_prompts.policy(temperature=0.5, scoring="untempered" if name == "k1_loss" else "law")
    like = loop(name, steps=60, learning_rate=1e-3)
    made = Grpo(sharper, like.stream.prompts, flat, like.loss, like.settings, seed=1)
    for _ in range(60):
        made.update()
    rollouts = sharper.sample(fill_prompts.PROMPTS, 4, generator(9))
    with torch.no_grad():
        kl_N = sharper.score(rollouts, rollouts.cells(), reference_kl=True).kl_N
    assert (float(kl_N.mean()) < 1e-4) is stays
    assert (float(kl_N.mean()) > 0.1) is not stays


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"scale_rewards='group'.* may be 'none' or 'batch'"),
        (
            {"scale_rewards": "none", "beta": 0.1, "kl_estimator": "exact"},
            r"kl_estimator='exact'.* may be 'k3' or 'k2'",
        ),
        ({"scale_rewards": "none", "beta": 0.1, "kl_estimator": "k1"}, "kl_estimator='k1'"),
        ({"scale_rewards": "none", "credit": "decision"}, "credit='decision'"),
        ({"scale_rewards": "none", "entropy_coef": 0.1}, r"entropy_coef=0\.1"),
    ],
)
def test_settings_that_would_make_it_another_loss_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(RelgradError, match=message):
        k1_loss.build(GrpoSettings(loss="relgrad.baselines.k1_loss", **settings))
