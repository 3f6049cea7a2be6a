"""Attention while generating: a prompt's keys and values once, every slot's own ones in a cache.

    Prefill    layout of all prompts end to end; keeps their keys and values
    Grid       layout of one token per slot; slots [G groups, K each], group by group

Within a group all slots meet the prompt in one product. Scores of the prompt and of a slot's own tokens share one softmax.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from relgrad.networks.causal.shared_prompt import Ragged, additive, repeat_heads, scaled_scores

CACHE_BYTES = 4 * 1024**3
"""The completions' cache is allocated once, for the longest completion allowed, where all layers together take at most
this. A larger one begins with the tokens that fit (at least BLOCK) and doubles when it is full, by a copy: few rows reach a
limit of many thousand tokens."""
BLOCK = 64


class Prefill:
    """Layout of all prompts end to end; keeps their keys and values, padded, per layer."""

    def __init__(self, prompts: Ragged) -> None:
        self.prompts = prompts
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """See shared_prompt.Layout."""
        repeats = query.shape[1] // key.shape[1]
        mask = self.prompts.causal(window, query)
        k, v = self.prompts.pad(key[0]), self.prompts.pad(value[0])
        self.keys.append(k.contiguous())
        self.values.append(v.contiguous())
        out = F.scaled_dot_product_attention(
            self.prompts.pad(query[0]),
            repeat_heads(k, repeats),
            repeat_heads(v, repeats),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        return self.prompts.flatten(out)[None]


class Grid:
    """Layout of one decoding step: slots [G, K], the shared prompt cache and every slot's own cache of `limit` tokens.

    Axes below: G groups, A key heads, K slots of a group, R query heads of one key head, S tokens so far, D size of a head.
    """

    def __init__(self, prefill: Prefill, groups: int, per_group: int, limit: int) -> None:
        self.groups, self.per_group, self.limit = groups, per_group, limit
        self.prompt_keys = [k.transpose(-1, -2).contiguous() for k in prefill.keys]  # [G, A, D, P]
        self.prompt_values = prefill.values  # [G, A, P, D]
        self.inside = prefill.prompts.inside
        self.length_G1 = self.inside.sum(-1, keepdim=True)
        self.furthest = prefill.prompts.width
        self.hidden = None if prefill.prompts.uniform else self._unseen(self.inside)
        self.own_keys: list[Tensor] = []  # [G, A, K, room, D]
        self.own_values: list[Tensor] = []
        self.step = 0

    def _unseen(self, seen_GP: Tensor) -> Tensor:
        """The additive mask [G, 1, 1, P] of the prompts' keys."""
        return additive(seen_GP[:, None, None, :], self.prompt_values[0])

    def _mask(self, window: int | None) -> Tensor | None:
        """The prompts' mask at this step: their padding, and what a sliding window has left behind."""
        if window is None or self.furthest + self.step < window:
            return self.hidden
        behind = self.length_G1 + self.step - window
        return self._unseen(self.inside & (torch.arange(self.inside.shape[1], device=behind.device) > behind))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """See shared_prompt.Layout; one new token per slot."""
        groups, per_group, size = self.groups, self.per_group, query.shape[-1]
        heads, kv_heads = query.shape[1], key.shape[1]
        repeats = heads // kv_heads
        own_k, own_v = self._store(layer, key[0], value[0], window)
        by_head = query[0].view(kv_heads, repeats, groups, per_group, size)
        q = by_head.permute(2, 0, 3, 1, 4).reshape(groups * kv_heads, per_group * repeats, size)
        prompt_scores = scaled_scores(q, self.prompt_keys[layer].flatten(0, 1), scale)
        hidden = self._mask(window)
        if hidden is not None:
            prompt_scores.unflatten(0, (groups, kv_heads)).add_(hidden)
        own_scores = scaled_scores(q.reshape(-1, repeats, size), own_k.transpose(-1, -2), scale)
        width, slots = prompt_scores.shape[-1], groups * kv_heads * per_group
        scores = torch.cat([prompt_scores.view(slots, repeats, width), own_scores], -1)
        attention = torch.softmax(scores, -1).to(value.dtype)
        to_prompt = attention[..., :width].view(groups * kv_heads, per_group * repeats, width)
        out = torch.bmm(to_prompt, self.prompt_values[layer].flatten(0, 1)).view(slots, repeats, -1)
        out = out.baddbmm_(attention[..., width:], own_v)
        by_slot = out.view(groups, kv_heads, per_group, repeats, -1).transpose(1, 2)
        return by_slot.reshape(1, groups * per_group, heads, value.shape[-1])

    def _store(self, layer: int, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Write this step's key and value [A, slots, D]; return the slots' caches [G * A * K, S, D] within the window."""
        if layer == len(self.own_keys):
            self.own_keys.append(self._cache(key))
            self.own_values.append(self._cache(value))
        elif self.step >= self.own_keys[layer].shape[3]:
            more = min(self.own_keys[layer].shape[3] * 2, self.limit) - self.own_keys[layer].shape[3]
            self.own_keys[layer] = F.pad(self.own_keys[layer], (0, 0, 0, more))
            self.own_values[layer] = F.pad(self.own_values[layer], (0, 0, 0, more))
        visible = []
        for cache, new in ((self.own_keys[layer], key), (self.own_values[layer], value)):
            cache[:, :, :, self.step] = new.unflatten(1, (self.groups, self.per_group)).transpose(0, 1)
            first = 0 if window is None else max(self.step + 1 - window, 0)
            visible.append(cache.flatten(0, 2)[:, first : self.step + 1])
        return visible[0], visible[1]

    def _cache(self, new: Tensor) -> Tensor:
        """Room for the keys or values of one layer, whose first ones are [A, slots, D]."""
        token_bytes = 2 * len(self.prompt_keys) * new.numel() * new.element_size()
        room = min(self.limit, max(CACHE_BYTES // token_bytes, BLOCK))
        return new.new_empty(self.groups, new.shape[0], self.per_group, room, new.shape[2])

    def keep(self, group_G: Tensor, slot_GK: Tensor) -> None:
        """Shrink to the given groups and, of each, the given slots (numbered within the group)."""
        if len(group_G) < self.groups:
            self.prompt_keys = [k[group_G] for k in self.prompt_keys]
            self.prompt_values = [v[group_G] for v in self.prompt_values]
            self.inside, self.length_G1 = self.inside[group_G], self.length_G1[group_G]
            self.hidden = self.hidden[group_G] if self.hidden is not None else None
        self.groups, self.per_group = slot_GK.shape
        self.own_keys = [self._kept(k, group_G, slot_GK) for k in self.own_keys]
        self.own_values = [self._kept(v, group_G, slot_GK) for v in self.own_values]

    def _kept(self, cache: Tensor, group_G: Tensor, slot_GK: Tensor) -> Tensor:
        head_A = torch.arange(cache.shape[1], device=cache.device)
        smaller = cache.new_empty(len(group_G), cache.shape[1], slot_GK.shape[1], *cache.shape[3:])
        written = cache[:, :, :, : self.step + 1]
        smaller[:, :, :, : self.step + 1] = written[group_G[:, None, None], head_A[:, None], slot_GK[:, None]]
        return smaller
