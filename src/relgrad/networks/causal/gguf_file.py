"""A model of Llama's architecture as a GGUF file, which llama.cpp and Ollama run: tensors, tokenizer and chat template.

    q, k [heads x d, H]   rows of a head in another order: GGUF rotates neighbours (0, 1), transformers the halves (0, d / 2)
    everything else       as it is, in float32; the head is left out where it is the embedding

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What its architecture `llama` does not have is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError

ALL_FLOAT32 = 0
"""GGUF's number for files whose tensors are all float32."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""GGUF's kinds of tokens."""
GPT2_SPLIT: Mapping[str, Any] = {"type": "ByteLevel", "use_regex": True}
SMOLLM_SPLIT: Mapping[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2_SPLIT],
}
SPLITS: Mapping[str, Mapping[str, Any]] = {"gpt-2": GPT2_SPLIT, "smollm": SMOLLM_SPLIT}
"""How texts are cut before byte pairs are merged: llama.cpp's names for what a tokenizer.json says."""


def write(model: Any, tokenizer: Any, file: Path, name: str) -> None:
    """Write the file. Raises RelgradError for another architecture or kind of tokenizer, and without the gguf package."""
    pieces = require_writable(model, tokenizer)
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, pieces)
    for label, tensor in tensors(model):
        writer.add_tensor(label, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_writable(model: Any, tokenizer: Any) -> Mapping[str, Any]:
    """The vocabulary of a model and tokenizer that can be written. Raises RelgradError as `write` does."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise RelgradError(f"writing GGUF files needs: pip install 'relgrad[gguf]' ({error})") from None
    require_llama(model)
    return vocabulary(tokenizer, model.config.vocab_size)


def require_llama(model: Any) -> None:
    """Raise RelgradError for a model that is not exactly what GGUF's architecture `llama` computes."""
    kind, config = type(model).__name__, model.config
    if kind != "LlamaForCausalLM":
        raise RelgradError(f"GGUF: {kind} cannot be written; the one architecture that can is LlamaForCausalLM")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    for setting, value, plain in (
        ("rope_type", rope, "default"),
        ("attention_bias", config.attention_bias, False),
        ("mlp_bias", config.mlp_bias, False),
        ("hidden_act", config.hidden_act, "silu"),
    ):
        if value != plain:
            raise RelgradError(f"GGUF: a Llama model with {setting}={value!r} cannot be written; only {plain!r} can")


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(GGUF's name, float32 tensor on the CPU) of every tensor of the file, in its order."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for path, parameter in model.named_parameters(remove_duplicate=True):
        if tied and path == "lm_head.weight":
            continue
        label = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if label is None:
            raise RelgradError(f"GGUF: the architecture llama has no tensor for {path}")
        tensor = parameter.detach().to("cpu", torch.float32)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(path.split(".")[-2])
        yield label, (tensor if heads is None else neighbours(tensor, heads)).contiguous()


def neighbours(weight_NH: Tensor, heads: int) -> Tensor:
    """The rows of every head with what is rotated together side by side: 0, d / 2, 1, d / 2 + 1 …"""
    rows, width = weight_NH.shape
    return weight_NH.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def vocabulary(tokenizer: Any, entries: int) -> Mapping[str, Any]:
    """`tokens` and `types` by id, `merges` as lines, and `split`, llama.cpp's name of the cut before them.

    entries  of the model's embedding; ids without a token are unused. Raises RelgradError for a tokenizer of another kind.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kind = content["model"], content["model"]["type"]
    if kind != "BPE" or model.get("byte_fallback"):
        raise RelgradError(
            f"GGUF: a tokenizer of kind {kind} cannot be written; byte-level BPE can (that of GPT-2 and SmolLM)"
        )
    cut = content.get("pre_tokenizer") or {}
    split = next((name for name, shape in SPLITS.items() if _is_shaped(cut, shape)), None)
    if split is None or content.get("normalizer"):
        raise RelgradError(
            f"GGUF: a tokenizer that cuts texts by {json.dumps(cut)[:120]} and normalises by {content.get('normalizer')} cannot be "
            f"written; those of {' and '.join(SPLITS)} can"
        )
    tokens, types = [f"[PAD{number}]" for number in range(entries)], [UNUSED] * entries
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"tokens": tokens, "types": types, "merges": merges, "split": split}


def _is_shaped(content: Any, shape: Mapping[str, Any]) -> bool:
    """Whether a part of a tokenizer.json has everything that `shape` says, and puts no space before a text."""
    if not isinstance(content, Mapping) or content.get("add_prefix_space"):
        return False
    for key, value in shape.items():
        own = content.get(key)
        if isinstance(value, list):
            if not isinstance(own, list) or len(own) != len(value):
                return False
            if not all(_is_shaped(a, b) for a, b in zip(own, value, strict=True)):
                return False
        elif own != value:
            return False
    return True


def _add_shape(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_file_type(ALL_FLOAT32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: Any, pieces: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pieces["split"])
    writer.add_token_list(pieces["tokens"])
    writer.add_token_types(pieces["types"])
    writer.add_token_merges(pieces["merges"])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def require_same(file: Path, model: Any, tokenizer: Any) -> int:
    """Read a file back; how many tensors it holds. Raises RelgradError for any number or token that is not the model's own."""
    import gguf

    read = gguf.GGUFReader(file)
    there = {tensor.name: tensor for tensor in read.tensors}
    own = dict(tensors(model))
    if there.keys() != own.keys():
        raise RelgradError(f"{file}: holds other tensors than the model: {sorted(there.keys() ^ own.keys())[:3]}")
    for label, tensor in own.items():
        saved = torch.from_numpy(there[label].data.copy()).view(tensor.shape)
        if not torch.equal(saved, tensor):
            raise RelgradError(f"{file}: tensor {label} is not what was written")
    pieces = vocabulary(tokenizer, model.config.vocab_size)
    for key, field in (("tokens", "tokens"), ("merges", "merges"), ("types", "token_type")):
        if read.fields[f"tokenizer.ggml.{field}"].contents() != pieces[key]:
            raise RelgradError(f"{file}: the tokenizer's {field} are not what was written")
    return len(own)
