"""Files of the original (the nano_gpt family of JinxCodesAI), read: checkpoints and meta.pkl.

    checkpoint  {model, model_args, config, iter_num, optimizer ...}; config["meta"] or a meta.pkl beside it has the vocabulary

Its special ids are not always relgrad's (MASK = base, PAD = base + 1, CLS = base + 2): the first generators have no CLS, and
their judges have CLS where the generator has PAD. Embedding rows are moved so that a loaded network speaks relgrad's ids;
an id that the file does not have gets a row of zeros. Its networks were trained with padding looked at like any other id, and a
loaded network goes on so (`attends_padding`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig, ModelMode
from relgrad.networks.weights import files
from relgrad.networks.weights.safe_pickle import load_plain, load_tensors
from relgrad.text.vocabulary import Vocabulary

META = "meta.pkl"

USED = {
    "vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "attention_type", "position_encoding",
    "mode", "num_token_classes", "binary_classification", "cls_token_id", "mask_token_id", "pad_token_id", "add_critic_head",
}  # fmt: skip
IGNORED = {
    "ignore_index", "freeze_transformer", "init_from_checkpoint", "unfreeze_at_iteration", "unfreeze_lr_multiplier",
    "critic_alpha", "critic_target_scope", "start_critic_iteration", "end_critic_iteration", "share_main_matrices",
}  # fmt: skip
"""Arguments of training, which a loaded network does not need; shared matrices are in the file once per block."""
SWITCHES = {
    "use_lora_attn": ("lora_rank", "lora_alpha", "lora_dropout"),
    "use_lora_mlp": (),
    "use_guidance": ("plan_tokens", "plan_encoder_depth_factor", "cond_dropout_prob"),
    "add_sampler_head": ("start_sampler_iteration", "sampler_min_neighbors_ratio"),
}
"""Parts that this network does not have, with their settings: refused where they are on."""
BUFFERS = re.compile(r"\.attn\.bias$|\.rotary_emb\.")
"""The causal mask and the rotary tables, which follow from the configuration."""


# ---------------------------------------------------------------------- vocabularies


@dataclass(frozen=True)
class Layout:
    """relgrad's vocabulary of a file, and for each of its ids the file's own (None where the file has none)."""

    vocabulary: Vocabulary
    file_ids: tuple[int | None, ...]

    def translate(self, ids: Tensor, what: str) -> np.ndarray:
        """The file's ids as relgrad's, same shape. Raises RelgradError for an id the vocabulary does not know."""
        table = torch.full((max(i for i in self.file_ids if i is not None) + 1,), -1)
        for own, file_id in enumerate(self.file_ids):
            if file_id is not None:
                table[file_id] = own
        foreign = (ids < 0) | (ids >= len(table))
        translated = table[ids.masked_fill(foreign, 0)].masked_fill(foreign, -1)
        if bool((translated < 0).any()):
            raise RelgradError(
                f"{what} has the id {int(ids[translated < 0][0])}, which its vocabulary does not know; is it the meta.pkl of "
                "another dataset?"
            )
        return translated.numpy()


def load_layout(path: Path) -> Layout:
    """The vocabulary of a dataset: its meta.pkl, or a vocabulary.json of relgrad. Raises RelgradError."""
    path = Path(path)
    if path.suffix == ".json":
        vocabulary = Vocabulary.load(path.parent)
        return Layout(vocabulary, tuple(range(vocabulary.size)))
    meta = load_plain(path)
    if not isinstance(meta, dict):
        raise RelgradError(f"{path}: a {type(meta).__name__}, not the mapping that a {META} is")
    return layout_of(meta, {}, str(path))


def layout_of(meta: Mapping[str, Any], args: Mapping[str, Any], source: str) -> Layout:
    """The layout that a `meta` mapping describes; special ids it leaves out are taken from a checkpoint's `args`."""
    stoi, itos = meta.get("stoi") or {}, meta.get("itos") or {}
    if not itos:
        raise RelgradError(
            f"{source}: no itos in it, the list of symbols; it has {', '.join(map(str, meta)) or 'nothing'}"
        )
    symbols = {int(i): symbol for i, symbol in itos.items()}
    special = []
    for name in ("mask", "pad", "cls"):
        candidates = (meta.get(f"{name}_token_id"), stoi.get(f"[{name.upper()}]"), args.get(f"{name}_token_id"))
        special.append(next((int(i) for i in candidates if i is not None), None))
    if special[0] is None:
        raise RelgradError(f"{source}: no mask_token_id in it, so it is no vocabulary of masked text")
    ordinary = sorted(i for i in symbols if i not in special)
    strange = [symbols[i] for i in ordinary if not isinstance(symbols[i], str) or len(symbols[i]) != 1]
    if strange:
        raise RelgradError(
            f"{source}: symbols that are neither characters nor mask, padding or summary: {', '.join(map(repr, strange[:8]))}"
        )
    characters = tuple(str(symbols[i]) for i in ordinary)
    return Layout(Vocabulary("char", characters), (*ordinary, *special))


