"""A network of slots: Qwen3 of transformers, given what stands where (layout.py) in place of its own causal mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relgrad.laws import tiled
from relgrad.networks.refusion.layout import Places

NEVER = -1e9
"""Added to logits of ids that are never written. Their probability is 0 in float32, and products with it stay numbers."""
LOGITS = 2**24
"""Logits computed at once where only their maximum is wanted (64 MB in float32)."""


class SlotNetwork:
    """`model` is a Qwen3ForCausalLM, with adapters in it or not. `never` are ids that are not written: the mask, and others."""

    def __init__(self, model: Any, mask_id: int, never: Sequence[int]) -> None:
        self.model, self.mask_id = model, mask_id
        self.decoder = model.get_decoder()
        self.device = next(model.parameters()).device
        model.set_attn_implementation("sdpa")
        entries = model.get_output_embeddings().weight.shape[0]
        excluded = torch.tensor(sorted({mask_id, *never}))
        self._never_V = torch.zeros(entries).index_fill(0, excluded, NEVER).to(self.device)

    def hidden(self, places: Places, queries: int | None = None, cache: Any = None) -> Tensor:
        """[R, Q, H]: the network's output at the last `queries` places; the others are in `cache`, which grows by these."""
        count = places.token_RW.shape[1] if queries is None else queries
        places = places.to(self.device)
        mask = {"full_attention": places.seen(count)[:, None]}
        outputs = self.decoder(
            input_ids=places.token_RW[:, -count:],
            position_ids=places.position_RW[:, -count:],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden_RQH: Tensor = outputs.last_hidden_state
        return hidden_RQH

    def empty_cache(self) -> Any:
        """Keys and values of no places."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def head(self, temperature: float = 1.0) -> tiled.Head:
        """The head of this moment: what is excluded has no probability."""
        weight_VH = self.model.get_output_embeddings().weight
        return tiled.Head(weight_VH, self._never_V, temperature)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, V] at temperature 1, at least float32."""
        return tiled.logits(hidden_NH, self.head())

    @torch.no_grad()
    def most_probable(self, hidden_NH: Tensor) -> Tensor:
        """int64 [N]: the most probable token at each place."""
        rows = max(LOGITS // self.model.get_output_embeddings().weight.shape[0], 1)
        parts = [self.logits(piece).argmax(-1) for piece in hidden_NH.split(rows)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=self.device)

    def confidence(self, hidden_NH: Tensor) -> Tensor:
        """[N], nats, differentiable: log max_v p(v) at temperature 1, whatever token is drawn there."""
        logp_N, _ = tiled.log_probs(hidden_NH, self.head(), self.most_probable(hidden_NH))
        return logp_N


def trim(cache: Any, length: int) -> None:
    """Forget the keys and values of all places from `length` on."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def repeat(cache: Any, times: int) -> None:
    """Every row `times` times."""
    for layer in cache.layers:
        layer.keys, layer.values = (kept.repeat_interleave(times, 0) for kept in (layer.keys, layer.values))
