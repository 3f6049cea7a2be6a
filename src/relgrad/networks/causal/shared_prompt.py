"""One forward pass for a whole group: the prompt is computed once, every completion attends to it.

Any Hugging Face decoder that calls the library's attention interface can run on one flat row of tokens without padding

    [prompt 1][prompt 2] ... [completion 1.1][completion 1.2] ... [completion 2.1] ...      position ids restart per row

because everything but attention acts on single tokens. Attention itself is replaced by `attend` of a *layout* object that
travels as a keyword argument through the model: prompts attend causally to themselves; a completion to its prompt and,
causally, to itself. Keys and values of a prompt exist once, and so do their gradients.

    PackedLayout   scoring: prompts and completions at once, differentiable
    decode.py      generation: prefill, then one token per row and step against a shared, static cache
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from relgrad.networks.causal import lean_forward
from relgrad.networks.causal.group_attention import Part, group_attention

ATTENTION = "relgrad_shared_prompt"


class Layout(Protocol):
    """Says how the tokens of one flat row attend to each other."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """query [1, heads, N, D], key [1, kv_heads, N, D], value [1, kv_heads, N, E] -> [1, N, heads, E].

        `window` is the layer's sliding window: a token sees itself and the window - 1 tokens before it; None sees all.
        """
        ...


def register_attention() -> None:
    """Offer `ATTENTION` to transformers. Without a layout it is plain SDPA, so generate() and saving work as ever."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layout: Layout | None = kwargs.pop("relgrad_layout", None)
        if layout is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        for extra in ("softcap", "s_aux"):
            if kwargs.get(extra) is not None:
                raise NotImplementedError(f"its attention has an extra ({extra}) that the layouts do not compute")
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return layout.attend(module.layer_idx, query, key, value, scale, _window(module, kwargs)), None

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


def _window(module: Any, kwargs: dict[str, Any]) -> int | None:
    """The layer's sliding window, or None. Raises NotImplementedError where the configuration has one that is not passed on."""
    window = kwargs.get("sliding_window")
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else "full_attention"
    slides = kind == "sliding_attention" if kinds else getattr(config, "sliding_window", None) is not None
    if kind not in ("full_attention", "sliding_attention") or (slides and window is None):
        raise NotImplementedError(f"layer {module.layer_idx} ({kind}) restricts attention in a way of its own")
    return window if slides else None


def hidden_states(decoder: torch.nn.Module, token_N: Tensor, position_N: Tensor, layout: Layout) -> Tensor:
    """Final hidden states [N, H] of one flat row of tokens under a layout, differentiable."""
    parts = lean_forward.serves(decoder)
    if parts is not None:
        return lean_forward.forward(parts, token_N, position_N, layout)
    # a ready-made 4-D mask is passed through untouched; the layout replaces it
    no_mask = torch.empty(1, 1, 1, 1, device=token_N.device)
    output = decoder(
        input_ids=token_N[None],
        position_ids=position_N[None],
        attention_mask=no_mask,
        use_cache=False,
        relgrad_layout=layout,
    )
    return output.last_hidden_state[0]


