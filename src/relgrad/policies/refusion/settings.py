"""What a recipe's `policy` section may say of a ReFusion policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from relgrad.core.settings import NamesFiles, Strict
from relgrad.policies.refusion.schedule import Schedule

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")


class Lora(Strict):
    """LoRA through peft; `target_modules` are names of linear layers, or "all-linear"."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = ADAPTED


class Native(Strict):
    """ReFusion's own decoding (native.py), by the names of its settings.

    slot_threshold   slots whose first token is more probable are drafted together; where none is, the best one
    token_threshold  drafted tokens that are more probable are kept
    temperature      of the noise on drafts; 0: none
    """

    slot_threshold: float = Field(0.9, ge=0, le=1)
    token_threshold: float = Field(0.9, ge=0, le=1)
    temperature: float = Field(0.0, ge=0)


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: refusion`.

    model                  ReFusion's folder or hub name, the folder of a run, or tiny-refusion (tiny-refusion:128x4)
    max_completion_length  tokens; a multiple of slot_size x serial_num_blocks
    slot_size              tokens of a slot
    serial_num_blocks      stretches of the answer that are written one after the other, in any order inside
    sampling_steps         planning steps while training; `evaluation_steps` where the policy is judged or used
    train_steps            train so many steps of each trajectory, drawn at random
    temperature, top_p     of tokens
    slot_temperature       of the choice of slots, by the log-probability of the likeliest first token of each
    native                 where the policy is judged or used, decode by plan, verify and infill, without log-probabilities
    slot_sizes             slot sizes of supervised examples, one drawn for each
    fill_with_end          supervised answers go on with ends of sequence to the last slot; the original's have one end
    quantize, lora         QLoRA: weights in 4 or 8 bits under float32 adapters
    """

    model: Annotated[str, NamesFiles(or_hub=True)] = "tiny-refusion"
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    quantize: Literal["4bit", "8bit"] | None = None
    lora: Lora | None = None
    max_completion_length: int = Field(128, ge=1)
    slot_size: int = Field(8, ge=1)
    serial_num_blocks: int = Field(1, ge=1)
    sampling_steps: int = Field(10, ge=1, le=10_000)
    evaluation_steps: int | None = Field(None, ge=1, le=10_000)
    train_steps: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    slot_temperature: float = Field(0.5, gt=0)
    native: Native | None = None
    slot_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((4, 8, 16, 32), min_length=1)
    fill_with_end: bool = False
    chat: bool = False
    system_prompt: str | None = None
    skip_special_tokens: bool = False
    eos_token_ids: tuple[int, ...] = ()
    ema_decay: float = Field(0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False
    device: str = "auto"

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        for steps in (self.sampling_steps, self.evaluation_steps or self.sampling_steps):
            self.schedule(steps)
        if self.train_steps is not None and self.train_steps > self.sampling_steps:
            raise ValueError(
                f"train_steps={self.train_steps}: a trajectory has only sampling_steps={self.sampling_steps} steps"
            )
        if self.native is not None and self.evaluation_steps is not None:
            raise ValueError("native decoding takes as many steps as it needs: leave evaluation_steps or native out")
        if self.lora is None and self.quantize:
            raise ValueError(f"quantize={self.quantize!r} trains adapters only: add a lora section")
        if self.lora is None and self.dtype in ("bfloat16", "float16"):
            raise ValueError(
                f"dtype={self.dtype!r} with full-parameter training: small updates would be rounded away. Use dtype: float32, or "
                "add a lora section"
            )
        return self

    def schedule(self, steps: int) -> Schedule:
        """That of so many steps. Raises ValueError where lengths and steps do not divide."""
        return Schedule.of(self.max_completion_length, self.slot_size, self.serial_num_blocks, steps)
