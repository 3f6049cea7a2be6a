r"""The categorical law behind a linear head, without its logits: log-probs and entropy tile by tile.

    z_n = (W h_n + b) / tau,   lse_n = log sum_v exp z_n[v]
    log pi(y_n) = z_n[y_n] - lse_n,   H_n = lse_n - sum_v pi_v z_n[v]

The sums over the vocabulary run over tiles of at most ROWS x COLUMNS entries with a running maximum (the online softmax of
Milakov & Gimelshein 2018, arXiv:1805.02867), so that no [N, V] tensor exists, forward or backward.
Gradients, with g = dL/dlog pi, e = dL/dH:

    dL/dz_n[v] = g_n (1[v = y_n] - pi_v) - e_n pi_v (log pi_v + H_n)

Where the head is frozen and no entropy gradient arrives, d log pi/dh_n = (W[y_n] - sum_v pi_v W[v]) / tau: the forward
keeps that running average of rows of W, and the backward costs nothing (two matrix products instead of three).
Products and the hidden gradient are accumulated in float32 whatever the weights' dtype (float64 stays float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from relgrad.objectives.divergences import categorical_kl

ROWS = 512
COLUMNS = 512
KL_ROWS = 64


class Head(NamedTuple):
    """A language-model head: `weight_VH`, an optional `bias_V`, and the temperature its logits are divided by."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    temperature: float = 1.0


def log_probs(
    hidden_NH: Tensor, head: Head, target_N: Tensor, *, support: Support | None = None
) -> tuple[Tensor, Tensor]:
    """log pi(target_N) [N] and the entropy [N]; nats, float32 (float64 for float64 input), both differentiable.

    `support` restricts every row to the entries recorded when its decision was drawn.
    """
    logp_N, entropy_N = _TiledLogProbs.apply(
        hidden_NH, head.weight_VH, head.bias_V, target_N, head.temperature, support
    )
    return logp_N, entropy_N


def reference_kl(
    hidden_NH: Tensor, head: Head, reference_NH: Tensor, reference_head: Head, support: Support | None
) -> Tensor:
    """Exact KL(pi || pi_ref) [N] of the two heads' whole distributions, differentiable in the policy's.

    Both are restricted to `support` where it is given. Blocks of KL_ROWS rows are recomputed in the backward pass, so that
    no [N, V] tensor is kept.
    """

    def block_kl(hidden: Tensor, first: int, last: int) -> Tensor:
        allowed = support.dense(first, last, head.weight_VH.shape[0]) if support is not None else None
        columns = slice(0, head.weight_VH.shape[0])
        log_p = torch.log_softmax(_tile(hidden, head, columns, allowed), -1)
        with torch.no_grad():
            log_q = torch.log_softmax(_tile(reference_NH[first:last], reference_head, columns, allowed), -1)
        return categorical_kl(log_p, log_q)

    blocks = range(0, len(hidden_NH), KL_ROWS)
    ends = [min(first + KL_ROWS, len(hidden_NH)) for first in blocks]
    parts = [
        checkpoint(block_kl, hidden_NH[first:last], first, last, use_reentrant=False)
        for first, last in zip(blocks, ends, strict=True)
    ]
    return torch.cat(parts) if parts else hidden_NH.new_zeros(0)


def logits(hidden_NH: Tensor, head: Head) -> Tensor:
    """Undivided logits [N, V] of a few rows (decoding draws one row per trajectory), in the precision used for scoring."""
    z_NV = _product(hidden_NH, head.weight_VH)
    return z_NV if head.bias_V is None else z_NV + head.bias_V.to(z_NV.dtype)


