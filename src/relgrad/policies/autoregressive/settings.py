"""What a recipe says of an autoregressive policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from relgrad.core.settings import NamesFiles, Strict


class Lora(Strict):
    """LoRA through peft; `target_modules` as peft takes them ("all-linear" or a list of layer names)."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: autoregressive`.

    model                   folder, hub name, .gguf file, or a bundled name (smollm2-135m-instruct)
    lora                    adapter settings; leave out for full-parameter training
    max_completion_length   tokens
    chat                    wrap a plain-text prompt as one user message in the model's chat template
    system_prompt           system message of chats that have none of their own; turns a plain-text prompt into a chat
    chat_template_kwargs    what the chat template gets beside the chat, as TRL has it: {enable_thinking: false} for Qwen3
    skip_special_tokens     leave special tokens out of the text of completions
    engine                  "auto": shared-prompt engine where the probe passes; "shared" insists on it; "transformers" avoids it
    """

    model: Annotated[str, NamesFiles(or_hub=True)]
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    quantize: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    lora: Lora | None = None
    adapter: Annotated[str | None, NamesFiles(or_hub=True)] = None
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_completion_length: int = Field(256, ge=1)
    chat: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = False
    gradient_checkpointing: bool = False
    engine: Literal["auto", "shared", "transformers"] = "auto"
    device: str = "auto"

    @field_validator("chat_template_kwargs")
    @classmethod
    def _templates_alone(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(
            {"add_generation_prompt", "continue_final_message", "tokenize", "conversation"} & set(arguments)
        ):
            raise ValueError(f"{own[0]} is decided by where a chat ends; leave it out")
        return arguments