# ---------------------------------------------------------------------- checkpoints


def load_checkpoint(path: Path, *, prefer: ModelMode | None = None, meta: Path | None = None) -> tuple[GPT, Vocabulary]:
    """The network of a checkpoint and its vocabulary.

    prefer  which of its two networks a file with two heads gives; None: the one its config names, else the language model
    meta    a meta.pkl (or vocabulary.json) for a checkpoint without one; None: the meta.pkl beside it

    Raises RelgradError for a file that is cut off, is no checkpoint, would run code, has no vocabulary, or holds a network
    with parts that this one does not have (each by name).
    """
    path = Path(path)
    file = load_tensors(path)
    if not isinstance(file, dict) or not {"model", "model_args"} <= file.keys():
        present = ", ".join(map(str, file)) if isinstance(file, dict) else type(file).__name__
        raise RelgradError(f"{path}: not a checkpoint: it needs model and model_args, and has {present or 'nothing'}")
    args, config, weights = file["model_args"], file.get("config") or {}, file["model"]
    if not all(isinstance(part, Mapping) for part in (args, config, weights)):
        kinds = ", ".join(type(part).__name__ for part in (weights, args, config))
        raise RelgradError(f"{path}: not a checkpoint: model, model_args and config are {kinds}, not mappings")
    state = {}
    for name, value in files.unwrapped(weights, str(path)).items():
        if not isinstance(value, Tensor):
            raise RelgradError(f"{path}: {name} in model is a {type(value).__name__}, not a tensor")
        if not BUFFERS.search(name):
            state[name] = value.float()
    if state.get("transformer.wte.weight", torch.empty(0)).dim() != 2:
        raise RelgradError(
            f"{path}: no matrix transformer.wte.weight among its weights, so it is no network of this family"
        )
    layout = _layout(path, config, args, meta)
    gpt = _config(path, args, config, state, layout.vocabulary, prefer)
    with torch.random.fork_rng(devices=[]):
        model = GPT(gpt)
    model.take(_weights(path, state, gpt, layout), str(path))
    return model, layout.vocabulary


def _layout(path: Path, config: Mapping[str, Any], args: Mapping[str, Any], meta: Path | None) -> Layout:
    if meta is not None:
        return load_layout(meta)
    if config.get("meta"):
        return layout_of(config["meta"], args, f"{path}, config['meta']")
    beside = path.parent / META
    if beside.is_file():
        return load_layout(beside)
    raise RelgradError(
        f"{path}: no vocabulary in it (config has no meta, as in checkpoints of GRPO). Copy the dataset's {META} (data/NAME/"
        f"{META}) to {beside}"
    )