class Support(NamedTuple):
    """Which entries each of N rows may draw, as compressed rows: `offset_N1` [N+1] into the sorted `entry_M` list."""

    offset_N1: Tensor
    entry_M: Tensor

    @staticmethod
    def pack(support_NV: Tensor, entries: int | None = None) -> Support:
        """From a boolean [N, V]. Where the number of its entries is known, a GPU is not asked for it."""
        counts_N = support_NV.sum(-1)
        offset_N1 = torch.zeros(len(counts_N) + 1, dtype=torch.int64, device=counts_N.device)
        torch.cumsum(counts_N, 0, out=offset_N1[1:])
        where = support_NV.nonzero() if entries is None else torch.nonzero_static(support_NV, size=entries)
        return Support(offset_N1, where[:, 1].to(torch.int32))

    def to(self, device: torch.device | str) -> Support:
        """The same on another device."""
        return Support(self.offset_N1.to(device), self.entry_M.to(device))

    @staticmethod
    def concatenate(parts: Sequence[Support]) -> Support:
        """All rows of all parts, in order."""
        counts_N = torch.cat([p.offset_N1[1:] - p.offset_N1[:-1] for p in parts])
        offset_N1 = torch.zeros(len(counts_N) + 1, dtype=torch.int64, device=counts_N.device)
        torch.cumsum(counts_N, 0, out=offset_N1[1:])
        return Support(offset_N1, torch.cat([p.entry_M for p in parts]))

    def take(self, rows_N: Tensor) -> Support:
        """The chosen rows, in the order given."""
        counts_N = (self.offset_N1[1:] - self.offset_N1[:-1])[rows_N]
        offset_N1 = torch.zeros(len(rows_N) + 1, dtype=torch.int64, device=counts_N.device)
        torch.cumsum(counts_N, 0, out=offset_N1[1:])
        total = int(offset_N1[-1])
        within = torch.arange(total, device=counts_N.device) - offset_N1[:-1].repeat_interleave(counts_N)
        return Support(offset_N1, self.entry_M[self.offset_N1[rows_N].repeat_interleave(counts_N) + within])

    def dense(self, first: int, last: int, vocabulary: int) -> Tensor:
        """bool [last - first, vocabulary] for the rows first..last."""
        counts = (self.offset_N1[1:] - self.offset_N1[:-1])[first:last]
        allowed = torch.zeros(last - first, vocabulary, dtype=torch.bool, device=self.entry_M.device)
        row = torch.arange(last - first, device=self.entry_M.device).repeat_interleave(counts)
        allowed[row, self.entry_M[self.offset_N1[first] : self.offset_N1[last]].long()] = True
        return allowed


def _product(a: Tensor, weight: Tensor) -> Tensor:
    """a @ weight.T with a float32 (or float64) result that was accumulated at that precision."""
    if a.dtype == weight.dtype and a.dtype in (torch.float32, torch.float64):
        return a @ weight.T
    if a.is_cuda:
        return torch.mm(a.to(weight.dtype), weight.T, out_dtype=torch.float32)
    return a.float() @ weight.float().T


class _TiledLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        temperature: float,
        support: Support | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        rows = hidden_NH.shape[0]
        lse_N = torch.empty(rows, dtype=exact, device=hidden_NH.device)
        mean_N = torch.empty_like(lse_N)
        frozen = not (weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad))
        average_NH = None
        if hidden_NH.requires_grad and frozen:
            average_NH = torch.empty(hidden_NH.shape, dtype=exact, device=hidden_NH.device)
        head = Head(weight_VH, bias_V, temperature)
        logp_N = torch.empty_like(lse_N)
        sums = _Sums(lse_N, mean_N, logp_N, average_NH)
        for first in range(0, rows, ROWS):
            _online_softmax(hidden_NH, head, target_N, slice(first, min(first + ROWS, rows)), support, sums)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, lse_N, mean_N, average_NH)
        ctx.temperature, ctx.support = temperature, support
        return logp_N, lse_N - mean_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor | None, grad_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N, mean_N, average_NH = ctx.saved_tensors
        if grad_N is None:
            grad_N = torch.zeros_like(lse_N)
        scaled_N1 = (grad_N.to(lse_N.dtype) / ctx.temperature)[:, None]
        grad_hidden = grad_weight = grad_bias = None
        if average_NH is not None and grad_entropy_N is None:
            grad_hidden = (weight_VH[target_N].to(lse_N.dtype) - average_NH).mul_(scaled_N1)
            return grad_hidden.to(hidden_NH.dtype), None, None, None, None, None
        grad_hidden = torch.zeros(hidden_NH.shape, dtype=lse_N.dtype, device=lse_N.device)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight_VH.shape, dtype=lse_N.dtype, device=lse_N.device)
        if bias_V is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros(bias_V.shape, dtype=lse_N.dtype, device=lse_N.device)
        head = Head(weight_VH, bias_V, ctx.temperature)
        slopes = _Slopes(lse_N, mean_N, scaled_N1, None if grad_entropy_N is None else grad_entropy_N.to(lse_N.dtype))
        grads = (grad_hidden, grad_weight, grad_bias)
        for first in range(0, len(lse_N), ROWS):
            block = slice(first, min(first + ROWS, len(lse_N)))
            _tile_gradients(hidden_NH, head, target_N, block, ctx.support, slopes, grads)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        return grad_hidden.to(hidden_NH.dtype), grad_weight, grad_bias, None, None, None


def _tile(hidden: Tensor, head: Head, columns: slice, allowed: Tensor | None) -> Tensor:
    """z of one block of rows and one tile of the vocabulary, -inf outside the support."""
    z = _product(hidden, head.weight_VH[columns])
    if head.bias_V is not None:
        z = z + head.bias_V[columns].to(z.dtype)
    if head.temperature != 1.0:
        z = z / head.temperature
    if allowed is not None:
        z = z.masked_fill(~allowed[:, columns], -torch.inf)
    return z


class _Sums(NamedTuple):
    """What one pass over the vocabulary fills in, row by row: log-sum-exp, mean logit under pi, log pi(target) and,
    where the backward pass can use it, the mean row of W under pi."""

    lse_N: Tensor
    mean_N: Tensor
    logp_N: Tensor
    average_NH: Tensor | None


