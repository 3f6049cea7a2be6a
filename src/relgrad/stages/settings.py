"""What every stage has. A kind of stage adds its own sections: its `Settings` build on `Stage`, or on `RewardedStage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from relgrad.core.registry import short
from relgrad.core.run_folder import fault_of_name
from relgrad.core.settings import Component, RewardComponent, Strict
from relgrad.evaluation.suite import SuiteSettings


class Gate(Strict):
    """What a stage has to reach, so that a short run decides whether a long one is worth its time: `relgrad run` ends with exit
    code 3 where it does not, before the next stage. Both are of the evaluation after the last step.
    """

    min_gain: float | None = Field(
        0.0,
        description="the lower end of the 95 % interval of the score minus that before the first step must exceed it; null: any "
        "will do",
    )
    max_kl: float | None = Field(None, gt=0, description="nats per decision to the reference; null: any will do")


class Evaluation(Strict):
    """Evaluation: of test prompts before the first step and after the last, of validation prompts every `every` steps (0: never).

    With `patience` a stage ends early, when so many evaluations in a row were no better than the best one before them; whether
    early or not, it then ends with the weights of its best evaluation. `rewards` are to judge by; none: those trained on.
    """

    every: int = Field(0, ge=0)
    patience: int | None = Field(None, ge=1, description="evaluations without a better one after which the stage ends")
    num_prompts: int = Field(100, ge=1, description="prompts of either part, validation and test")
    num_generations: int = Field(4, ge=1)
    seed: int = 1234
    kl_bound: float | None = Field(
        None, gt=0, description="nats per decision away from the reference; more is warned of"
    )
    cooled: bool = Field(
        False,
        description="at the end, also judge the untrained start, cooled to the trained policy's distance from it",
    )
    reward_timeout: float = Field(
        60.0,
        gt=0,
        description="seconds one group may take to be rewarded, in stages without such a setting of their own",
    )
    rewards: tuple[RewardComponent, ...] = ()
    gate: Gate | None = Field(None, description="what the stage has to reach; null: nothing")
    suite: SuiteSettings | None = Field(
        None, description="what `relgrad compare` measures beside rewards; null: no more"
    )


class Checkpointing(Strict):
    """Written every `every` steps (0: only at the end); the newest `keep` stay, and the best by validation score."""

    every: int = Field(50, ge=0)
    keep: int = Field(2, ge=1)


class Stage(Strict):
    """One stage, of whatever kind: `policy` and `task` are what it works with, the sections of its kind say how."""

    name: str
    stage: str = Field("grpo", description="the kind: a file of relgrad/stages, or your own .py file or module")
    label: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$", description="the stage's folder; null: as `stage`")
    start: str | None = Field(
        None, alias="from", description="the stage, or folder, whose policy it goes on from; `start`: the recipe's own"
    )
    seed: int = 0
    out: Path = Path("runs")
    policy: Component
    task: Component
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    max_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="hours after which a command ends, with a checkpoint, and can go on",
    )

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if fault := fault_of_name(name):
            raise ValueError(fault)
        return name

    @model_validator(mode="after")
    def _evaluation_scores(self) -> Stage:
        require_weight("evaluation.rewards", self.evaluation.rewards)
        return self

    @property
    def called(self) -> str:
        """The stage's name within its recipe: its label, or the short name of its kind."""
        return self.label or short(self.stage)

    @property
    def judged_by(self) -> tuple[RewardComponent, ...]:
        """The rewards of evaluations."""
        return self.evaluation.rewards

    @property
    def reward_seconds(self) -> float:
        """How long one group may take to be rewarded, in training and in evaluations."""
        return self.evaluation.reward_timeout

    @property
    def used(self) -> dict[str, Any]:
        """All settings as plain data, as recipe.yaml has them."""
        unsaid = {name for name in ("label", "start") if dict(self)[name] is None}
        return self.model_dump(mode="json", by_alias=True, exclude=unsaid)


class RewardedStage(Stage):
    """A stage whose `rewards` say what the policy's completions are worth."""

    rewards: tuple[RewardComponent, ...] = ()

    @model_validator(mode="after")
    def _rewards_count(self) -> RewardedStage:
        require_weight("rewards", self.rewards)
        patience = self.evaluation.patience
        if patience is not None and (not self.evaluation.every or not self.judged_by):
            raise ValueError(
                f"evaluation.patience={patience} looks at the evaluations during training: set evaluation.every, "
                "and rewards to evaluate by"
            )
        return self

    @property
    def judged_by(self) -> tuple[RewardComponent, ...]:
        """The rewards of evaluations: `rewards`, unless `evaluation` names others."""
        return self.evaluation.rewards or self.rewards


def require_weight(where: str, rewards: Sequence[RewardComponent]) -> None:
    """Raise ValueError where there are rewards and every one only watches."""
    if rewards and not any(reward.weight for reward in rewards):
        raise ValueError(f"{where}: every one has weight 0, so nothing would be scored; give one that counts a weight")
