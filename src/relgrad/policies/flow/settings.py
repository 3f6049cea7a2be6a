"""What a recipe's `policy` section may say of a flow policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from relgrad.core.settings import NamesFiles, Strict
from relgrad.laws.ctmc import Kernel, Source
from relgrad.laws.schedule import SchedulerKind
from relgrad.networks.fsdfm.lora import ATTENTION
from relgrad.networks.fsdfm.network import SIZES
from relgrad.networks.fsdfm.published_files import Part
from relgrad.policies.flow.supervised.few_step import FewStep
from relgrad.policies.flow.supervised.flow_matching import DataLoss
from relgrad.text.corpus import BUILTIN


class Network(Strict):
    """Sizes that differ from those of the named one. Of a checkpoint: what it has, and what a file does not say."""

    hidden: int | None = Field(None, ge=2)
    blocks: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    cond_dim: int | None = Field(None, ge=1)
    mlp_ratio: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)


class Lora(Strict):
    """LoRA through peft; `target_modules` are names of linear layers, or "all-linear"."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = ATTENTION


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: flow`; null stands for what the checkpoint says.

    model             a size for a new network, a folder a run saved, or a checkpoint file of FS-DFM
    symbols           "ascii", "char" (the characters of `text`), "byte", a tokenizer.json or its folder, or a hub name
    sampling_steps    S while training; `evaluation_steps` where the policy is judged or used
    train_steps       train so many steps of each trajectory, drawn at random
    branch_steps      Flow-GRPO-Fast: a group shares its trajectory up to a random step, and the next so many are trained
    dtype             what the network computes in; under adapters its weights are kept in it too, trained weights stay float32
    few_step          supervised stages distil into a step-conditioned student
    """

    model: Annotated[str, NamesFiles(tuple(SIZES))] = "small"
    part: Part = "auto"
    network: Network = Network()
    symbols: Annotated[str | None, NamesFiles(("ascii", "char", "byte"), or_hub=True)] = None
    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    end_token: str | None = None
    max_completion_length: int = Field(128, ge=1)
    source: Source | None = None
    kernel: Kernel = "mixture"
    scheduler: SchedulerKind | None = None
    exponent: float | None = Field(None, ge=1)
    sampling_steps: int = Field(16, ge=1, le=10_000)
    evaluation_steps: int | None = Field(None, ge=1, le=10_000)
    temperature: float = Field(1.0, gt=0)
    train_steps: int | None = Field(None, ge=1)
    branch_steps: int | None = Field(None, ge=1)
    data_loss: DataLoss = "cross_entropy"
    few_step: FewStep | None = None
    ema_decay: float = Field(0.0, ge=0, lt=1)
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    device: str = "auto"

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.scheduler == "cosine" and self.exponent is not None:
            raise ValueError(f"exponent={self.exponent:g} is the polynomial's; leave it out with scheduler='cosine'")
        for name, count in (("train_steps", self.train_steps), ("branch_steps", self.branch_steps)):
            if count is not None and count > self.sampling_steps:
                raise ValueError(f"{name}={count}: a trajectory has only sampling_steps={self.sampling_steps} steps")
        if self.train_steps is not None and self.branch_steps is not None:
            raise ValueError("train_steps and branch_steps both say which steps are trained: keep one")
        if self.few_step is not None:
            for steps in (self.sampling_steps, self.evaluation_steps or self.sampling_steps):
                self.few_step.require_steps(steps)
            if self.source == "mask" and self.few_step.teacher == "rk4":
                raise ValueError("few_step.teacher='rk4' needs a uniform source; with source='mask' use half_steps")
            if not self.ema_decay:
                raise ValueError("few_step learns from a moving average of itself: set ema_decay, for example 0.9995")
        return self
