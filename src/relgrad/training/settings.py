"""A recipe's `grpo` section, idea by idea. Names, meanings and defaults are TRL's GRPOConfig's where it has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from relgrad.core.addresses import http_url
from relgrad.core.registry import is_own
from relgrad.core.secrets import is_reference
from relgrad.core.settings import NamesCode, Strict
from relgrad.objectives.advantages import Scale
from relgrad.objectives.losses import KlEstimator, LossType
from relgrad.search.decisions import TreeSettings
from relgrad.training.length import Batch, LengthSettings
from relgrad.training.optimizer import OptimizerSettings


class ReplaySettings(Strict):
    """Experience of the past, mixed into the batch; see replay.py. Ages are in generation batches."""

    keep: Literal["groups", "solutions"] = Field(
        "groups", description="whole groups, in place of fresh ones; or solutions, added to groups that found none"
    )
    share: float = Field(
        0.25, gt=0, lt=1, description="largest share of a batch's groups that hold experience of the past"
    )
    max_age: int = Field(8, ge=1, description="generation batches after which experience is forgotten")
    capacity: int = Field(1024, ge=1, description="groups or solutions kept")


class RemoteSettings(Strict):
    """A server that writes the completions of training: OpenAI's completions API with token ids, as vLLM has it; see remote.py."""

    url: str = Field(description="up to and with the version: http://127.0.0.1:8000/v1")
    model: str = Field(description="the server's name for the model under the adapter")
    key: str | None = Field(None, description="sent as a bearer token; write env:NAME")
    sync_every: int = Field(1, ge=1, description="optimizer steps after which the server is given the adapter anew")
    tolerance: float | None = Field(
        None,
        gt=0,
        description="nats per token by which the server's log-probs may differ from the policy's on average; null: 0.1 at "
        "temperature 1, 0.02 at another",
    )
    adapters: str | None = Field(None, description="folder for adapters that the server reads; null: in the run folder")
    adapters_there: str | None = Field(
        None, description="the same folder's path on the server, where it is another one"
    )
    deadline: float = Field(
        60.0, gt=0, description="seconds for the server to answer at the start and to load an adapter"
    )
    timeout: float = Field(600.0, gt=0, description="seconds for the completions of one prompt")
    retries: int = Field(
        8, ge=0, description="attempts after the first, with waits that double from half a second to 30 s"
    )
    concurrency: int = Field(64, ge=1, description="prompts that are asked about at once")

    def tolerance_at(self, temperature: float) -> float:
        """Nats per token. At a temperature other than 1 a server that tells raw log-probs, those of temperature 1, has to be found
        by the same gap: at 0.9 it is some 0.06 to 0.09 nats, so the bound has to lie well below.
        """
        if self.tolerance is not None:
            return self.tolerance
        return 0.1 if temperature == 1 else 0.02

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return http_url(url)

    @field_validator("key")
    @classmethod
    def _is_named(cls, key: str | None) -> str | None:
        if key is not None and not is_reference(key):
            raise ValueError("a key is named, not written out: env:NAME, for the environment variable NAME")
        return key


class SearchSettings(TreeSettings):
    """Tree search for groups that solved nothing; see searched.py."""

    when: Literal["failed", "always"] = Field(
        "failed", description="for groups of which no completion solved anything, or for every group"
    )
    evaluations: int = Field(100, ge=1, description="programs that one search may execute")
    solutions: int = Field(1, ge=1, description="solutions of a prompt that are looked for")
    failures: int = Field(
        0,
        ge=0,
        description="what else a search tried, drawn at random and finished by the policy: so many join the group",
    )
    weights: Literal["shaping", "importance", "none"] = Field(
        "shaping",
        description="of rows that a search chose; importance: a heuristic by shares of visits; none: as the policy's own",
    )
    gamma: float = Field(0.1, gt=0, description="of shaping, the slope of p / (p + gamma)")

    @model_validator(mode="after")
    def _failures_are_a_baseline(self) -> SearchSettings:
        if self.failures and self.weights != "none":
            raise ValueError(
                f"search.failures={self.failures} with search.weights={self.weights!r}: failures are not drawn from the policy and "
                "are there to be compared with alone, with weights='none'; else leave failures at 0"
            )
        return self


class SamplingSettings(Strict):
    """What one generation batch is: `num_prompts` prompts x `num_generations` completions, and who writes them."""

    num_prompts: int = Field(8, ge=1, description="prompts per generation batch")
    num_generations: int = Field(8, description="completions per prompt (the group)")
    max_resamples: int = Field(0, ge=0, description="rounds in which groups without spread are replaced (DAPO)")
    replay: ReplaySettings | None = None
    remote: RemoteSettings | None = Field(None, description="a server that writes the completions; null: the policy")
    search: SearchSettings | None = None

    @model_validator(mode="after")
    def _a_group_compares(self) -> SamplingSettings:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations={self.num_generations}: a group needs at least 2 completions to compare; 8 is usual"
            )
        if self.replay is not None and self.replay.keep == "groups" and round(self.replay.share * self.num_prompts) < 1:
            raise ValueError(
                f"replay.share={self.replay.share:g} of num_prompts={self.num_prompts} is less than one group: raise one of them"
            )
        if self.search is not None and self.replay is not None and self.replay.keep == "groups":
            raise ValueError(
                "search with replay.keep='groups': what a search found is kept by replay.keep='solutions'; use that"
            )
        return self


