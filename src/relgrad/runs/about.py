"""What a stage trains, in words, for the head of the report: `about.json` in its folder."""

from __future__ import annotations

from typing import Any

from relgrad.core import registry
from relgrad.core.protocols import Described, ExplainsParts
from relgrad.core.settings import RewardComponent
from relgrad.stages.kind import StageParts, kind_of, loop_settings
from relgrad.stages.settings import RewardedStage, Stage
from relgrad.tasks import Task

FILE = "about.json"


def about(stage: Stage, task: Task, parts: StageParts) -> dict[str, Any]:
    """What the stage does, how many numbers it trains, what policy and task say of themselves, and what parts of scores mean."""
    rewards = (*(stage.rewards if isinstance(stage, RewardedStage) else ()), *stage.evaluation.rewards)
    return {
        "work": kind_of(stage).describe(stage),
        "steps": loop_settings(stage).steps,
        "trains_policy": kind_of(stage).trains_policy,
        "trained_parameters": sum(tensor.numel() for tensor in parts.loop.optimizer.parameters.values()),
        "policy": dict(parts.policy.facts) if isinstance(parts.policy, Described) else {},
        "task": dict(task.facts),
        "parts": {name: text for reward in rewards for name, text in _parts(reward).items()},
    }


def _parts(reward: RewardComponent) -> dict[str, str]:
    """The parts of a reward's score by the names they are logged under, with what they mean."""
    module = registry.find("rewards", reward.kind)
    own = module.PARTS if isinstance(module, ExplainsParts) else {}
    name = reward.name or registry.short(reward.kind)
    return {f"{name}/{part}": text for part, text in own.items()}