def _config(
    path: Path, args: Mapping[str, Any], config: Mapping[str, Any], state: Mapping[str, Tensor], vocabulary: Vocabulary,
    prefer: ModelMode | None,
) -> GPTConfig:  # fmt: skip
    """The network's configuration. What `args` leaves out is what the code that wrote the file had no choice about."""
    _require_known(path, args)
    mode = _mode(path, args, config, state, prefer)
    absolute = "transformer.wpe.weight" in state
    attention = args.get("attention_type") or ("causal" if absolute or "position_encoding" in args else "bidirectional")
    sizes = {name: args[name] for name in ("block_size", "n_layer", "n_head", "n_embd") if name in args}
    if missing := {"block_size", "n_layer", "n_head", "n_embd"} - sizes.keys():
        raise RelgradError(f"{path}: model_args lacks {', '.join(sorted(missing))}")
    try:
        return GPTConfig(
            vocab_size=vocabulary.size,
            **sizes,
            dropout=args.get("dropout", 0.0),
            bias=args.get("bias", "transformer.ln_f.bias" in state),
            attention_type=attention if mode == "language_model" else "bidirectional",
            position_encoding=args.get("position_encoding") or ("absolute" if absolute else "rotary"),
            mode=mode,
            num_token_classes=len(state["lm_head.weight"]) if mode == "token_classifier" else 1,
            cls_token_id=vocabulary.cls_id if mode == "sequence_scorer" else None,
            critic="critic_head.weight" in state,
            attends_padding=True,
        )
    except (ValueError, KeyError) as error:
        raise RelgradError(f"{path}: model_args describe no network of this family: {error}") from None


def _require_known(path: Path, args: Mapping[str, Any]) -> None:
    details = {name for names in SWITCHES.values() for name in names}
    on = [name for name in SWITCHES if args.get(name)]
    unknown = sorted(args.keys() - USED - IGNORED - SWITCHES.keys() - details)
    if on or unknown:
        raise RelgradError(
            f"{path}: a network with parts that this one does not have: "
            + ", ".join([*(f"{name}={args[name]!r}" for name in on), *(f"{n}={args[n]!r} (unknown)" for n in unknown)])
        )


def _mode(
    path: Path,
    args: Mapping[str, Any],
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    prefer: ModelMode | None,
) -> ModelMode:
    if "lm_head.weight" in state and "sequence_head.A" in state:  # both heads: the mode was chosen when the network ran
        named = prefer or config.get("model_mode")
        return "sequence_scorer" if named == "sequence_scorer" else "language_model"
    named = args.get("mode")
    if named is None:
        named = "sequence_scorer" if "sequence_head.A" in state else "language_model"
    if args.get("binary_classification") and named == "language_model":
        return "token_classifier"
    if named not in get_args(ModelMode):
        raise RelgradError(f"{path}: mode={named!r} in model_args; known are {', '.join(get_args(ModelMode))}")
    return named


def _weights(path: Path, state: dict[str, Tensor], gpt: GPTConfig, layout: Layout) -> dict[str, Tensor]:
    """The file's weights under this network's names, embedding rows in relgrad's order."""
    state = dict(state)
    embedding = state["transformer.wte.weight"]
    largest = max(i for i in layout.file_ids if i is not None)
    if gpt.mode == "sequence_scorer":
        largest = max(i for i in layout.file_ids[:-1] if i is not None)  # its summary id has an embedding of its own
    if largest >= len(embedding):
        raise RelgradError(f"{path}: {len(embedding)} embeddings, but its vocabulary has the id {largest}")
    rows = [
        embedding.new_zeros(embedding.shape[1]) if i is None or i >= len(embedding) else embedding[i]
        for i in layout.file_ids
    ]
    state["transformer.wte.weight"] = torch.stack(rows)
    head = state.pop("lm_head.weight", embedding) if gpt.mode != "token_classifier" else embedding
    if not torch.equal(head, embedding):
        raise RelgradError(
            f"{path}: lm_head.weight differs from transformer.wte.weight, but they are one matrix in this network"
        )
    if gpt.mode == "language_model":
        for name in [n for n in state if n.startswith("sequence_head.") or n == "cls_embedding"]:
            del state[name]
    for name in ("sequence_head.A", "sequence_head.B", "sequence_head.temperature"):
        if name in state and state[name].shape == (1,):
            state[name] = state[name].reshape(())
    if gpt.critic:
        state.setdefault("critic_head.bias", torch.zeros(1))
    if gpt.mode == "token_classifier" and gpt.bias:
        state.setdefault("lm_head.bias", torch.zeros(gpt.num_token_classes))
    return state