class CreditSettings(Strict):
    """How rewards become advantages."""

    scale_rewards: Scale = "group"
    leave_one_out: bool = False
    credit: Literal["row", "decision"] = "row"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    mask_truncated_completions: bool = False
    importance_sampling_cap: float = Field(
        2.0, gt=0, description="cap of the weights for log-probs of another proposal"
    )

    @model_validator(mode="after")
    def _decisions_are_added(self) -> CreditSettings:
        if self.credit == "decision" and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"credit='decision' with multi_objective_aggregation={self.multi_objective_aggregation!r}: scores of decisions "
                "are added before they are compared (sum_then_normalize); use that, or credit='row'"
            )
        return self


class ObjectiveSettings(Strict):
    """The loss: its surrogate, its divergence term, and the supervised term beside it."""

    loss_type: LossType = "dapo"
    loss: Annotated[str | None, NamesCode()] = Field(
        None, description="a loss of your own in place of `loss_type`: .py file or module"
    )
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    delta: float | None = None
    importance_sampling_level: Literal["token", "sequence"] = "token"
    beta: float = Field(0.0, ge=0)
    kl_estimator: KlEstimator = "k3"
    use_bias_correction_kl: bool = True
    step_ratio_norm: bool = False
    entropy_coef: float = 0.0
    sft_coef: float = Field(0.0, ge=0, description="weight of the cross-entropy of the prompts' own targets")
    sft_column: str = "completion"

    @model_validator(mode="after")
    def _terms_fit(self) -> ObjectiveSettings:
        upper = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= upper:
            raise ValueError(
                f"delta={self.delta} must exceed 1 + epsilon_high = {upper}: below it the ordinary clip acts first"
            )
        if self.loss is not None and not is_own(self.loss):
            raise ValueError(
                f"loss={self.loss!r}: give a .py file or an importable module; built-in losses are loss_type"
            )
        if self.loss is not None and "loss_type" in self.model_fields_set and self.loss_type != "dapo":
            raise ValueError(f"loss={self.loss!r} and loss_type={self.loss_type!r} exclude each other; keep one")
        if self.kl_estimator != "k3" and not self.beta:
            raise ValueError(f"kl_estimator={self.kl_estimator!r} has no effect with beta=0: set beta, or drop it")
        if self.step_ratio_norm and (self.importance_sampling_level == "sequence" or self.loss_type == "reinforce"):
            raise ValueError("step_ratio_norm needs importance_sampling_level='token' and a loss_type that has ratios")
        return self


class BudgetSettings(LengthSettings):
    """How much work is done, and how much of it at once."""

    num_iterations: int = Field(1, ge=1)
    steps_per_generation: int = Field(1, ge=1)
    micro_batch_tokens: int = Field(8192, ge=1, description="memory budget of one scoring chunk, in tokens")
    reward_timeout: float = Field(60.0, gt=0, description="seconds one group may take to be rewarded")


class GrpoSettings(BudgetSettings, SamplingSettings, CreditSettings, ObjectiveSettings, OptimizerSettings):
    """The whole section, and which of its parts exclude each other.

    One generation batch serves `num_iterations` passes of `steps_per_generation` optimizer steps each.
    """

    @property
    def batch(self) -> Batch:
        """A generation batch, without the prompts that `max_resamples` takes beside it."""
        return Batch(self.num_prompts, self.num_iterations * self.steps_per_generation)

    @model_validator(mode="after")
    def _parts_fit(self) -> GrpoSettings:
        if self.num_prompts % self.steps_per_generation:
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} must divide num_prompts={self.num_prompts}: "
                "an optimizer step takes whole groups"
            )
        if self.epochs is not None and self.replay is not None and self.replay.keep == "groups":
            raise ValueError(
                f"epochs={self.epochs:g} with replay.keep='groups', where the past takes the place of new prompts in a number that "
                "is not known before: set steps, or replay.keep to solutions"
            )
        if self.credit == "decision" and self.kl_estimator == "k1":
            raise ValueError("credit='decision' with kl_estimator='k1', a penalty of whole rows: use exact, k2 or k3")
        if self.credit == "decision" and self.search is not None:
            raise ValueError("credit='decision' with search, whose rows are compared as a whole: use credit='row'")
        if self.credit == "decision" and self.replay is not None and self.replay.keep == "solutions":
            raise ValueError(
                "credit='decision' with replay.keep='solutions': use replay.keep='groups', or credit='row'"
            )
        return self
