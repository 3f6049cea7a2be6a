"""LLaDA (Nie et al. 2025, arXiv:2502.09992): full attention, no shift, no cache.

The mask is id 126336, for which the tokenizer has no token; there are more logits than tokens. The folder's own code makes
nothing of an attention mask that it is given, so that rows of each length run by themselves there. It names the tensors of a
Llama otherwise, and computes the same: Llama's class holds them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.networks.masked.family import Family, Library

NEEDED: Mapping[str, Any] = {
    "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False,
    "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False, "multi_query_attention": None,
    "include_qkv_bias": False, "include_bias": False,
}  # fmt: skip
"""What the published models have, and a Llama computes."""

RENAMED = (
    ("model.transformer.wte.", "model.embed_tokens."),
    ("model.transformer.ln_f.", "model.norm."),
    ("model.transformer.ff_out.", "lm_head."),
    ("model.transformer.blocks.#.attn_norm.", "model.layers.#.input_layernorm."),
    ("model.transformer.blocks.#.ff_norm.", "model.layers.#.post_attention_layernorm."),
    ("model.transformer.blocks.#.q_proj.", "model.layers.#.self_attn.q_proj."),
    ("model.transformer.blocks.#.k_proj.", "model.layers.#.self_attn.k_proj."),
    ("model.transformer.blocks.#.v_proj.", "model.layers.#.self_attn.v_proj."),
    ("model.transformer.blocks.#.attn_out.", "model.layers.#.self_attn.o_proj."),
    ("model.transformer.blocks.#.ff_proj.", "model.layers.#.mlp.gate_proj."),
    ("model.transformer.blocks.#.up_proj.", "model.layers.#.mlp.up_proj."),
    ("model.transformer.blocks.#.ff_out.", "model.layers.#.mlp.down_proj."),
)


def llama_config(own: Mapping[str, Any]) -> dict[str, Any]:
    """Llama's configuration of the same network. Raises RelgradError for one that is no Llama."""
    if other := [f"{name}={own[name]!r}" for name, value in NEEDED.items() if name in own and own[name] != value]:
        raise RelgradError(
            f"a LLaDA with {', '.join(other)}, which transformers' Llama class does not compute: set "
            "policy.trust_remote_code=true to run the folder's own code"
        )
    heads = own["n_heads"]
    return {
        "vocab_size": own.get("embedding_size") or own["vocab_size"],
        "hidden_size": own["d_model"],
        "intermediate_size": own.get("mlp_hidden_size") or own.get("mlp_ratio", 4) * own["d_model"],
        "num_hidden_layers": own["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("n_kv_heads") or heads,
        "max_position_embeddings": own["max_sequence_length"],
        "rms_norm_eps": own.get("rms_norm_eps", 1e-5),
        "rope_theta": own.get("rope_theta", 10000.0),
        "tie_word_embeddings": own.get("weight_tying", False),
        "eos_token_id": own.get("eos_token_id"),
        "pad_token_id": own.get("pad_token_id"),
        "bos_token_id": None,
    }


FAMILY = Family(
    name="llada",
    model_types=("llada",),
    mask_id=126336,
    auto="AutoModel",
    reads_padding=False,
    library=Library("LlamaForCausalLM", llama_config, RENAMED),
)
MOE = Family(
    name="llada_moe", model_types=("lladamoe", "llada_moe"), mask_id=156895, auto="AutoModel", reads_padding=False
)
"""With experts; its folders also say "llada", and name an architecture with MoE. Only its own code computes it."""