class Ragged:
    """Rows of different lengths that lie end to end in a flat tensor, and their padded [rows, width] form.

    Rows of equal length need no copy at all; others are moved by index, forward and backward without accumulation.
    `position`, of every token within its row, stays on the host.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = list(lengths)
        self.rows, self.width, self.total = len(self.lengths), max(self.lengths, default=0), sum(self.lengths)
        self.uniform = self.total == self.rows * self.width
        length_R = torch.tensor(self.lengths, dtype=torch.int64)
        # everything is worked out on the host, which knows the lengths, and goes to the device once
        inside = torch.arange(self.width)[None] < length_R[:, None]
        self.inside = inside.to(device)
        self.slot = inside.flatten().nonzero()[:, 0].to(device)
        self.position = torch.arange(self.width).expand(self.rows, -1)[inside]

    def pad(self, flat: Tensor) -> Tensor:
        """[heads, total, D] -> [rows, heads, width, D], zeros in the padding."""
        padded = flat if self.uniform else _Scatter.apply(flat, self.slot, self.rows * self.width)
        return padded.unflatten(1, (self.rows, self.width)).transpose(0, 1)

    def causal(self, window: int | None, like: Tensor) -> Tensor | None:
        """The additive mask [width, width] of causal attention within a window, or None where plain causal does it."""
        if window is None or window >= self.width:
            return None
        visible = torch.ones(self.width, self.width, dtype=torch.bool, device=like.device).tril()
        return additive(visible & ~visible.tril(-window), like)

    def flatten(self, padded: Tensor) -> Tensor:
        """[rows, heads, width, D] -> [total, heads, D]."""
        flat = padded.transpose(1, 2).flatten(0, 1)
        return flat if self.uniform else _Gather.apply(flat, self.slot)


class _Scatter(torch.autograd.Function):
    """[heads, total, D] -> [heads, size, D]: put entry i at slot[i]; the slots are distinct."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, slot: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slot)
        return flat.new_zeros(flat.shape[0], size, flat.shape[2]).index_copy_(1, slot, flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(1, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """[size, heads, D] -> [total, heads, D]: take slot[i] as entry i; the slots are distinct."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.size = padded.shape[0]
        return padded.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad), None


class PackedLayout:
    """Prompts first, completions after, for scoring.

    prompt_lengths      tokens of each prompt
    completion_lengths  tokens of each completion row; 0 is allowed (a row scored at its prompt's last token only)
    row_prompt          which prompt each completion row continues, in ascending order
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        completion_lengths: Sequence[int],
        row_prompt: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.prompts = Ragged(prompt_lengths, device)
        self.completions = Ragged(completion_lengths, device)
        group_tokens = [0] * self.prompts.rows
        for prompt, length in zip(row_prompt, completion_lengths, strict=True):
            group_tokens[prompt] += length
        self.groups = Ragged(group_tokens, device)
        starts = [prompt_lengths[prompt] for prompt in row_prompt]
        offset_N = torch.tensor(starts, dtype=torch.int64).repeat_interleave(
            torch.tensor(completion_lengths, dtype=torch.int64)
        )
        own_position_N = offset_N + self.completions.position
        self.position_N = torch.cat([self.prompts.position, own_position_N]).to(device)
        self._furthest = int(own_position_N.max()) if len(own_position_N) else 0
        self._own_position_N = own_position_N.to(device)
        self._parts: dict[tuple[int | None, int], tuple[Part, Part]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Scaled dot-product attention of the whole flat row; see `Layout`."""
        repeats = query.shape[1] // key.shape[1]
        sizes = [self.prompts.total, self.completions.total]
        (prompt_q, own_q), (prompt_k, own_k), (prompt_v, own_v) = (t[0].split(sizes, 1) for t in (query, key, value))
        mask = self.prompts.causal(window, query)
        # prompts are padded on the right, so the causal mask alone keeps padding out of every real query
        prompt_out = F.scaled_dot_product_attention(
            self.prompts.pad(prompt_q),
            repeat_heads(self.prompts.pad(prompt_k), repeats),
            repeat_heads(self.prompts.pad(prompt_v), repeats),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        flat = self.prompts.flatten(prompt_out)
        if not self.completions.total:
            return flat[None]
        parts = self._seen(window, repeats, query)
        own_out = group_attention(own_q, (prompt_k, prompt_v), (own_k, own_v), parts, scale)
        return torch.cat([flat, own_out])[None]

    def _seen(self, window: int | None, repeats: int, like: Tensor) -> tuple[Part, Part]:
        """What the completions see of their prompts and of their own rows; made once per forward and window."""
        window = None if window is None or window > self._furthest else window
        if (window, repeats) not in self._parts:
            exact = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
            length = self.completions.width
            own = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
            own = own if window is None else own & ~own.tril(-window)
            prompt = None
            if window is not None or not self.prompts.uniform:
                visible = self.prompts.inside[:, None, None]
                if window is not None:
                    position_GN = self.groups.pad(self._own_position_N[None, :, None])[:, 0]
                    key = torch.arange(self.prompts.width, device=like.device)
                    visible = visible & (position_GN - key < window)[:, None].repeat(1, 1, repeats, 1)
                prompt = additive(visible, exact)
            own_mask = additive(own.repeat(repeats, 1)[None, None], exact)
            self._parts[window, repeats] = (
                Part(self.groups, self.prompts, prompt),
                Part(self.completions, self.completions, own_mask),
            )
        return self._parts[window, repeats]


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where `visible`, the lowest number of the dtype elsewhere."""
    zero = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return zero.masked_fill(~visible, torch.finfo(like.dtype).min)


def repeat_heads(x: Tensor, repeats: int) -> Tensor:
    """[rows, kv_heads, width, D] -> [rows, kv_heads * repeats, width, D] (grouped-query attention)."""
    if repeats == 1:
        return x
    rows, heads, width, size = x.shape
    return x[:, :, None].expand(-1, -1, repeats, -1, -1).reshape(rows, heads * repeats, width, size)


def scaled_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """scale * query [B, M, D] @ key [B, D, N], accumulated and returned in float32 at least."""
    if query.dtype in (torch.float32, torch.float64):
        return torch.bmm(query * scale, key)
    if query.is_cuda:
        return torch.bmm(query, key, out_dtype=torch.float32).mul_(scale)
    return torch.bmm(query.float() * scale, key.float())
