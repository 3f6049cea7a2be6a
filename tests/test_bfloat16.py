"""bfloat16 of networks whose weights stay float32: one arithmetic in the ratios, the other declared and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import fill_prompts
from enumerated import seeded
from flow_policies import fresh
from relgrad.core.types import Example, Output, Prompt, Score
from relgrad.laws.precision import ROUNDING
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import flow
from relgrad.policies.fill_in import FillInPolicy
from relgrad.policies.flow import FlowPolicy
from relgrad.policies.flow.settings import Lora
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings


def filler(dtype: Any) -> tuple[FillInPolicy, tuple[Prompt, ...]]:
    """A random fill-in policy far from uniform, and prompts of different lengths."""
    return fill_prompts.policy(dtype=dtype), fill_prompts.PROMPTS


def flowing(dtype: Any, **options: Any) -> tuple[FlowPolicy, tuple[Prompt, ...]]:
    """A random flow policy far from uniform, whose frozen weights are random too, and prompts of different lengths."""
    policy, draw = flow.build(fresh(dtype=dtype, **options), seed=0), seeded(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return policy, (Prompt("ab", id=0), Prompt("abcde", id=1), Prompt("", id=2))


def adapted(dtype: Any) -> tuple[FlowPolicy, tuple[Prompt, ...]]:
    return flowing(dtype, lora=Lora(r=2))


POLICIES = {"fill-in": filler, "flow": flowing, "flow-adapter": adapted}


def number(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
    return [Score(float(sum(map(ord, output.text)) % 7)) for output in outputs]


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_drawn_is_scored_within_rounding_and_declared(name: str) -> None:
    policy, prompts = POLICIES[name]("bfloat16")
    rollouts = policy.sample(prompts, 4, seeded(0))
    assert rollouts.foreign
    with torch.no_grad():
        exact, _ = POLICIES[name]("float32")
        one_by_one = [policy.score(rollouts, cells[None]).logp_N for cells in rollouts.cells()]
        scored_N, exact_N = torch.cat(one_by_one), exact.score(rollouts, rollouts.cells()).logp_N
    recorded_N = rollouts.behaviour_logp_BT[rollouts.mask_BT]
    assert float((scored_N - recorded_N).abs().max()) < policy.rounding
    assert 1e-4 < float((recorded_N - exact_N).abs().max()) < 10 * policy.rounding, (
        "computes in float32, or something else"
    )
    assert not exact.sample(prompts, 2, seeded(0)).foreign
    assert policy.rounding / exact.rounding == pytest.approx(ROUNDING[torch.bfloat16] / ROUNDING[torch.float32])


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_clipped_before_anything_moved(name: str) -> None:
    policy, prompts = POLICIES[name]("bfloat16")
    before = {n: p.detach().clone() for n, p in policy.parameters()}
    rewards = RewardSet([NamedReward("number", number)], 60)
    settings = GrpoSettings(num_prompts=3, num_generations=4, learning_rate=1e-3, epsilon=1e-6)
    metrics = Grpo(policy, prompts, rewards, PolicyLoss(epsilon=1e-6), settings).update().metrics
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["importance_ratio/min"] == metrics["importance_ratio/max"] == 1
    assert metrics["sampling/sampling_logp_difference/mean"] < policy.rounding
    moved = [n for n, p in policy.parameters() if not torch.equal(p, before[n])]
    assert moved, "a step of a thousandth is rounded away"
    assert all(p.dtype == torch.float32 for _, p in policy.parameters())


@pytest.mark.parametrize("name", ["fill-in", "flow"])
def test_supervised_losses_are_near_those_of_float32(name: str) -> None:
    losses = []
    for dtype in ("bfloat16", "float32"):
        policy, prompts = POLICIES[name](dtype)
        loss = policy.supervised_loss([Example(p, "ab") for p in prompts], seeded(0))
        loss.total.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for _, p in policy.parameters())
        losses.append(float(loss.total.detach()) / loss.targets)
    assert losses[0] == pytest.approx(losses[1], abs=ROUNDING[torch.bfloat16])
    assert losses[0] != losses[1]
