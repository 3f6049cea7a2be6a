"""Generation on the shared prompt: one prefill per prompt, one static cache, rows retired as they finish.

A batch of G prompts x K completions is a grid of slots [G, K]. A prompt's keys and values are computed and stored once;
in every step the K rows of a group meet them in one matrix product. Once enough rows have ended, the grid is compacted:
finished groups go, and every group keeps as many slots as the fullest one still needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relgrad.laws import categorical, tiled
from relgrad.networks.causal.lean_decoder import LeanDecoder
from relgrad.networks.causal.shared_prompt import Ragged, _additive, _repeat_heads, hidden_states

COMPACT_BELOW = 0.75
"""The grid is compacted when it can shrink to this share of its slots; copying the cache costs about one step."""
BLOCK = 64
"""The completion cache grows by this many tokens at a time."""


@dataclass
class Generated:
    """token_BT int64, logp_BT float32 (nats), length_B; rows in the order prompt 0 x K, prompt 1 x K, ...

    ended_B says whether the row drew an end-of-sequence token (which is then its last decision). `support` holds the
    truncated support of every drawn token, row by row and step by step, or None where nothing is truncated.
    """

    token_BT: Tensor
    logp_BT: Tensor
    length_B: Tensor
    ended_B: Tensor
    support: tiled.Support | None

    def ordinary(self) -> Generated:
        """The same on the CPU, in tensors that a backward pass may keep (those of inference mode it may not)."""

        def copy(t: Tensor) -> Tensor:
            return t.cpu().clone()

        support = self.support and tiled.Support(copy(self.support.offset_N1), copy(self.support.entry_M))
        return Generated(copy(self.token_BT), copy(self.logp_BT), copy(self.length_B), copy(self.ended_B), support)


class _Prefill:
    """Layout of all prompts end to end; keeps their keys and values, padded, per layer."""

    def __init__(self, prompts: Ragged) -> None:
        self.prompts = prompts
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        mask = self.prompts.causal(window, query)
        k, v = self.prompts.pad(key[0]), self.prompts.pad(value[0])
        self.keys.append(k.contiguous())
        self.values.append(v.contiguous())
        out = F.scaled_dot_product_attention(
            self.prompts.pad(query[0]),
            _repeat_heads(k, repeats),
            _repeat_heads(v, repeats),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        return self.prompts.flatten(out)[None]


class _Grid:
    """Layout of one decoding step: slots [G, K], the shared prompt cache and every slot's own static cache."""

    def __init__(self, prefill: _Prefill, groups: int, per_group: int, limit: int) -> None:
        self.groups, self.per_group, self.limit = groups, per_group, limit
        self.prompt_keys = [k.transpose(-1, -2).contiguous() for k in prefill.keys]
        self.prompt_values = prefill.values
        self.inside = prefill.prompts.inside
        self.length_G1 = self.inside.sum(-1, keepdim=True)
        self.furthest = prefill.prompts.width
        self.hidden = None if prefill.prompts.uniform else self._unseen(self.inside)
        self.own_keys: list[Tensor] = []
        self.own_values: list[Tensor] = []
        self.step = 0

    def _unseen(self, seen_GP: Tensor) -> Tensor:
        """The additive mask [G, 1, 1, P] of the prompts' keys."""
        return _additive(seen_GP[:, None, None, :], self.prompt_values[0])

    def _mask(self, window: int | None) -> Tensor | None:
        """The prompts' mask at this step: their padding, and what a sliding window has left behind."""
        if window is None or self.furthest + self.step < window:
            return self.hidden
        behind = self.length_G1 + self.step - window
        return self._unseen(self.inside & (torch.arange(self.inside.shape[1], device=behind.device) > behind))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        _, heads, slots, size = query.shape
        kv_heads = key.shape[1]
        repeats = heads // kv_heads
        own_k, own_v = self._store(layer, key[0], value[0])
        if window is not None:
            own_k, own_v = own_k[:, :, -window:], own_v[:, :, -window:]
        # [1, heads, slots, D] -> rows of a group together against its prompt: [G, kv_heads, K * repeats, D]
        q = (query[0] * scale).view(kv_heads, repeats, self.groups, self.per_group, size)
        by_group = q.permute(2, 0, 3, 1, 4).reshape(self.groups, kv_heads, self.per_group * repeats, size)
        prompt_scores = by_group @ self.prompt_keys[layer]
        hidden = self._mask(window)
        if hidden is not None:
            prompt_scores = prompt_scores + hidden
        by_slot = by_group.view(self.groups, kv_heads, self.per_group, repeats, size).transpose(1, 2)
        own_scores = by_slot.reshape(slots, kv_heads, repeats, size) @ own_k.transpose(-1, -2)
        width = prompt_scores.shape[-1]
        scores = torch.cat(
            [
                prompt_scores.view(self.groups, kv_heads, self.per_group, repeats, width).transpose(1, 2).flatten(0, 1),
                own_scores,
            ],
            -1,
        )
        attention = torch.softmax(scores, -1)
        to_prompt = attention[..., :width].unflatten(0, (self.groups, self.per_group)).transpose(1, 2)
        from_prompt = (
            to_prompt.reshape(self.groups, kv_heads, self.per_group * repeats, width) @ self.prompt_values[layer]
        )
        out = (attention[..., width:] @ own_v).unflatten(0, (self.groups, self.per_group))
        out = out + from_prompt.view(self.groups, kv_heads, self.per_group, repeats, -1).transpose(1, 2)
        return out.reshape(1, slots, heads, value.shape[-1])

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write this step's key and value [kv_heads, slots, D]; return the slots' caches up to and including it."""
        if layer == len(self.own_keys):
            room = (key.shape[1], key.shape[0], min(BLOCK, self.limit))
            self.own_keys.append(key.new_empty(*room, key.shape[2]))
            self.own_values.append(value.new_empty(*room, value.shape[2]))
        elif self.step >= self.own_keys[layer].shape[2]:
            more = min(self.own_keys[layer].shape[2] * 2, self.limit) - self.own_keys[layer].shape[2]
            self.own_keys[layer] = F.pad(self.own_keys[layer], (0, 0, 0, more))
            self.own_values[layer] = F.pad(self.own_values[layer], (0, 0, 0, more))
        self.own_keys[layer][:, :, self.step] = key.transpose(0, 1)
        self.own_values[layer][:, :, self.step] = value.transpose(0, 1)
        return self.own_keys[layer][:, :, : self.step + 1], self.own_values[layer][:, :, : self.step + 1]

    def keep(self, groups: Tensor, slots: Tensor, per_group: int) -> None:
        """Shrink to the given groups and slots (`slots` are old slot numbers, group by group)."""
        if len(groups) < self.groups:
            self.prompt_keys = [k[groups] for k in self.prompt_keys]
            self.prompt_values = [v[groups] for v in self.prompt_values]
            self.inside, self.length_G1 = self.inside[groups], self.length_G1[groups]
            self.hidden = self.hidden[groups] if self.hidden is not None else None
        self.own_keys = [k[slots] for k in self.own_keys]
        self.own_values = [v[slots] for v in self.own_values]
        self.groups, self.per_group = len(groups), per_group


class _Record:
    """What has been drawn so far, row by row."""

    def __init__(self, rows: int, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.token_BT = torch.zeros(rows, limit, dtype=torch.int64, device=device)
        self.logp_BT = torch.zeros(rows, limit, dtype=torch.float32, device=device)
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ended_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.supports: list[tuple[Tensor, tiled.Support]] = []

    def add(
        self,
        step: int,
        row_of_slot: Tensor,
        alive: Tensor,
        drawn: tuple[Tensor, Tensor, Tensor | None],
        ended: Tensor,
    ) -> None:
        """Keep the (token, log-prob, support) that the living slots drew in this step, and which of them ended."""
        token, logp, support = drawn
        live = slice(None) if bool(alive.all()) else alive  # most steps retire nobody: no copies then
        rows = row_of_slot[live]
        self.token_BT[rows, step] = token[live]
        self.logp_BT[rows, step] = logp[live]
        self.length_B[rows] = step + 1
        if support is not None:
            self.supports.append((rows * self.limit + step, tiled.Support.pack(support[live])))
        if bool(ended.any()):
            self.ended_B[row_of_slot[ended]] = True

    def finish(self) -> Generated:
        support = None
        if self.supports:
            cell_N = torch.cat([cells for cells, _ in self.supports])
            support = tiled.Support.concatenate([s for _, s in self.supports]).take(cell_N.argsort())
        return Generated(self.token_BT, self.logp_BT, self.length_B, self.ended_B, support)


def generate(
    decoder: torch.nn.Module,
    head: tiled.Head,
    prompts: Sequence[Tensor],
    per_prompt: int,
    *,
    law: categorical.Truncation,
    limit: int,
    eos_ids: Tensor,
    uniform_BT: Tensor,
) -> Generated:
    """Draw `per_prompt` completions for each prompt (int64 token ids) of at most `limit` tokens, with their log-probs.

    uniform_BT  [B, limit] uniform numbers: decision (b, t) uses entry (b, t), whatever else is in the batch
    eos_ids     every id that ends a row; drawing one is a decision of its own
    """
    device = prompts[0].device
    if device.type == "cpu":  # a CPU multiplies in float32 (laws/tiled.py): converted once, not in every step
        exact = torch.promote_types(head.weight_VH.dtype, torch.float32)
        head = head._replace(weight_VH=head.weight_VH.detach().to(exact))
    ragged = Ragged([len(p) for p in prompts], device)
    prefill = _Prefill(ragged)
    hidden = hidden_states(decoder, torch.cat(list(prompts)), ragged.position, prefill)
    length_G = torch.tensor(ragged.lengths, device=device)
    last = hidden[length_G.cumsum(0) - 1]

    rows = len(prompts) * per_prompt
    record = _Record(rows, limit, device)
    grid = _Grid(prefill, len(prompts), per_prompt, limit)
    row_of_slot = torch.arange(rows, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    logits = tiled.logits(last, head).repeat_interleave(per_prompt, 0)
    position = length_G.repeat_interleave(per_prompt)
    lean = LeanDecoder.of(decoder, limit - 1)
    for step in range(limit):
        token, logp, support = categorical.sample(logits, law, uniform_N=uniform_BT[row_of_slot, step])
        ended = torch.isin(token, eos_ids) & alive
        record.add(step, row_of_slot, alive, (token, logp, support), ended)
        alive = alive & ~ended
        if step + 1 == limit or not bool(alive.any()):
            break
        kept = _compaction(alive.view(grid.groups, grid.per_group))
        if kept is not None:
            groups, slots, per_group = kept
            grid.keep(groups, slots, per_group)
            alive, token, position, row_of_slot = alive[slots], token[slots], position[slots], row_of_slot[slots]
        grid.step = step
        if lean is not None:
            hidden = lean.step(token, position + step, grid)
        else:
            hidden = hidden_states(decoder, token, position + step, grid)
        logits = tiled.logits(hidden, head)
    return record.finish()


def _compaction(alive_GK: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """(groups, slots, slots per group) to keep when that shrinks the grid enough, else None."""
    count_G = alive_GK.sum(1)
    groups = count_G.nonzero()[:, 0]
    per_group = int(count_G.max())
    if len(groups) * per_group > COMPACT_BELOW * alive_GK.numel():
        return None
    # living slots first, in their old order; dead ones fill groups that have fewer than the fullest
    order = torch.argsort((~alive_GK[groups]).to(torch.int8), dim=1, stable=True)[:, :per_group]
    slots = (groups[:, None] * alive_GK.shape[1] + order).flatten()
    return groups, slots, per_group
