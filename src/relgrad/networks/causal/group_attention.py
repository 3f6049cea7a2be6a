r"""Attention of completions to their prompt and to themselves, without a copy of the prompt for each of them.

A completion's token sees its prompt's keys (part p) and its own row's (part o). Each part is one softmax of its own, with the
logarithm of its sum, l, and the two are put together exactly:

    out = e^{l_p - l} out_p + e^{l_o - l} out_o,    l = log(e^{l_p} + e^{l_o})

In the prompt's part all tokens of a group's completions are the rows of one product with the prompt's keys, whatever completion
they belong to. The backward pass computes the probabilities again, e^{s - l} of the scores s, as FlashAttention does (Dao et al.
2022, arXiv:2205.14135, section 3.1), so that between the passes nothing is kept but queries, keys, values, outputs and l:

    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * O)),   dQ = dS K,   dK = dS^T Q

Axes: H heads, A key heads, G groups or rows, M queries of one key head in a group (heads that share a key head, one after
the other), N keys, D and E sizes of a head. Scores, sums and merged outputs are float32 at least.

Scores and l are in bits, not nats: exp2 is as fast for what is masked as for the rest, where exp takes 20 times as long on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

SCORES = 4 * 1024**2
"""Scores that are computed at once, in entries; at least those of one group. 16 MiB stay in a processor's cache."""


class Rows(Protocol):
    """How flat tokens lie in padded rows; see shared_prompt.Ragged."""

    def pad(self, flat: Tensor) -> Tensor: ...

    def flatten(self, padded: Tensor) -> Tensor: ...


class Part(NamedTuple):
    """One set of keys: how queries and keys lie in rows, and the additive mask [G or 1, 1, M or 1, N] of what is not seen."""

    queries: Rows
    keys: Rows
    mask: Tensor | None


def group_attention(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], parts: tuple[Part, Part], scale: float
) -> Tensor:
    """query [H, n, D] of all completion tokens, (keys [A, p, D], values [A, p, E]) of all prompts, and [A, n, ..] of the
    completions, all flat -> [n, H, E]. Differentiable in all five."""
    out: Tensor = _GroupAttention.apply(query, *prompt, *own, parts, scale)
    return out


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        parts: tuple[Part, Part],
        scale: float,
    ) -> Tensor:
        to_prompt, prompt_lse = _attend(query, prompt_key, prompt_value, parts[0], scale)
        to_own, own_lse = _attend(query, own_key, own_value, parts[1], scale)
        lse = torch.logaddexp2(prompt_lse, own_lse)
        out = to_prompt.mul_((prompt_lse - lse).exp2_()).addcmul_(to_own, (own_lse - lse).exp2_()).to(query.dtype)
        ctx.save_for_backward(query, prompt_key, prompt_value, own_key, own_value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, prompt_key, prompt_value, own_key, own_value, out, lse = ctx.saved_tensors
        delta = (grad.to(lse.dtype) * out).sum(-1, keepdim=True)
        outer = (query, grad, lse, delta)
        q_1, *prompt = _gradients(*outer, prompt_key, prompt_value, ctx.parts[0], ctx.scale)
        q_2, *own = _gradients(*outer, own_key, own_value, ctx.parts[1], ctx.scale)
        return (q_1.add_(q_2).to(query.dtype), *prompt, *own, None, None)


def _attend(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """(out [n, H, E], log-sum-exp [n, H, 1] in bits) over one part's keys alone."""
    heads, key_heads = query.shape[0], key.shape[0]
    q, k, v = _grouped(part.queries.pad(query), key_heads), part.keys.pad(key), part.keys.pad(value)
    exact = torch.promote_types(query.dtype, torch.float32)
    out = q.new_empty(*q.shape[:3], v.shape[-1], dtype=exact)
    lse = q.new_empty(*q.shape[:3], 1, dtype=exact)
    for some in _slices(q, k):
        scores = _scores(q[some], k[some], part.mask, some, scale)
        top = scores.amax(-1, keepdim=True)
        total = scores.sub_(top).exp2_().sum(-1, keepdim=True)
        out[some] = _matmul(scores, v[some]).div_(total)
        lse[some] = top.add_(total.log2_())
    return part.queries.flatten(_ungrouped(out, heads)), part.queries.flatten(_ungrouped(lse, heads))


def _gradients(
    query: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, key: Tensor, value: Tensor, part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What one part adds to the gradients of query [H, n, D] (float32 at least), key and value."""
    key_heads = key.shape[0]
    q, k, v = _grouped(part.queries.pad(query), key_heads), part.keys.pad(key), part.keys.pad(value)
    grad, lse, delta = (_grouped(part.queries.pad(t.transpose(0, 1)), key_heads) for t in (grad, lse, delta))
    grad_q, grad_k, grad_v = torch.empty_like(q, dtype=lse.dtype), torch.empty_like(k), torch.empty_like(v)
    for some in _slices(q, k):
        probabilities = _scores(q[some], k[some], part.mask, some, scale).sub_(lse[some]).exp2_()
        grad_v[some] = _matmul(probabilities.transpose(-1, -2), grad[some])
        slopes = _matmul(grad[some], v[some].transpose(-1, -2)).sub_(delta[some]).mul_(probabilities)
        grad_q[some] = _matmul(slopes, k[some]).mul_(scale)
        grad_k[some] = _matmul(slopes.transpose(-1, -2), q[some]).mul_(scale)
    flat_q = part.queries.flatten(_ungrouped(grad_q, query.shape[0])).transpose(0, 1)
    flat_k, flat_v = (part.keys.flatten(t).transpose(0, 1) for t in (grad_k, grad_v))
    return flat_q, flat_k, flat_v


def _slices(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Groups of [G, A, M, D] and [G, A, N, D] whose scores are computed at once."""
    groups, key_heads, rows, _ = query.shape
    step = max(SCORES // max(key_heads * rows * key.shape[2], 1), 1)
    return (slice(first, first + step) for first in range(0, groups, step))


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, some: slice, scale: float) -> Tensor:
    """scale * query @ key^T in bits, masked."""
    bits = scale / math.log(2)
    scores = _matmul(query * bits if query.dtype in _EXACT else query, key.transpose(-1, -2))
    if query.dtype not in _EXACT:
        scores.mul_(bits)
    return scores if mask is None else scores.add_(mask if len(mask) == 1 else mask[some])


def _grouped(padded: Tensor, key_heads: int) -> Tensor:
    """[G, H, n, D] -> [G, A, M, D]."""
    return padded.reshape(padded.shape[0], key_heads, -1, padded.shape[-1])


def _ungrouped(grouped: Tensor, heads: int) -> Tensor:
    """[G, A, M, D] -> [G, H, n, D]."""
    return grouped.reshape(grouped.shape[0], heads, -1, grouped.shape[-1])


_EXACT = (torch.float32, torch.float64)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [G, A, x, y] @ b [G, A, y, z], accumulated and returned in float32 at least; one of the two may have 16 bits."""
    groups, key_heads = a.shape[:2]
    a, b = a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:])
    narrow = a.dtype if a.dtype not in _EXACT else b.dtype
    if narrow in _EXACT:
        product = torch.bmm(a, b)
    elif a.is_cuda:
        product = torch.bmm(a.to(narrow), b.to(narrow), out_dtype=torch.float32)
    else:
        product = torch.bmm(a.float(), b.float())
    return product.unflatten(0, (groups, key_heads))
