"""Tiny flow policies for the tests: random ones over "ab", and what `build` makes of a recipe's settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from enumerated import move
from relgrad.core.types import Prompt, Rollouts
from relgrad.policies.flow import toy as flow_toy
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.settings import Settings

PROMPTS = (Prompt("ab", id=0), Prompt("", id=1), Prompt("babab", id=2))


def small(**options: Any) -> FlowPolicy:
    """A random policy that writes 6 positions in 5 steps after prompts of up to 10 characters."""
    student = options.pop("student", False)
    settings = Settings(**{"max_completion_length": 6, "sampling_steps": 5, "device": "cpu", **options})
    made = FlowPolicy(flow_toy.parts(settings, student=student), settings)
    made.freeze_reference()
    return made


def fresh(**options: Any) -> Settings:
    """Settings of a new tiny network of 30 positions over "ab", for `build`."""
    sizes = {"hidden": 16, "blocks": 1, "heads": 2, "cond_dim": 8, "length": 30}
    return Settings(
        **{
            "model": "tiny", "network": sizes, "symbols": "ascii", "max_completion_length": 6, "sampling_steps": 4,
            "device": "cpu", **options,
        }
    )  # fmt: skip


def spread(policy: FlowPolicy) -> FlowPolicy:
    """Random weights everywhere: a new network's head is zero, and its laws uniform."""
    move(policy, scale=0.3)
    return policy


def flat(policy: FlowPolicy) -> Tensor:
    return torch.cat([p.detach().flatten() for _, p in policy.parameters()])


def scored(policy: FlowPolicy, rollouts: Rollouts) -> Tensor:
    with torch.no_grad():
        return policy.score(rollouts, rollouts.cells()).logp_N
