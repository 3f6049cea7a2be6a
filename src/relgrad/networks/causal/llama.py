"""The parts of a Llama-shaped decoder, by name, for code that runs it in fewer and larger operations than its own modules do.

The common shape: RMS norm, rotary attention with or without query/key norms, gated MLP (Llama, Mistral, Qwen2, Qwen3, SmolLM …).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SHAPES = {
    f"transformers.models.{family}.modeling_{family}.{name}"
    for family, name in (
        ("llama", "LlamaModel"),
        ("mistral", "MistralModel"),
        ("qwen2", "Qwen2Model"),
        ("qwen3", "Qwen3Model"),
    )
}
"""The decoders this file was written after. Others with the same part names compute other things between them
(interleaved rotary halves, layers without rotation, multipliers, norms inside): they run through their own modules."""
STATIC_ROPES = {"default", "linear", "llama3", "yarn"}
LORA = "peft.tuners.lora.layer.Linear"


class Adapter(NamedTuple):
    """LoRA: x -> scaling * (x @ down^T) @ up^T, added to the layer's output. `dropout` is its probability right now."""

    down_RK: Tensor
    up_NR: Tensor
    scaling: float
    dropout: float


class Linear(NamedTuple):
    """x [.., K] -> x @ weight^T + bias [.., N], and what its adapters add."""

    weight_NK: Tensor
    bias_N: Tensor | None
    adapters: tuple[Adapter, ...]

    @property
    def plain(self) -> bool:
        return not self.adapters and self.bias_N is None


class Norm(NamedTuple):
    """x / sqrt(mean x^2 + epsilon) * weight over the last axis."""

    weight_H: Tensor
    epsilon: float


class Layer(NamedTuple):
    """One block: x + out(attention(norm(x))), then + down(activation(gate) * up) of mlp_norm of it."""

    norm: Norm
    query: Linear
    key: Linear
    value: Linear
    query_key_norms: tuple[Norm, Norm] | None
    out: Linear
    mlp_norm: Norm
    gate: Linear
    up: Linear
    down: Linear
    activation: Any


class Llama(NamedTuple):
    """Tensors are the model's own parameters; `rope` is its module of rotary angles."""

    embedding_VH: Tensor
    layers: list[Layer]
    norm: Norm
    rope: Any
    head_dim: int

    @staticmethod
    def of(decoder: Any) -> Llama | None:
        """The parts of a Hugging Face decoder, or None where its shape is another one or something acts between its parts."""
        kind = type(decoder)
        if f"{kind.__module__}.{kind.__name__}" not in SHAPES:
            return None
        rope = getattr(decoder.config, "rope_parameters", None) or {}
        static = getattr(decoder.config, "sliding_window", None) is None and rope.get("rope_type") in STATIC_ROPES
        if not static or type(decoder.embed_tokens) is not torch.nn.Embedding or _hooked(decoder):
            return None
        try:
            layers = [_layer(layer) for layer in decoder.layers]
            norm = _norm(decoder.norm)
        except AttributeError:  # some part has another name: another shape of decoder
            return None
        return Llama(
            decoder.embed_tokens.weight, layers, norm, decoder.rotary_emb, decoder.layers[0].self_attn.head_dim
        )


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    if set(dict(layer.named_children())) != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        raise AttributeError("the layer has parts of its own")
    norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return Layer(
        _norm(layer.input_layernorm),
        _linear(attention.q_proj),
        _linear(attention.k_proj),
        _linear(attention.v_proj),
        norms,
        _linear(attention.o_proj),
        _norm(layer.post_attention_layernorm),
        _linear(mlp.gate_proj),
        _linear(mlp.up_proj),
        _linear(mlp.down_proj),
        mlp.act_fn,
    )


def _norm(module: Any) -> Norm:
    if not type(module).__name__.endswith("RMSNorm") or "Gemma" in type(module).__name__:
        raise AttributeError(f"{type(module).__name__} is not a plain RMS norm")
    return Norm(_whole(module.weight), module.variance_epsilon)


def _linear(module: Any) -> Linear:
    """A linear layer, bare or under peft's LoRA. Raises AttributeError for any other kind of layer or adapter."""
    base = getattr(module, "base_layer", module)
    if type(base) is not torch.nn.Linear:
        raise AttributeError(f"{type(base).__name__} is not a plain linear layer")
    adapters = []
    if module is not base and f"{type(module).__module__}.{type(module).__name__}" != LORA:
        raise AttributeError(f"{type(module).__name__} is not peft's LoRA of a linear layer")
    if module is not base and not module.disable_adapters:
        if module.merged:
            raise AttributeError("adapters are merged into the layer")
        for name in module.active_adapters:
            if name in module.lora_variant or module.lora_bias.get(name):
                raise AttributeError("the adapter is more than two matrices (DoRA, a bias ...)")
            if name in module.lora_A:
                dropout = module.lora_dropout[name]
                probability = dropout.p if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0
                down, up = _whole(module.lora_A[name].weight), _whole(module.lora_B[name].weight)
                adapters.append(Adapter(down, up, module.scaling[name], probability))
    return Linear(_whole(base.weight), None if base.bias is None else _whole(base.bias), tuple(adapters))


def _hooked(decoder: torch.nn.Module) -> bool:
    """Whether something else is to be called in a forward pass of one of its modules."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in decoder.modules())


def _whole(parameter: Tensor) -> Tensor:
    """The parameter itself. Raises AttributeError where a process holds only a part of it (a DTensor)."""
    if type(parameter.data) is not Tensor:
        raise AttributeError(f"a parameter is held as {type(parameter.data).__name__}")
    return parameter
