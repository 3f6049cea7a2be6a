"""The benchmarks' models, prompts and reward; made on the spot, nothing is downloaded."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.networks.causal import load as causal

SPECIAL = ("<eos>", "<pad>", "<unk>")


def qwen3(name: str, words: Sequence[str], **sizes: Any) -> Path:
    """A randomly initialised Qwen3 with a word-level tokenizer (words are separated by nothing but the regex below).

    The folder is cached by name; the weights are the same every time. `words` are the vocabulary after three special
    entries; a word is one character, or a letter followed by digits.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = causal.cache_dir() / "benchmarks" / name
    if (folder / "model.safetensors").is_file():
        return folder
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]\d+|."), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    config = Qwen3Config(vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=0, pad_token_id=1, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_qwen3() -> Path:
    """1.38 M parameters: hidden 128, 4 layers, 4 heads, vocabulary 4,096, tied embeddings."""
    return qwen3(
        "tiny-qwen3",
        [f"w{i}" for i in range(4096 - len(SPECIAL))],
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def digits_qwen3() -> Path:
    """0.4 M parameters, one token per digit and one for "=": the model that learns to reverse digits."""
    return qwen3(
        "digits-qwen3",
        [*"0123456789="],
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


def word_prompts(count: int, tokens: int) -> list[Prompt]:
    """Prompts of exactly `tokens` tokens for `tiny_qwen3`."""
    draw = random.Random(0)
    return [Prompt("".join(f"w{draw.randrange(4000)}" for _ in range(tokens)), id=i) for i in range(count)]


def text_prompts(folder: str, count: int, tokens: int) -> list[Prompt]:
    """Prompts of exactly `tokens` tokens for any byte-level BPE tokenizer: words that are one token each."""
    tokenizer = causal.load_tokenizer(folder)
    words = sorted(
        w[1:] for w in tokenizer.get_vocab() if w[0] == "Ġ" and w[1:].isascii() and w[1:].isalpha() and len(w) > 4
    )
    draw = random.Random(0)
    prompts = [Prompt("".join(f" {draw.choice(words)}" for _ in range(tokens)), id=i) for i in range(count)]
    for prompt in prompts:
        length = len(tokenizer(prompt.text).input_ids)
        if length != tokens:
            raise RelgradError(
                f"a benchmark prompt has {length} tokens, not {tokens}: the words are not one token each"
            )
    return prompts


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """A TRL-style reward in [0, 1), different for different texts, so that no group is without spread."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]
