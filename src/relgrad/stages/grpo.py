"""The stage that trains a policy by GRPO: sections `grpo` and `rewards`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Estimates, ForEstimator, Loss, Policy, ShowsFigures
from relgrad.core.randomness import draw_epochs, generator
from relgrad.core.ranks import Ranks
from relgrad.core.secrets import resolved
from relgrad.core.types import StepRecord
from relgrad.estimates.policy_size import PolicySize
from relgrad.estimates.stage import Prompts, Rollout, StageEstimate, grpo
from relgrad.objectives.losses import PolicyLoss
from relgrad.rewards.combine import RewardSet
from relgrad.stages.kind import Kind, Materials, StageParts, build_policy
from relgrad.stages.settings import RewardedStage
from relgrad.tasks import Task
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.remote import Remote
from relgrad.training.settings import RemoteSettings


class Settings(RewardedStage):
    """A stage that trains the policy on `rewards`, as its `grpo` section says."""

    grpo: GrpoSettings = GrpoSettings()

    @model_validator(mode="after")
    def _rewarded(self) -> Settings:
        if not self.rewards:
            raise ValueError(
                "rewards is empty: a grpo stage needs at least one, for example `rewards: [{kind: exact}]`"
            )
        return self

    @property
    def reward_seconds(self) -> float:
        """How long one group may take to be rewarded, in training and in evaluations."""
        return self.grpo.reward_timeout


def build(stage: Settings, materials: Materials) -> StageParts:
    """Rewards and loss before the policy: a mistake in them costs no loading of a model."""
    rewards = materials.rewards(stage.rewards, stage.reward_seconds)
    others = stage.evaluation.rewards
    judged_by = materials.rewards(others, stage.reward_seconds) if others else rewards
    divergence = stage.grpo.beta > 0 or stage.evaluation.cooled
    loss = policy_loss(stage.grpo)
    policy: Policy = build_policy(stage, materials.start, reference=divergence)
    require_fit(policy, loss, stage.grpo.loss)
    writer: Remote | None = None
    notes: tuple[str, ...] = ()
    if stage.grpo.remote is not None:
        writer = remote_writer(stage, stage.grpo.remote, policy, materials.ranks)
        notes = (writer.probe(materials.task.train),)
    loop = Grpo(
        policy, materials.task.train, rewards, loss, stage.grpo, seed=stage.seed, ranks=materials.ranks, writer=writer
    )

    def after_step(record: StepRecord) -> None:
        refit(stage, rewards, policy, materials.task, loop, record)

    return StageParts(
        loop=loop,
        trained=policy,
        policy=policy,
        rewards=rewards,
        judged_by=judged_by,
        divergence=divergence,
        filmed_by=rewards,
        figures=policy.figures if isinstance(policy, ShowsFigures) else None,
        after_step=after_step,
        samples=lambda: samples_of(loop),
        notes=notes,
    )


def remote_writer(stage: Settings, settings: RemoteSettings, policy: Policy, ranks: Ranks) -> Remote:
    """Who writes in the policy's place: the server of the section `remote`, not asked yet. Raises RelgradError."""
    from relgrad.backends.completions import Completions

    server = Completions(
        settings.url,
        key=resolved(settings.key, "grpo.remote.key"),
        deadline=settings.deadline,
        timeout=settings.timeout,
        retries=settings.retries,
        concurrency=settings.concurrency,
    )
    adapters = Path(settings.adapters or stage.out / stage.name / "adapters")
    return Remote(policy, server, settings, f"{stage.name}-{stage.called}", adapters, ranks)


def require_fit(policy: Policy, loss: Loss, named: str | None) -> None:
    """Raise RelgradError for an estimator without the loss that it needs, and for a loss without its estimator."""
    kind = policy.estimator_kind if isinstance(policy, Estimates) else "exact"
    needed = policy.own_loss if isinstance(policy, Estimates) else None
    if needed is not None and needed != named:
        raise RelgradError(f"policy.estimator.kind={kind} needs grpo.loss={needed} (received {named})")
    if isinstance(loss, ForEstimator) and loss.estimator != kind:
        raise RelgradError(f"grpo.loss={named} is for policy.estimator.kind={loss.estimator} (received {kind})")


def policy_loss(settings: GrpoSettings) -> Loss:
    """The loss that a `grpo` section describes: a built-in one, or what the `build` of its `loss` module returns."""
    if settings.loss is not None:
        own: Loss = registry.find("losses", settings.loss).build(settings)
        return own
    values = dict(settings)
    return PolicyLoss(**{name: values[name] for name in PolicyLoss.__dataclass_fields__})


def refit(stage: Settings, rewards: RewardSet, policy: Policy, task: Task, loop: Grpo, record: StepRecord) -> None:
    """Let the rewards that learn see what the policy writes by now, when it is time."""
    for name, learner in rewards.learners.items():
        if learner.due(record.step):
            draw, count = generator(stage.seed, "refit", name, record.step), learner.prompts_wanted()
            prompts = draw_epochs(task.train, max(loop.cursor - count, 0), count, stage.seed)
            record.metrics[f"rewards/{name}/refit_loss"] = learner.refit(policy, prompts, draw)


def samples_of(loop: Grpo) -> list[dict[str, Any]]:
    """The completions of a generation batch, at the first step that uses it."""
    return loop.batch.samples if loop.batch is not None and loop.batch.used == 1 else []


def describe(stage: Settings) -> str:
    settings = stage.grpo
    batch = f"{settings.num_prompts} prompts x {settings.num_generations} completions per batch"
    return f"{settings.steps} GRPO steps{settings.in_epochs}, {batch}"


def estimate(stage: Settings, size: PolicySize, prompts: Prompts) -> StageEstimate:
    """What the stage will need."""
    settings = stage.grpo
    needs_again = bool(policy_loss(settings).needs & {"entropy", "kl"}) or settings.num_iterations > 1
    rollout = Rollout(
        num_prompts=settings.num_prompts,
        num_generations=settings.num_generations,
        micro_batch_tokens=settings.micro_batch_tokens,
        steps_per_generation=settings.steps_per_generation,
        num_iterations=settings.num_iterations,
        scored_again=needs_again,
        reference=settings.beta > 0,
    )
    return grpo(size, prompts, rollout)


KIND = Kind(loop="grpo", build=build, describe=describe, estimate=estimate)
