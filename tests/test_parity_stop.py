"""A run whose fresh samples are scored far from how they were drawn stops at its first step, and nothing was learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt, Rollouts
from relgrad.laws.precision import ROUNDING
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import fill_in
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings, build
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

PROMPTS = tuple(Prompt(f"{n}=", {}, n) for n in range(2))


def code_points(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 97) for text in completions]


def loop(policy: Any = None, **settings: Any) -> Grpo:
    policy = policy or build(Settings(model="tiny:32x1", max_completion_length=3, device="cpu"), seed=0)
    rewards = RewardSet([NamedReward("sum", code_points)], 60)
    return Grpo(policy, PROMPTS, rewards, PolicyLoss(), GrpoSettings(num_prompts=2, num_generations=4, **settings))


def draws_elsewhere(policy: AutoregressivePolicy, by: float, *, foreign: bool = False) -> None:
    """From now on the policy records log-probabilities that are off by so many nats."""
    sample = policy.sample

    def shifted(*arguments: Any) -> Rollouts:
        rollouts = sample(*arguments)
        return replace(rollouts, behaviour_logp_BT=rollouts.behaviour_logp_BT - by * rollouts.mask_BT, foreign=foreign)

    policy.sample = shifted  # type: ignore[method-assign]


def test_what_rounding_explains_is_trained_on() -> None:
    made = loop()
    draws_elsewhere(made.policy, 0.005)
    assert made.update().metrics["parity/max_abs"] == pytest.approx(0.005, abs=1e-4)


def test_more_than_that_stops_the_run_before_anything_is_learnt() -> None:
    made = loop()
    before = {n: p.detach().clone() for n, p in made.policy.parameters()}
    draws_elsewhere(made.policy, 0.05)
    message = (
        r"step 1: the policy scores its fresh samples up to 0\.05 nats away from how it drew them, and rounding explains 0\.002"
        r".*step was not taken.*gradient_checkpointing.*policy\.engine.*policy\.dtype"
    )
    with pytest.raises(RelgradError, match=message):
        made.update()
    assert (made.step, made.cursor, made.batch) == (0, 0, None)
    for name, parameter in made.policy.parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_later_steps_are_left_to_the_warnings() -> None:
    made = loop()
    made.update()
    draws_elsewhere(made.policy, 0.05)
    assert made.update().metrics["parity/max_abs"] > 0.04


@pytest.mark.parametrize(("by", "stops"), [(0.2, False), (0.4, True)])
def test_16_bits_explain_so_much_and_no_more(by: float, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop()
    monkeypatch.setattr(AutoregressivePolicy, "rounding", ROUNDING[torch.bfloat16])
    draws_elsewhere(made.policy, by, foreign=True)
    if stops:
        with pytest.raises(RelgradError, match=r"0\.4 nats on average away.*rounding explains 0\.25"):
            made.update()
        return
    metrics = made.update().metrics
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(by, abs=1e-4)
    assert metrics["parity/max_abs"] < 1e-4


def test_a_surrogate_is_not_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop()
    monkeypatch.setattr(AutoregressivePolicy, "law", "surrogate")
    draws_elsewhere(made.policy, 0.05)
    assert made.update().metrics["parity/max_abs"] > 0.04


def test_recomputed_activations_while_drawing_are_found() -> None:
    """What the mended fault did: layers in training mode forget their keys and values, and draw without context."""
    made = loop(
        build(
            Settings(
                model="tiny:32x1",
                max_completion_length=6,
                device="cpu",
                engine="transformers",
                gradient_checkpointing=True,
            ),
            seed=0,
        )
    )
    policy: Any = made.policy
    with torch.no_grad():
        for _, parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    policy.modes.draw = lambda: policy.modes._set(dropout=False, recompute=True)
    with pytest.raises(RelgradError, match="scores its fresh samples up to"):
        made.update()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_policies_say_what_they_round(dtype: Any) -> None:
    settings = fill_in.Settings(block_size=8, n_layer=1, n_head=1, n_embd=8, dtype=dtype, device="cpu")
    assert fill_in.build(settings, seed=0).rounding == ROUNDING[torch.float32 if dtype == "float32" else torch.bfloat16]
