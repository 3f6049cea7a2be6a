"""The stage that trains a policy on the task's own targets: sections `sft`, and `rewards` to evaluate by."""

from __future__ import annotations

from collections.abc import Callable

from relgrad.core.protocols import KnowsTargets, Policy
from relgrad.core.types import Example, StepRecord
from relgrad.estimates.policy_size import PolicySize
from relgrad.estimates.stage import Prompts, StageEstimate, sft
from relgrad.evaluation.likelihood import mean_nll
from relgrad.stages.examples import Examples
from relgrad.stages.kind import Kind, Materials, StageParts, build_policy
from relgrad.stages.settings import RewardedStage
from relgrad.tasks import Task
from relgrad.training.sft import Beside, Sft, SftSettings
from relgrad.training.targets import example_of


class Settings(RewardedStage):
    """A stage that trains the policy on the text in a column of the task, as its `sft` section says."""

    sft: SftSettings = SftSettings()


def build(stage: Settings, materials: Materials) -> StageParts:
    """The parts of a stage whose loss is the supervised one alone."""
    return build_beside(stage, materials, lambda policy: None)


def build_beside(stage: Settings, materials: Materials, term: Callable[[Policy], Beside | None]) -> StageParts:
    """The parts of a stage with a further `term` of the loss, made from the policy.

    The examples come before the policy: a column that is not there costs no loading of a model.
    """
    judged_by = materials.rewards(stage.judged_by, stage.reward_seconds) if stage.judged_by else None
    examples = Examples(materials.task, stage.sft.completion_column)
    divergence = stage.evaluation.cooled
    policy = build_policy(stage, materials.start, reference=divergence)
    loop = Sft(policy, examples, stage.sft, seed=stage.seed, ranks=materials.ranks, beside=term(policy))
    held_out = held_out_examples(stage, materials.task) if isinstance(policy, KnowsTargets) else []

    def after_step(record: StepRecord) -> None:
        every, last = stage.evaluation.every, record.step == loop.settings.steps
        if held_out and (last or (every and record.step % every == 0)):
            at_once = stage.sft.batch_size // stage.sft.gradient_accumulation_steps
            record.metrics["eval_loss"] = mean_nll(policy, held_out, at_once, materials.ranks)

    return StageParts(
        loop=loop, trained=policy, policy=policy, judged_by=judged_by, divergence=divergence, after_step=after_step
    )


def held_out_examples(stage: Settings, task: Task) -> list[Example]:
    """The validation prompts of an evaluation that have a target, with it."""
    prompts, column = task.validation[: stage.evaluation.num_prompts], stage.sft.completion_column
    return [example_of(p, column, "sft.completion_column") for p in prompts if column in p.columns]


def describe(stage: Settings) -> str:
    return f"{stage.sft.steps} supervised steps{stage.sft.in_epochs} of {stage.sft.batch_size} examples"


def estimate(stage: Settings, size: PolicySize, prompts: Prompts) -> StageEstimate:
    """What the stage will need."""
    return sft(size, prompts, stage.sft.batch_size, stage.sft.gradient_accumulation_steps)


def targets(stage: Settings) -> str:
    """The column that is learnt."""
    return stage.sft.completion_column


KIND = Kind(loop="sft", build=build, describe=describe, estimate=estimate, targets=targets)
