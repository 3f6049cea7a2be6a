"""What a recipe's `policy` section may say of a fill-in policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relgrad.core.settings import NamesFiles, Strict
from relgrad.policies.fill_in.denoise import Denoise
from relgrad.text.corpus import BUILTIN


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: fill_in`.

    text, symbols   the vocabulary: of which text, and in which symbols (as the task has them)
    checkpoint      a folder a run saved, or an original .pt file, in place of a new network
    denoise         how `film` writes a text in several steps; training always fills in one
    dtype           what the network computes in; weights and updates stay float32
    scoring         "law": by what was sampled. "untempered": at temperature 1 over all ids, as the baseline does (a surrogate)
    """

    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    symbols: Annotated[str, NamesFiles(("char", "byte"))] = "char"
    checkpoint: Annotated[str | None, NamesFiles()] = None
    block_size: int = Field(128, ge=1)
    n_layer: int = Field(4, ge=1)
    n_head: int = Field(4, ge=1)
    n_embd: int = Field(144, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    bias: bool = False
    attention_type: Literal["bidirectional", "causal"] = "bidirectional"
    position_encoding: Literal["rotary", "absolute"] = "rotary"
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    scoring: Literal["law", "untempered"] = "law"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mask_ratio_power: float = Field(0.0, ge=0, description="supervised samples weigh (share asked for / 0.5) ^ -power")
    critic_weight: float = Field(
        0.0, ge=0, description="weight of a head that learns which fills are wrong; 0: no head"
    )
    denoise: Denoise = Denoise()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
