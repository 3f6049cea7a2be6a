"""What a kind of stage is: how its parts are built from its settings, and what it does beside the common course of a run.

The common course (runs/run.py): build, go on from the newest checkpoint, evaluate, train step by step, evaluate, save, report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.memory import spared
from relgrad.core.protocols import Learner, Policy
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import RunDir
from relgrad.core.settings import RewardComponent, settings_of
from relgrad.core.types import StepRecord
from relgrad.estimates.policy_size import PolicySize
from relgrad.estimates.stage import Prompts, StageEstimate
from relgrad.rewards.combine import RewardSet
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint
from relgrad.training.grpo import Loop
from relgrad.training.length import LengthSettings


class Display(Protocol):
    """Where a stage tells people what it does."""

    def note(self, text: str) -> None:
        """One line of information."""
        ...

    def busy(self, what: str, done: int, total: int) -> None:
        """How far something other than training has come."""
        ...


@dataclass(frozen=True)
class Materials:
    """What a stage is built from.

    start    the checkpoint whose policy it goes on from; None where it begins with the recipe's own
    rewards  makes the rewards of a section of the recipe, with so many seconds for one group
    ranks    the processes that run it; a loop is given them, so that each takes its share
    """

    task: Task
    start: Path | None
    rewards: Callable[[Sequence[RewardComponent], float], RewardSet]
    ranks: Ranks = ALONE


def nothing_after_step(record: StepRecord) -> None:
    """For stages that do nothing of their own after an optimizer step."""


def no_samples() -> list[dict[str, Any]]:
    """For stages whose steps write no completions."""
    return []


def nothing_at_the_end(folder: RunDir, display: Display) -> None:
    """For stages that end with their last step."""


@dataclass(frozen=True)
class StageParts:
    """One stage, built.

    loop        what is trained step by step
    trained     what is saved
    policy      who writes in this stage: it is evaluated by `judged_by`, where there is something to judge by
    rewards     what the stage trains on; its `learners` are saved with the checkpoints
    divergence  whether evaluations also measure the divergence from the policy's reference
    filmed_by   the rewards of films, where the policy is to be filmed before and after
    figures     what the console shows of a step's metrics; None: what it always shows
    after_step  called with every step's record before it is logged; may add figures to it
    samples     the completions of the last step, as samples/*.jsonl has them; empty where it drew none
    notes       what the parts have to say at the start, beside the policy's own notes
    finish      called after the last step, before the last checkpoint
    """

    loop: Loop
    trained: checkpoint.Weights
    policy: Policy
    rewards: RewardSet | None = None
    judged_by: RewardSet | None = None
    divergence: bool = False
    filmed_by: RewardSet | None = None
    figures: Sequence[str] | None = None
    after_step: Callable[[StepRecord], None] = nothing_after_step
    samples: Callable[[], list[dict[str, Any]]] = no_samples
    notes: Sequence[str] = ()
    finish: Callable[[RunDir, Display], None] = nothing_at_the_end

    @property
    def learners(self) -> Mapping[str, Learner]:
        """The rewards that go on learning in this stage, by name."""
        return {} if self.rewards is None else self.rewards.learners


def own_seed(stage: Stage) -> int:
    """The seed of the recipe."""
    return stage.seed


@dataclass(frozen=True)
class Kind:
    """A kind of stage, as its module offers it under the name KIND.

    loop           the section of its settings that has the loop's: `steps`, and what training/optimizer.py asks for
    build          (settings, materials) -> StageParts; raises RelgradError
    describe       the work of one stage in words, for `relgrad run --dry-run`
    seed           the seed of a stage's task and loop
    trains_policy  whether later stages go on from what it trained
    own_label      whether every stage of the kind in a recipe needs a name of its own
    components     its sections that name a `kind` themselves, and the room of these kinds
    estimate       (settings, the policy's size, lengths of prompts) -> what the stage will need; None: nobody can say
    targets        the column of the task whose texts are learnt, of its settings; None: completions are drawn
    """

    loop: str
    build: Callable[[Any, Materials], StageParts]
    describe: Callable[[Any], str]
    seed: Callable[[Stage], int] = field(default=own_seed)
    trains_policy: bool = True
    own_label: bool = False
    components: Mapping[str, str] = field(default_factory=dict)
    estimate: Callable[[Any, PolicySize, Prompts], StageEstimate] | None = None
    targets: Callable[[Any], str] | None = None


def find(name: str) -> tuple[type[Stage], Kind]:
    """(Settings, KIND) of the kind of stage that a recipe names. Raises RelgradError for a module that does not offer them."""
    offered = vars(registry.find("stages", name))
    settings, kind = offered.get("Settings"), offered.get("KIND")
    if not (isinstance(settings, type) and issubclass(settings, Stage)):
        raise RelgradError(f"stages: {name!r} offers no Settings built on relgrad.stages.settings.Stage")
    if not isinstance(kind, Kind):
        raise RelgradError(f"stages: {name!r} offers no KIND, a relgrad.stages.kind.Kind")
    if kind.loop not in settings.model_fields:
        raise RelgradError(f"stages: {name!r} has no section {kind.loop!r}, which its KIND names as the loop's")
    return settings, kind


def kind_of(stage: Stage) -> Kind:
    """The kind of a stage."""
    return find(stage.stage)[1]


def loop_settings(stage: Stage) -> Any:
    """The settings of the stage's loop, with `steps` and `lr_scheduler_type`."""
    return dict(stage)[kind_of(stage).loop]


LOADING = (
    "Take a smaller model, keep its weights in 16 or 4 bits under an adapter (policy.lora with policy.dtype or policy.quantize), "
    "or choose another policy.device"
)


def with_steps(stage: Stage, task: Task) -> Stage:
    """The stage with its epochs of the task counted in steps, where it is trained for epochs.

    Raises RelgradError for a task whose training prompts have no end.
    """
    settings, section = loop_settings(stage), kind_of(stage).loop
    if not isinstance(settings, LengthSettings):
        return stage
    try:
        counted = settings.counted(len(task.train), f"the prompts of task {stage.task.kind!r}")
    except RelgradError as error:
        raise RelgradError(f"{section}.{error}") from None
    return stage.model_copy(update={section: counted})


def has_epochs(stage: Stage) -> bool:
    """Whether the stage is trained for epochs that were not counted yet."""
    settings = loop_settings(stage)
    return isinstance(settings, LengthSettings) and settings.steps is None


def build_policy(stage: Stage, start: Path | None, *, reference: bool = False) -> Any:
    """The stage's policy, going on from `start` where it is given. `reference`: it can speak for its frozen start too."""
    module = registry.find("policies", stage.policy.kind)
    settings = settings_of(stage.policy, module.Settings, "policy")
    with spared("loading the policy", LOADING):
        return module.build(settings, stage.seed, start=start, reference=reference)