def _online_softmax(
    hidden_NH: Tensor, head: Head, target_N: Tensor, block: slice, support: Support | None, sums: _Sums
) -> None:
    """Fill `sums` for one block of rows."""
    hidden = hidden_NH[block]
    vocabulary = head.weight_VH.shape[0]
    allowed = support.dense(block.start, block.stop, vocabulary) if support is not None else None
    like = sums.lse_N.new_zeros
    top = torch.full(
        (hidden.shape[0], 1), torch.finfo(sums.lse_N.dtype).min, dtype=sums.lse_N.dtype, device=hidden.device
    )
    total, weighted, chosen = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
    average = like(hidden.shape) if sums.average_NH is not None else None
    target = target_N[block, None]
    for first in range(0, vocabulary, COLUMNS):
        columns = slice(first, min(first + COLUMNS, vocabulary))
        z = _tile(hidden, head, columns, allowed)
        # the target's logit is taken from the very tile that enters the sum, so that both carry the same rounding
        in_tile = (target >= first) & (target < columns.stop)
        chosen = torch.where(in_tile, z.gather(-1, (target - first).clamp(0, z.shape[1] - 1)), chosen)
        new_top = torch.maximum(top, z.amax(-1, keepdim=True))
        shrink = (top - new_top).exp_()
        mass = (z - new_top).exp_()
        total = total * shrink + mass.sum(-1, keepdim=True)
        if allowed is not None:
            z.masked_fill_(mass == 0, 0.0)  # outside the support: 0 * -inf counts as 0
        weighted = weighted * shrink + z.mul_(mass).sum(-1, keepdim=True)
        if average is not None:
            average.mul_(shrink).add_(_weigh(mass, head.weight_VH[columns]))
        top = new_top
    log_total = total.log()
    sums.lse_N[block] = (top + log_total)[:, 0]
    sums.mean_N[block] = (weighted / total)[:, 0]
    sums.logp_N[block] = (chosen - top - log_total)[:, 0]
    if average is not None and sums.average_NH is not None:
        sums.average_NH[block] = average / total


def _weigh(mass: Tensor, weight: Tensor) -> Tensor:
    """mass @ weight, accumulated at the precision of `mass`."""
    if mass.is_cuda and weight.dtype != mass.dtype:
        return torch.mm(mass.to(weight.dtype), weight, out_dtype=torch.float32)
    return mass @ weight.to(mass.dtype)


class _Slopes(NamedTuple):
    """What the backward pass knows of each row: log-sum-exp, mean logit, dL/dlog pi over tau, and dL/dH or None."""

    lse_N: Tensor
    mean_N: Tensor
    scaled_N1: Tensor
    entropy_N: Tensor | None


def _tile_gradients(
    hidden_NH: Tensor,
    head: Head,
    target_N: Tensor,
    block: slice,
    support: Support | None,
    slopes: _Slopes,
    grads: tuple[Tensor, Tensor | None, Tensor | None],
) -> None:
    """Add one block's share of g (1[v = y] - pi), and of the entropy's gradient, to the gradients of (hidden, weight, bias)."""
    grad_hidden, grad_weight, grad_bias = grads
    hidden = hidden_NH[block]
    lse, target, scaled = slopes.lse_N[block, None], target_N[block], slopes.scaled_N1[block]
    vocabulary = head.weight_VH.shape[0]
    allowed = support.dense(block.start, block.stop, vocabulary) if support is not None else None
    for first in range(0, vocabulary, COLUMNS):
        columns = slice(first, min(first + COLUMNS, vocabulary))
        z = _tile(hidden, head, columns, allowed)
        if slopes.entropy_N is None:
            grad_z = z.sub_(lse).exp_().mul_(-scaled)
        else:
            # -e pi (log pi + H) = -e pi (z - mean); the division by tau is the chain rule to the undivided logits
            p = (z - lse).exp_()
            if allowed is not None:
                z.masked_fill_(p == 0, 0.0)
            slope = (slopes.entropy_N[block, None] / head.temperature) * z.sub_(slopes.mean_N[block, None]) + scaled
            grad_z = p.mul_(slope).neg_()
        grad_hidden[block] += _weigh(grad_z, head.weight_VH[columns])
        if grad_weight is not None:
            grad_weight[columns].addmm_(grad_z.T, hidden.to(grad_z.dtype))
        if grad_bias is not None:
            grad_bias[columns] += grad_z.sum(0)
    grad_hidden[block].addcmul_(head.weight_VH[target].to(scaled.dtype), scaled)
    if grad_weight is not None:
        grad_weight.index_add_(0, target, hidden.to(scaled.dtype) * scaled)
    if grad_bias is not None:
        grad_bias.index_add_(0, target, scaled[:, 0])
