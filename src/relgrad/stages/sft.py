"""The stage that trains a policy on the task's own targets: sections `sft`, and `rewards` to evaluate by."""

from __future__ import annotations

from relgrad.stages.examples import Examples
from relgrad.stages.kind import Kind, Materials, StageParts, build_policy
from relgrad.stages.settings import RewardedStage
from relgrad.training.sft import Sft, SftSettings


class Settings(RewardedStage):
    """A stage that trains the policy on the text in a column of the task, as its `sft` section says."""

    sft: SftSettings = SftSettings()


def build(stage: Settings, materials: Materials) -> StageParts:
    """The examples before the policy: a column that is not there costs no loading of a model."""
    judged_by = materials.rewards(stage.judged_by, stage.reward_seconds) if stage.judged_by else None
    examples = Examples(materials.task, stage.sft.completion_column)
    divergence = stage.evaluation.cooled
    policy = build_policy(stage, materials.start, reference=divergence)
    loop = Sft(policy, examples, stage.sft, seed=stage.seed, ranks=materials.ranks)
    return StageParts(loop=loop, trained=policy, policy=policy, judged_by=judged_by, divergence=divergence)


def describe(stage: Settings) -> str:
    return f"{stage.sft.steps} supervised steps{stage.sft.in_epochs} of {stage.sft.batch_size} examples"


KIND = Kind(loop="sft", build=build, describe=describe)
