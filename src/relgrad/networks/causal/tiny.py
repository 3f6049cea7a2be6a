"""A tiny model to train from scratch: Qwen3 architecture, one token per printable character. For tests and the impatient."""

from __future__ import annotations

import os
import re
import shutil
import string
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError

UNIT = 16
"""Hidden sizes are multiples of it. Heads are 32 wide where that divides the hidden size, and else this wide."""
NAME = re.compile(r"tiny(?::(\d{1,9})x(\d{1,9}))?")
CHARACTERS = tuple(c for c in string.printable if c not in "\t\r\x0b\x0c")


def is_tiny(name: str) -> bool:
    """Whether a model name asks for a tiny model: "tiny", or "tiny:128x2" for hidden size 128 and 2 layers."""
    return NAME.fullmatch(name) is not None


def folder(name: str, cache: Path) -> Path:
    """The tiny model as an ordinary model folder in the cache, made on first use; its random weights are always the same."""
    match = NAME.fullmatch(name)
    assert match
    hidden, layers = int(match[1] or 128), int(match[2] or 2)
    if hidden % UNIT or not hidden or not layers:
        raise RelgradError(
            f"model {name!r}: write tiny:HIDDENxLAYERS with HIDDEN a multiple of {UNIT} and at least one layer"
        )
    target = cache / "tiny" / f"{hidden}x{layers}"
    if not (target / "config.json").is_file():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        build_model(hidden, layers).save_pretrained(unfinished)
        build_tokenizer().save_pretrained(unfinished)
        try:
            unfinished.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return target


def build_model(hidden: int, layers: int) -> Any:
    """A Qwen3ForCausalLM with random weights (seed 0) over CHARACTERS and <eos>."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    head = 32 if hidden % 32 == 0 else UNIT
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 1,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=max(hidden // 64, 1),
        head_dim=head,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def build_tokenizer() -> Any:
    """One token per character; <eos> is id 0."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, **{c: i + 1 for i, c in enumerate(CHARACTERS)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", model_max_length=512)
