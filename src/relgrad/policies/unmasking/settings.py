"""What a recipe's `policy` section may say of a policy that unmasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from relgrad.core.settings import NamesFiles, Strict
from relgrad.estimators.kinds import EstimatorSettings, Trajectory
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking.ancestral import Ancestral
from relgrad.laws.unmasking.fixed_order import FixedOrder
from relgrad.laws.unmasking.interface import Law as UnmaskingLaw
from relgrad.laws.unmasking.low_confidence import LowConfidence
from relgrad.laws.unmasking.plackett_luce import PlackettLuce, Score
from relgrad.laws.unmasking.remask import Remask
from relgrad.laws.unmasking.remask_doubtful import RemaskDoubtful
from relgrad.laws.unmasking.threshold import threshold_law
from relgrad.text.corpus import BUILTIN

NEW = "new"
PUBLISHED_ONLY = (
    "family", "trust_remote_code", "shift", "mask_token", "tokenizer", "lora", "adapter", "quantize", "gradient_checkpointing",
    "chat", "system_prompt", "skip_special_tokens", "eos_token_ids",
)  # fmt: skip
"""Settings of published models (networks/masked/families), which a network of this house does not have."""
Order = Literal["random", "left_to_right", "plackett_luce", "low_confidence", "threshold", "ancestral", "remask"]
OWN: dict[str, tuple[Order, ...]] = {
    "confidence": ("plackett_luce", "low_confidence", "threshold", "remask"),
    "score": ("plackett_luce",),
    "order_temperature": ("plackett_luce",),
    "threshold": ("threshold",),
    "remask_by": ("remask",),
    "start_ratio": ("remask",),
    "end_ratio": ("remask",),
}
"""The orders that each of these settings is for."""


class Lora(Strict):
    """LoRA through peft; `target_modules` are names of linear layers, or "all-linear"."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class Network(Strict):
    """Sizes of a new diffusion GPT; `block_size` is the longest row, prompt and answer together."""

    block_size: int = Field(128, ge=2)
    n_layer: int = Field(4, ge=1)
    n_head: int = Field(4, ge=1)
    n_embd: int = Field(128, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    bias: bool = False
    position_encoding: Literal["rotary", "absolute"] = "rotary"


class Law(Strict):
    """Which masked positions a step reveals (laws/unmasking/); null stands for the default of the orders that have the setting.

    confidence         untempered: the softmax of the logits; tempered: the law that draws
    score              of plackett_luce: how sure the network is of a position
    order_temperature  of plackett_luce: sigma, above 0
    threshold          of threshold: the confidence from which on drafts stay
    remask_by          of remask: chance, or confidence, which masks the least confident drafts again
    start_ratio, end_ratio
                       of remask: the share of a block that is masked again, falling from one to the other over its steps; the last
                       step masks nothing
    """

    order: Order = "low_confidence"
    confidence: Literal["untempered", "tempered"] | None = None
    score: Score | None = None
    order_temperature: float | None = None
    threshold: float | None = None
    remask_by: Literal["chance", "confidence"] | None = None
    start_ratio: float | None = Field(None, ge=0, le=1)
    end_ratio: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _legal(self) -> Law:
        for name, orders in OWN.items():
            if getattr(self, name) is not None and self.order not in orders:
                raise ValueError(
                    f"{name}={getattr(self, name)} is for order: {' or '.join(orders)}, not for {self.order}: leave it out"
                )
        if self.order == "remask" and self.confidence is not None and self.remask_by != "confidence":
            raise ValueError(
                f"confidence={self.confidence} with order: remask is for remask_by: confidence; leave one out"
            )
        if self.order_temperature is not None and not self.order_temperature > 0:
            raise ValueError(
                f"order_temperature={self.order_temperature:g}: must be above 0; at 0 the order is an arg-max and has no policy "
                "gradient"
            )
        if self.threshold is not None:
            threshold_law(Truncation(), self.threshold, tempered=False)
        return self

    def of(self, truncation: Truncation) -> UnmaskingLaw:
        """The law of a step."""
        tempered = self.confidence == "tempered"
        if self.order in ("random", "left_to_right"):
            return FixedOrder(truncation, "random" if self.order == "random" else "left_to_right")
        if self.order == "plackett_luce":
            sigma = 1.0 if self.order_temperature is None else self.order_temperature
            return PlackettLuce(truncation, self.score or "confidence", sigma, tempered)
        if self.order == "low_confidence":
            return LowConfidence(truncation, tempered)
        if self.order == "threshold":
            return threshold_law(truncation, 0.9 if self.threshold is None else self.threshold, tempered=tempered)
        if self.order == "ancestral":
            return Ancestral(truncation)
        return RemaskDoubtful(truncation, tempered) if self.remask_by == "confidence" else Remask(truncation)

    @property
    def jumps(self) -> bool:
        """Whether a step compares confidences: then its probability jumps where one crosses another."""
        return self.order in ("low_confidence", "threshold") or self.remask_by == "confidence"

    @property
    def shares(self) -> tuple[float, float]:
        """The ends of the line on which the shares of a block lie that are masked again: step 1 is one step from its beginning."""
        start = 0.95 if self.start_ratio is None else self.start_ratio
        return start, 0.05 if self.end_ratio is None else self.end_ratio


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: unmasking`.

    model                  "new" for a diffusion GPT; a folder that a run saved, of this kind or a generator of kind fill_in; a
                           published model: a folder, a hub name, a bundled name, "tiny-llada" (tiny-dream, tiny-sdar, tiny-llada2)
    family                 of a published model: what its folder says; bidirectional for a causal language model
    shift                  of a published model: whether outputs speak for the next position; null: what its family does
    mask_token             of a published model: the mask, a token or an id; null: what its folder or family says
    symbols                "ascii", "char" (the characters of `text`), "byte", or a tokenizer.json or its folder; null: what the
                           folder has, "ascii" for a new network
    writes                 answer: `max_completion_length` positions after the prompt, whose text ends at the first end of sequence;
                           holes: the prompt's own █, at most `max_completion_length`
    block_length           positions of a block; blocks are written one after the other. null: the whole answer is one
    steps                  of all blocks together, while training; null: as many as positions. `evaluation_steps` where the policy
                           is judged or used
    train_steps            train so many steps of each trajectory, drawn at random
    estimator              how log-probabilities are computed in training: exactly, step by step, or by a surrogate (estimators/)
    drafts                 before every step and at the end, keep the whole text as it would be filled in at once, for the reward
                           `drafts`: a second forward pass a step
    """

    model: Annotated[str, NamesFiles((NEW,), or_hub=True)] = NEW
    network: Network = Network()
    symbols: Annotated[str | None, NamesFiles(("ascii", "char", "byte"))] = None
    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    writes: Literal["answer", "holes"] = "answer"
    max_completion_length: int = Field(64, ge=1)
    block_length: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    evaluation_steps: int | None = Field(None, ge=1)
    law: Law = Law()
    temperature: float = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    train_steps: int | None = Field(None, ge=1)
    estimator: EstimatorSettings = Trajectory()
    drafts: bool = False
    ema_decay: float = Field(0.0, ge=0, lt=1)
    family: str | None = None
    trust_remote_code: bool = False
    shift: bool | None = None
    mask_token: str | int | None = None
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    lora: Lora | None = None
    adapter: Annotated[str | None, NamesFiles(or_hub=True)] = None
    quantize: Literal["4bit", "8bit"] | None = None
    gradient_checkpointing: bool = False
    chat: bool = False
    system_prompt: str | None = None
    skip_special_tokens: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature:g}: must be above 0; at 0 a step is deterministic and has no policy gradient. "
                "Sample with a small one, for example 0.1"
            )
        if self.max_completion_length % self.block:
            raise ValueError(
                f"max_completion_length={self.max_completion_length} is no multiple of block_length={self.block_length}: blocks "
                "are of one length"
            )
        self._require_steps("steps", self.sampling_steps)
        if self.evaluation_steps is not None:
            self._require_steps("evaluation_steps", self.evaluation_steps)
        if self.train_steps is not None and self.train_steps > self.sampling_steps:
            raise ValueError(f"train_steps={self.train_steps}: a trajectory has at most {self.sampling_steps} steps")
        if self.train_steps is not None and self.estimator.kind != "exact":
            raise ValueError(
                f"train_steps={self.train_steps} with estimator.kind={self.estimator.kind}: a surrogate looks at finished texts, "
                "which have no steps; leave one of them out"
            )
        if self.drafts and (self.train_steps is not None or self.estimator.kind != "exact"):
            raise ValueError(
                f"drafts=true with train_steps={self.train_steps}, estimator.kind={self.estimator.kind}: drafts give credit to "
                "single steps, so every step has to be a decision. Leave train_steps and estimator out"
            )
        if self.estimator.kind != "exact" and (self.top_p < 1 or self.top_k):
            raise ValueError(
                f"estimator.kind={self.estimator.kind} with top_p={self.top_p:g}, top_k={self.top_k}: a surrogate asks at other "
                "states than those that were drawn at, whose supports it does not know, and would train another law. Use top_p=1, "
                "top_k=0"
            )
        if isinstance(self.estimator, MergedSteps) and self.law.order in ("threshold", "remask"):
            raise ValueError(
                f"estimator.kind=merged_steps with law.order={self.law.order}: it needs steps that are known before and write each "
                "position once; use order: random, left_to_right, plackett_luce, low_confidence or ancestral"
            )
        if isinstance(self.estimator, MergedSteps) and self.estimator.segments > self.sampling_steps:
            raise ValueError(
                f"estimator.segments={self.estimator.segments}: more than the {self.sampling_steps} steps of a trajectory"
            )
        return self

    def _require_steps(self, name: str, steps: int) -> None:
        if steps % self.blocks:
            raise ValueError(
                f"{name}={steps} over {self.blocks} blocks (max_completion_length / block_length): give a multiple of {self.blocks}"
            )
        if self.law.order not in ("ancestral", "remask") and steps > self.max_completion_length:
            raise ValueError(
                f"{name}={steps}: order {self.law.order} reveals at least one position a step, so that "
                f"max_completion_length={self.max_completion_length} steps are enough"
            )

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.max_completion_length if self.block_length is None else self.block_length

    @property
    def blocks(self) -> int:
        """How many blocks a text can have."""
        return self.max_completion_length // self.block

    @property
    def sampling_steps(self) -> int:
        """Steps of all blocks while training."""
        return self.max_completion_length if self.steps is None else self.steps
