"""A generator as a checkpoint file of the original, for its own sampler: what `original_files.load_checkpoint` reads, written.

    {model, model_args, config: {dataset, model_mode, meta}, iter_num, best_val_loss, optimizer: {}}

`model_args` leaves `mode` out, an enumeration of the original's code, whose default is the language model. Ids are relgrad's, which
`meta` describes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.network import GPT
from relgrad.text.masking import IGNORE
from relgrad.text.sample_file import write_atomic
from relgrad.text.vocabulary import Vocabulary

DATASET = "char_diffusion"
ARGUMENTS = {"block_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "attention_type", "position_encoding"}


def save_checkpoint(path: Path, model: GPT, vocabulary: Vocabulary) -> list[str]:
    """Write the file; returns what a person should know of it.

    Raises RelgradError for a vocabulary or a network that the original does not have, and a path that cannot be written.
    """
    if vocabulary.kind != "char":
        raise RelgradError(f"the original's vocabularies are of characters, this is a {vocabulary}")
    if model.config.mode != "language_model" or model.config.marks:
        raise RelgradError(f"a generator is exported, a language_model without marks; this is a {model.config.mode}")
    notes = []
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    arguments: dict[str, Any] = {**model.config.model_dump(include=ARGUMENTS), "vocab_size": vocabulary.size}
    if model.config.critic:
        if bool(state.pop("critic_head.bias").any()):
            notes.append("the bias of the critic head is left out: its ranking stays, its probabilities shift")
        arguments |= {"add_critic_head": True, "mask_token_id": vocabulary.mask_id, "pad_token_id": vocabulary.pad_id}
    if not model.config.attends_padding:
        notes.append("this network masks padding and the original does not: sample whole blocks there, without padding")
    content = {
        "model": state,
        "optimizer": {},
        "model_args": arguments,
        "iter_num": 0,
        "best_val_loss": float("inf"),
        "config": {
            "dataset": DATASET,
            "model_mode": "language_model",
            "meta": meta_of(vocabulary, model.config.block_size),
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomic(Path(path), buffer.getvalue())
    except OSError as error:
        raise RelgradError(f"{path} cannot be written: {error}") from None
    return notes


def meta_of(vocabulary: Vocabulary, block_size: int) -> dict[str, Any]:
    """The content of the dataset's meta.pkl."""
    special = {"[MASK]": vocabulary.mask_id, "[PAD]": vocabulary.pad_id, "[CLS]": vocabulary.cls_id}
    stoi = {symbol: number for number, symbol in enumerate(vocabulary.symbols)} | special
    return {
        "dataset_name": DATASET,
        "training_type": "MLM",
        "vocab_size": vocabulary.size,
        "base_vocab_size": vocabulary.base,
        "block_size": block_size,
        "ignore_index": IGNORE,
        "mask_token_id": vocabulary.mask_id,
        "pad_token_id": vocabulary.pad_id,
        "cls_token_id": vocabulary.cls_id,
        "stoi": stoi,
        "itos": {number: symbol for symbol, number in stoi.items()},
    }
