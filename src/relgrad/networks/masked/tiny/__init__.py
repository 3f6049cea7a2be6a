"""A tiny network of every family, as a folder with the family's quirks: its own code, names, mask, more logits than tokens.

llada_code.py   names and forward of a LLaDA, on torch alone; it does not look at an attention mask
dream_code.py   Dream's inputs on transformers' Qwen2: "full" or a bool mask, outputs that speak for the next position
sdar_code.py    SDAR's inputs on transformers' Qwen3: a bool mask, block-causal
llada2_code.py  names and forward of a LLaDA 2, on torch alone: an additive mask, experts

For tests and the impatient: one token per printable character, random weights that are always the same. The code is copied into
the folder, where `trust_remote_code` runs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal.load import quiet
from relgrad.networks.causal.tiny import CHARACTERS, build_tokenizer

NAME = re.compile(r"tiny-(llada2|llada|dream|sdar)(?::(\d{1,9})x(\d{1,9}))?")
TOKENS = len(CHARACTERS) + 1
ENTRIES = TOKENS + 8
"""Rows of embedding and head: more than the tokenizer has tokens, as in the published models."""


@dataclass(frozen=True)
class Quirks:
    """How a family's folder differs.

    code      the module copied into the folder
    classes   of configuration and model in it
    auto      the class of transformers that finds the model
    mask      the token that its tokenizer has for the mask; None: the mask is an id without a token
    """

    code: str
    classes: tuple[str, str]
    auto: str
    mask: str | None


QUIRKS = {
    "llada": Quirks("llada_code", ("LLaDAConfig", "LLaDAModelLM"), "AutoModel", None),
    "dream": Quirks("dream_code", ("DreamConfig", "DreamModel"), "AutoModel", "<|mask|>"),
    "sdar": Quirks("sdar_code", ("SDARConfig", "SDARForCausalLM"), "AutoModelForCausalLM", "<|MASK|>"),
    "llada2": Quirks("llada2_code", ("LLaDA2MoeConfig", "LLaDA2MoeModelLM"), "AutoModelForCausalLM", "<|mask|>"),
}


def is_tiny(name: str) -> bool:
    """Whether a model name asks for a tiny network: "tiny-llada", or "tiny-llada:128x2" for hidden size 128 and 2 layers."""
    return NAME.fullmatch(name) is not None


def folder(name: str, cache: Path) -> Path:
    """The network as a folder in the cache, made on first use. Raises RelgradError for a size that cannot be."""
    match = NAME.fullmatch(name)
    assert match
    family, hidden, layers = match[1], int(match[2] or 64), int(match[3] or 2)
    if hidden % 32 or not hidden or not layers:
        raise RelgradError(
            f"model {name!r}: write tiny-{family}:HIDDENxLAYERS with HIDDEN a multiple of 32 and at least one layer"
        )
    target = cache / "tiny" / f"{family}-{hidden}x{layers}"
    if not (target / "config.json").is_file():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        write(family, unfinished, hidden, layers)
        try:
            unfinished.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return target


def write(family: str, target: Path, hidden: int, layers: int) -> None:
    """Write the folder of a tiny network with random weights (seed 0), spread enough that mistakes show."""
    quiet()
    quirks = QUIRKS[family]
    tokenizer = build_tokenizer()
    if quirks.mask is not None:
        tokenizer.add_special_tokens({"mask_token": quirks.mask})
    target.mkdir(parents=True, exist_ok=True)
    code = f"modeling_{family}"
    shutil.copyfile(Path(__file__).with_name(f"{quirks.code}.py"), target / f"{code}.py")
    own = sizes(family, hidden, layers) | {"mask_token_id": TOKENS, "eos_token_id": 0, "pad_token_id": 0}
    model = own_model(family, own)
    model.save_pretrained(target)
    config, kind = quirks.classes
    own |= {
        "model_type": model.config.model_type,
        "architectures": [kind],
        "auto_map": {"AutoConfig": f"{code}.{config}", quirks.auto: f"{code}.{kind}"},
        "dtype": "float32",
    }
    (target / "config.json").write_text(json.dumps(own, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(target)


def own_model(family: str, config: Mapping[str, Any]) -> Any:
    """The model of a tiny folder's own code with random weights."""
    import importlib

    quirks = QUIRKS[family]
    module = importlib.import_module(f"relgrad.networks.masked.tiny.{quirks.code}")
    config_class, kind = (getattr(module, name) for name in quirks.classes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config_class(**config))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name or "wte" in name else 0.15)
    return model.eval()


def sizes(family: str, hidden: int, layers: int) -> dict[str, Any]:
    """The entries of config.json that say how large the network is, as the family calls them."""
    heads = hidden // 16
    if family == "llada":
        return {
            "d_model": hidden, "n_heads": heads, "n_kv_heads": heads, "n_layers": layers, "mlp_hidden_size": 2 * hidden,
            "vocab_size": ENTRIES, "embedding_size": ENTRIES, "max_sequence_length": 512, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "weight_tying": False, "block_type": "llama", "layer_norm_type": "rms",
            "activation_type": "silu", "rope": True, "alibi": False, "include_bias": False, "include_qkv_bias": False,
        }  # fmt: skip
    own: dict[str, Any] = {
        "vocab_size": ENTRIES, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": max(heads // 2, 1), "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    if family != "dream":
        own |= {"head_dim": 16, "block_size": 4}
    if family == "llada2":
        own |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden, "first_k_dense_replace": 1}
    return own
