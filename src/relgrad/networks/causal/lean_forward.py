"""A Llama-shaped decoder's forward and backward pass in fewer passes over its activations than its own modules take.

The mathematics is that of the modules, and of peft's LoRA around them; what differs is how often memory is read. Norms, rotation,
gate and adapters are one autograd function each, that keeps what its backward pass needs and nothing else:

    several linear layers on one input    their shares of the input's gradient are added up inside the matrix products
    LoRA                                  its product is added to the layer's own in place, its scaling is part of the product
    rotation                              its transpose is the rotation back

For float32 and float64; weights of 16 bits run through their own modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relgrad.networks.causal import llama

EXACT = (torch.float32, torch.float64)


def serves(decoder: Any) -> llama.Llama | None:
    """The decoder's parts, where `forward` computes what its own modules would right now; else None.

    Not with dropout in an adapter, not where layers compute their activations again in the backward pass, and not where the
    weights are of several dtypes or of 16 bits.
    """
    parts = llama.Llama.of(decoder)
    if parts is None or any(layer.gradient_checkpointing and layer.training for layer in decoder.layers):
        return None
    linears = [part for layer in parts.layers for part in layer if isinstance(part, llama.Linear)]
    adapters = [adapter for linear in linears for adapter in linear.adapters]
    dtypes = {p.dtype for p in decoder.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(EXACT) or any(adapter.dropout for adapter in adapters):
        return None
    return parts


def forward(parts: llama.Llama, token_N: Tensor, position_N: Tensor, layout: Any) -> Tensor:
    """Final hidden states [N, H] of one flat row of tokens under a layout (shared_prompt.Layout)."""
    x = F.embedding(token_N, parts.embedding_VH)
    rows, size = len(token_N), parts.head_dim
    cos, sin = (table[0, :, None] for table in parts.rope(x, position_N[None]))
    # the halves of a head are swapped without a change of sign: the sign is in the table
    sin = torch.cat((-sin[..., : size // 2], sin[..., size // 2 :]), -1)
    for number, layer in enumerate(parts.layers):
        q, k, v = (y.view(rows, -1, size) for y in linear(rms_norm(x, layer.norm), layer.query, layer.key, layer.value))
        if layer.query_key_norms is not None:
            q, k = (rms_norm(y, norm) for y, norm in zip((q, k), layer.query_key_norms, strict=True))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = layout.attend(number, *(y.transpose(0, 1)[None] for y in (q, k, v)), size**-0.5)
        x = x + linear(attended.reshape(rows, -1), layer.out)[0]
        gate, up = linear(rms_norm(x, layer.mlp_norm), layer.gate, layer.up)
        gated = _Gate.apply(gate, up) if isinstance(layer.activation, torch.nn.SiLU) else layer.activation(gate) * up
        x = x + linear(gated, layer.down)[0]
    return rms_norm(x, parts.norm)


def linear(x: Tensor, *layers: llama.Linear) -> tuple[Tensor, ...]:
    """What several linear layers, with their adapters, make of one input [N, K]; an output [N, ..] for each."""
    tensors, shapes = [], []
    for layer in layers:
        tensors += [layer.weight_NK, layer.bias_N]
        for adapter in layer.adapters:
            tensors += [adapter.down_RK, adapter.up_NR]
        shapes.append(tuple(adapter.scaling for adapter in layer.adapters))
    outputs: tuple[Tensor, ...] = _Linear.apply(x, tuple(shapes), *tensors)
    return outputs


def rms_norm(x: Tensor, norm: llama.Norm) -> Tensor:
    """x [.., H] / sqrt(mean x^2 + epsilon) * weight."""
    y: Tensor = _RmsNorm.apply(x, norm.weight_H, norm.epsilon)
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D] turned by its position's angles, cos and signed sin [N, 1, D]."""
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _Linear(torch.autograd.Function):
    """`scalings` are those of each layer's adapters; `tensors`, layer by layer: weight, bias, and down and up of each adapter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scalings: tuple[tuple[float, ...], ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs, inner, first = [], [], 0
        for scaled in scalings:
            weight, bias, *pairs = tensors[first : first + 2 + 2 * len(scaled)]
            assert weight is not None
            y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
            for scaling, down, up in zip(scaled, pairs[::2], pairs[1::2], strict=True):
                assert down is not None
                assert up is not None
                inner.append(x @ down.T)
                y.addmm_(inner[-1], up.T, alpha=scaling)
            outputs.append(y)
            first += 2 + 2 * len(scaled)
        ctx.scalings = scalings
        ctx.save_for_backward(x, *inner, *tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        adapters = sum(len(scaled) for scaled in ctx.scalings)
        x, *saved = ctx.saved_tensors
        inner, tensors = iter(saved[:adapters]), saved[adapters:]
        needed = ctx.needs_input_grad[2:]
        grad_x: Tensor | None = None
        gradients: list[Tensor | None] = []
        for grad, scaled in zip(grads, ctx.scalings, strict=True):
            weight, _, *pairs = tensors[len(gradients) : len(gradients) + 2 + 2 * len(scaled)]
            needs_weight, needs_bias = needed[len(gradients) : len(gradients) + 2]
            if ctx.needs_input_grad[0]:
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
            gradients += [grad.T @ x if needs_weight else None, grad.sum(0) if needs_bias else None]
            for scaling, down, up in zip(scaled, pairs[::2], pairs[1::2], strict=True):
                grad_inner = (grad @ up).mul_(scaling)
                gradients += [grad_inner.T @ x, (grad.T @ next(inner)).mul_(scaling)]
                if grad_x is not None:
                    grad_x.addmm_(grad_inner, down)
        return grad_x, None, *gradients


class _RmsNorm(torch.autograd.Function):
    """y = x r w with r = (mean x^2 + epsilon)^-1/2; dx = r g w - x r^3 / H sum(g w x), dw = sum over rows of g x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        product = (grad * x).reshape(-1, x.shape[-1])
        grad_weight = (scale.view(1, -1) @ product)[0] if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        along = (product @ weight).view(scale.shape).mul_(scale.pow(3)).div_(-x.shape[-1])
        return (grad * weight).mul_(scale).addcmul_(x, along), grad_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(_swapped(x), sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return (grad * cos).addcmul_(_swapped(grad), sin, value=-1), None, None


def _swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((second, first), -1)


class _Gate(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
