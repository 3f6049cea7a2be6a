"""A tiny ReFusion to train from scratch: Qwen3 architecture, one token per printable character, and a mask."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import tiny

NAME = re.compile(r"tiny-refusion(?::(\d{1,9})x(\d{1,9}))?")
UNIT, SIZES = 16, (128, 4)
BEGIN, MASK = "<|beginoftext|>", "<|mask|>"


def is_tiny(name: str) -> bool:
    """Whether a model name asks for a tiny one: "tiny-refusion", or "tiny-refusion:128x4" for hidden size 128 and 4 layers."""
    return NAME.fullmatch(name) is not None


def folder(name: str, cache: Path) -> Path:
    """An ordinary model folder in the cache, made on first use; its random weights are always the same."""
    match = NAME.fullmatch(name)
    assert match
    hidden, layers = (int(size or usual) for size, usual in zip(match.groups(), SIZES, strict=True))
    if not hidden or hidden % UNIT or not layers:
        raise RelgradError(
            f"model {name!r}: write tiny-refusion:HIDDENxLAYERS with HIDDEN a multiple of {UNIT} and at least one layer"
        )
    target = cache / "tiny-refusion" / f"{hidden}x{layers}"
    if not (target / "config.json").is_file():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        tokenizer = build_tokenizer()
        build_model(hidden, layers, len(tokenizer), tokenizer.convert_tokens_to_ids(MASK)).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        try:
            unfinished.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return target


def build_tokenizer() -> Any:
    """The tiny tokenizer of characters with ReFusion's two special tokens behind its own."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [BEGIN, MASK]})
    return tokenizer


def build_model(hidden: int, layers: int, entries: int, mask_id: int, **options: Any) -> Any:
    """A Qwen3ForCausalLM with random weights (seed 0); its configuration names the mask, as ReFusion's does.

    Its heads are 32 wide, or 16 where that does not divide.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    head = 16 if hidden % 32 else 32
    shape = {
        "vocab_size": entries, "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden // head, "num_key_value_heads": hidden // head, "head_dim": head,
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    config = Qwen3Config(**shape | options)
    config.mask_token_id = mask_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)
