"""One decoding step of a Llama-shaped decoder with few, large operations: joined projections, merged adapters.

At decoding time a small model spends most of its time between matrix products, not in them. For decoders of the common
shape (RMS norm, rotary attention with or without query/key norms, gated MLP: Llama, Mistral, Qwen2, Qwen3, SmolLM …)
`LeanDecoder` takes a copy of the weights for the length of one generation, with q, k, v and gate, up joined and LoRA
merged in, and runs each layer in a dozen calls. Everything else decodes through its own modules (decode.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WORTH_FROM = 24
"""Decoding steps from which on the copy pays for itself."""
LARGEST = 4 * 1024**3
"""Bytes of weights up to which a copy is made."""
SHAPES = {
    f"transformers.models.{family}.modeling_{family}.{name}"
    for family, name in (
        ("llama", "LlamaModel"),
        ("mistral", "MistralModel"),
        ("qwen2", "Qwen2Model"),
        ("qwen3", "Qwen3Model"),
    )
}
"""The decoders `LeanDecoder.step` was written after. Others with the same part names compute other things between them
(interleaved rotary halves, layers without rotation, multipliers, norms inside): they decode through their own modules."""
STATIC_ROPES = {"default", "linear", "llama3", "yarn"}


class _Layer(NamedTuple):
    norm: tuple[Tensor, float]
    qkv: tuple[Tensor, Tensor | None]
    qk_norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None
    out: tuple[Tensor, Tensor | None]
    mlp_norm: tuple[Tensor, float]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    activation: Any


class LeanDecoder:
    """Built from a Hugging Face decoder by `of`; `step` has the meaning of the decoder's own forward on one token per row."""

    def __init__(self, layers: list[_Layer], embedding: Tensor, norm: tuple[Tensor, float], rope: Any, head_dim: int):
        self.layers, self.embedding, self.norm, self.head_dim = layers, embedding, norm, head_dim
        self._rope = rope
        self._tables: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(decoder: Any, steps: int) -> LeanDecoder | None:
        """A copy for a generation of `steps` tokens, or None where the shape is another one or the copy would not pay."""
        kind = type(decoder)
        if steps < WORTH_FROM or f"{kind.__module__}.{kind.__name__}" not in SHAPES:
            return None
        size = sum(p.numel() * p.element_size() for p in decoder.parameters())
        dtype = next(decoder.parameters()).dtype
        if size > LARGEST or dtype not in (torch.float32, torch.float64):
            return None
        rope = getattr(decoder.config, "rope_parameters", None) or {}
        plain = getattr(decoder.config, "sliding_window", None) is None and rope.get("rope_type") in STATIC_ROPES
        if not plain or type(decoder.embed_tokens) is not torch.nn.Embedding:
            return None
        try:
            layers = [_layer(layer) for layer in decoder.layers]
        except AttributeError:  # some part has another name: another shape of decoder
            return None
        head_dim = decoder.layers[0].self_attn.head_dim
        return LeanDecoder(
            layers, decoder.embed_tokens.weight.detach(), _norm(decoder.norm), decoder.rotary_emb, head_dim
        )

    def step(self, token_N: Tensor, position_N: Tensor, layout: Any) -> Tensor:
        """Final hidden states [N, H] of one new token per row; `layout` stores keys and values and attends (decode.py)."""
        x = F.embedding(token_N, self.embedding)
        cos, sin = self._angles(position_N, x)
        rows, size = len(token_N), self.head_dim
        for number, layer in enumerate(self.layers):
            qkv = F.linear(_rms(x, layer.norm), *layer.qkv).view(rows, -1, size)
            heads = layer.out[0].shape[1] // size
            kv_heads = (qkv.shape[1] - heads) // 2
            query_key, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
            if layer.qk_norms is not None:
                normed = (_rms(query_key[:, :heads], layer.qk_norms[0]), _rms(query_key[:, heads:], layer.qk_norms[1]))
                query_key = torch.cat(normed, 1)
            first, second = query_key.chunk(2, -1)
            query_key = torch.addcmul(query_key * cos, torch.cat((-second, first), -1), sin)
            # [1, heads, N, D] is the interface of every layout
            q, k, v = (t.transpose(0, 1)[None] for t in (query_key[:, :heads], query_key[:, heads:], value))
            attended = layout.attend(number, q, k, v, size**-0.5).view(rows, -1)
            x = x + F.linear(attended, *layer.out)
            gate, up = F.linear(_rms(x, layer.mlp_norm), *layer.gate_up).chunk(2, -1)
            x = x + F.linear(layer.activation(gate) * up, *layer.down)
        return _rms(x, self.norm)

    def _angles(self, position_N: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [N, 1, D] of the rows' positions, from tables that grow when a position is beyond them."""
        furthest = int(position_N.max())
        if self._tables is None or furthest >= len(self._tables[0]):
            every = torch.arange(2 * furthest + 64, device=like.device)[None]
            cos, sin = self._rope(like, every)
            self._tables = cos[0], sin[0]
        return self._tables[0][position_N, None], self._tables[1][position_N, None]


def _rms(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], *norm)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    if set(dict(layer.named_children())) != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        raise AttributeError("the layer has parts of its own")
    norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return _Layer(
        _norm(layer.input_layernorm),
        _join(attention.q_proj, attention.k_proj, attention.v_proj),
        norms,
        _join(attention.o_proj),
        _norm(layer.post_attention_layernorm),
        _join(mlp.gate_proj, mlp.up_proj),
        _join(mlp.down_proj),
        mlp.act_fn,
    )


def _norm(module: Any) -> tuple[Tensor, float]:
    if not type(module).__name__.endswith("RMSNorm") or "Gemma" in type(module).__name__:
        raise AttributeError(f"{type(module).__name__} is not a plain RMS norm")
    return module.weight.detach(), module.variance_epsilon


def _join(*modules: Any) -> tuple[Tensor, Tensor | None]:
    """Weights (and biases) of several linear layers as one, adapters merged in."""
    weights, biases = [], []
    for module in modules:
        weight, bias = _merged(module)
        weights.append(weight)
        biases.append(bias)
    joined = weights[0] if len(weights) == 1 else torch.cat(weights)
    if all(b is None for b in biases):
        return joined, None
    return joined, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])


def _merged(module: Any) -> tuple[Tensor, Tensor | None]:
    base = getattr(module, "base_layer", module)
    if type(base) is not torch.nn.Linear:
        raise AttributeError(f"{type(base).__name__} is not a plain linear layer")
    weight = base.weight.detach()
    if module is not base and not module.disable_adapters:
        for name in module.active_adapters:
            if getattr(module, "use_dora", {}).get(name):
                raise AttributeError("DoRA does not merge by addition")
            if name in module.lora_A:
                weight = weight + module.get_delta_weight(name).detach().to(weight.dtype)
    return weight, None if base.bias is None else base.bias.detach()
