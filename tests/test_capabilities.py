"""What flow and fill-in policies can beside sampling and scoring is declared, and is what protocols ask for."""

from __future__ import annotations

import pytest

import fill_prompts
import flow_policies
from relgrad.baselines import denoising_flow
from relgrad.commands.sample_options import declared
from relgrad.core import protocols
from relgrad.core.errors import RelgradError
from relgrad.policies import autoregressive, fill_in, flow
from relgrad.rewards.judge import JudgeReward
from relgrad.rewards.judge import Settings as JudgeSettings

CAPABILITIES = (
    protocols.Supervised,
    protocols.Averaged,
    protocols.JudgedDifferently,
    protocols.Filmed,
    protocols.CostlyEntropy,
    protocols.ShowsFigures,
    protocols.Described,
    protocols.KnowsTruth,
)


def capabilities(policy: object) -> set[str]:
    return {capability.__name__ for capability in CAPABILITIES if isinstance(policy, capability)}


def test_a_flow_policy_is_averaged_judged_differently_filmed_and_costly_in_entropy() -> None:
    policy = next(iter(flow.toys().values()))().policy
    wanted = {"Supervised", "Averaged", "JudgedDifferently", "Filmed", "CostlyEntropy", "Described"}
    assert capabilities(policy) == wanted
    assert isinstance(policy, flow.FlowPolicy)
    assert capabilities(denoising_flow.DenoisingPolicy(policy)) == wanted


def test_a_fill_in_policy_is_filmed_shows_its_own_figures_and_knows_the_truth() -> None:
    wanted = {"Supervised", "Filmed", "ShowsFigures", "Described", "KnowsTruth"}
    assert capabilities(next(iter(fill_in.toys().values()))().policy) == wanted


def test_policies_say_how_they_write() -> None:
    steps = flow_policies.small(branch_steps=2, temperature=0.5).facts
    assert (steps["Steps"], steps["Temperature"]) == ("5 from noise to text, 2 of them trained", "0.5")
    filling = fill_prompts.policy(top_p=0.9).facts
    assert filling == {
        "Parameters": "3,232",
        "Writes": "all masked positions in one step",
        "Temperature": "1",
        "Top-p": "0.9",
    }


def test_kinds_that_write_in_steps_say_so_with_their_options() -> None:
    named = {"flow": flow, "baseline": denoising_flow, "fill_in": fill_in, "autoregressive": autoregressive}
    options = {
        name: [option.name for option in module.SAMPLE_OPTIONS]
        for name, module in named.items()
        if isinstance(module, protocols.WritesInSteps)
    }
    steps = ["steps"]
    assert options == {"flow": steps, "baseline": steps, "fill_in": ["remask", "schedule", "steps", "length"]}
    assert set(declared()) == {"remask", "schedule", "steps", "length"}


def test_options_become_settings_of_their_kind() -> None:
    fill = {option.name: option for option in fill_in.SAMPLE_OPTIONS}
    assert fill["steps"].settings(4) == {"denoise.steps": 4}
    assert flow.SAMPLE_OPTIONS[0].settings(4) == {"evaluation_steps": 4}
    assert fill["schedule"].settings("0.5,0.1") == {
        "denoise.schedule": "custom",
        "denoise.masking_ratios": [0.5, 0.1],
        "denoise.steps": 3,
    }
    assert fill["length"].prompt is not None
    assert (fill["length"].prompt(3), fill["length"].settings(3)) == ("███", {})
    with pytest.raises(RelgradError, match="--schedule cosine: give linear"):
        fill["schedule"].settings("cosine")


def test_a_judge_reward_learns_and_says_how_many_prompts_it_wants() -> None:
    reward = JudgeReward([], JudgeSettings(judges=("none",), refit_every=3, refit_steps=5, refit_batch_size=7))
    assert isinstance(reward, protocols.Learner)
    assert (reward.learns, reward.fixed, reward.prompts_wanted()) == (True, False, 35)
    assert [reward.due(step) for step in (1, 3, 4, 6)] == [False, True, False, True]
