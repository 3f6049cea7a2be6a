"""A Llama-shaped decoder for the length of one generation, in few and large operations.

At decoding time a small model spends most of its time between matrix products, not in them. `LeanDecoder` takes a copy of the
weights, with q, k, v and gate, up joined, stored as products of few rows read them fastest, and runs each layer in a dozen calls.
Everything else decodes through its own modules (decode.py).

Adapters are merged in float32 and float64. In bfloat16 and float16 a merged weight would be rounded again, by more than
most updates: there the adapters' two products are computed beside the layer's own, in the adapters' float32, as peft does it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from relgrad.networks.causal import llama

WORTH_FROM = 24
"""Decoding steps from which on the copy pays for itself."""
LARGEST = 4 * 1024**3
"""Bytes of weights up to which a copy is made."""
EXACT = (torch.float32, torch.float64)


class _Linear(NamedTuple):
    """One or several linear layers on the same input, joined: x @ weight + bias, and the adapters' share of some columns."""

    weight_KN: Tensor
    bias_N: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor, slice], ...]

    @staticmethod
    def of(*layers: llama.Linear) -> _Linear:
        first = layers[0].weight_NK
        ends = list(accumulate(len(layer.weight_NK) for layer in layers))
        weight_KN, bias_N = first.new_empty(first.shape[1], ends[-1]), first.new_zeros(ends[-1])
        adapters = []
        for layer, end in zip(layers, ends, strict=True):
            columns = slice(end - len(layer.weight_NK), end)
            weight_KN[:, columns] = layer.weight_NK.detach().T
            if layer.bias_N is not None:
                bias_N[columns] = layer.bias_N.detach()
            for adapter in layer.adapters:
                down_KR, up_RN = adapter.down_RK.detach().T, adapter.up_NR.detach().T
                if first.dtype in EXACT:
                    weight_KN[:, columns].addmm_(down_KR.to(first.dtype), up_RN.to(first.dtype), alpha=adapter.scaling)
                else:
                    adapters.append((down_KR.contiguous(), (adapter.scaling * up_RN).contiguous(), columns))
        biased = any(layer.bias_N is not None for layer in layers)
        return _Linear(weight_KN, bias_N if biased else None, tuple(adapters))

    def __call__(self, x: Tensor) -> Tensor:
        y = x @ self.weight_KN if self.bias_N is None else torch.addmm(self.bias_N, x, self.weight_KN)
        if not self.adapters:
            return y
        exact_y = y.to(self.adapters[0][0].dtype)
        for down_KR, up_RN, columns in self.adapters:
            exact_y[:, columns] += x.to(down_KR.dtype) @ down_KR @ up_RN
        return exact_y.to(y.dtype)


class _Layer(NamedTuple):
    norm: llama.Norm
    qkv: _Linear
    qk_norms: tuple[llama.Norm, llama.Norm] | None
    out: _Linear
    mlp_norm: llama.Norm
    gate_up: _Linear
    down: _Linear
    activation: Any

    @staticmethod
    def of(layer: llama.Layer) -> _Layer:
        return _Layer(
            layer.norm,
            _Linear.of(layer.query, layer.key, layer.value),
            layer.query_key_norms,
            _Linear.of(layer.out),
            layer.mlp_norm,
            _Linear.of(layer.gate, layer.up),
            _Linear.of(layer.down),
            layer.activation,
        )


class LeanDecoder:
    """Built from a Hugging Face decoder by `of`; `step` has the meaning of the decoder's own forward on a flat row of tokens."""

    def __init__(self, parts: llama.Llama, positions: int) -> None:
        self.layers = [_Layer.of(layer) for layer in parts.layers]
        self.embedding_VH, self.norm, self.head_dim = parts.embedding_VH.detach(), parts.norm, parts.head_dim
        every = torch.arange(positions, device=self.embedding_VH.device)[None]
        cos, sin = parts.rope(self.embedding_VH, every)
        # the halves of a head are swapped without a change of sign: the sign is in the table
        sign = torch.cat((-torch.ones(self.head_dim // 2), torch.ones(self.head_dim // 2))).to(sin)
        self._cos_P1D, self._sin_P1D = cos[0, :, None], (sin * sign)[0, :, None]

    @staticmethod
    def of(decoder: Any, steps: int, positions: int | None = None) -> LeanDecoder | None:
        """A copy for a generation of `steps` tokens, or None where the shape is another one or the copy would not pay.

        `positions` is how many positions a row may reach; by default as many as are generated.
        """
        if steps < WORTH_FROM or sum(p.numel() * p.element_size() for p in decoder.parameters()) > LARGEST:
            return None
        parts = llama.Llama.of(decoder)
        return None if parts is None else LeanDecoder(parts, positions or steps + 1)

    def step(self, token_N: Tensor, position_N: Tensor, layout: Any) -> Tensor:
        """Final hidden states [N, H] of a flat row of tokens; `layout` stores keys and values and attends (grid.py)."""
        x = F.embedding(token_N, self.embedding_VH)
        cos, sin = self._cos_P1D[position_N], self._sin_P1D[position_N]
        rows, size = len(token_N), self.head_dim
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(_rms(x, layer.norm)).view(rows, -1, size)
            heads = layer.out.weight_KN.shape[0] // size
            kv_heads = (qkv.shape[1] - heads) // 2
            query_key, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
            if layer.qk_norms is not None:
                normed = (_rms(query_key[:, :heads], layer.qk_norms[0]), _rms(query_key[:, heads:], layer.qk_norms[1]))
                query_key = torch.cat(normed, 1)
            first, second = query_key.chunk(2, -1)
            query_key = torch.addcmul(query_key * cos, torch.cat((second, first), -1), sin)
            # [1, heads, N, D] is the interface of every layout
            q, k, v = (t.transpose(0, 1)[None] for t in (query_key[:, :heads], query_key[:, heads:], value))
            x = x + layer.out(layout.attend(number, q, k, v, size**-0.5).view(rows, -1))
            gate, up = layer.gate_up(_rms(x, layer.mlp_norm)).chunk(2, -1)
            x = x + layer.down(layer.activation(gate) * up)
        return _rms(x, self.norm)


def _rms(x: Tensor, norm: llama.Norm) -> Tensor:
    if x.dtype in EXACT:
        return F.rms_norm(x, x.shape[-1:], norm.weight_H, norm.epsilon)
    # in float32, rounded before the weight comes in, as the models do it
    exact = F.rms_norm(x.float(), x.shape[-1:], None, norm.epsilon)
    return norm.weight_H * exact.to(x.dtype)
