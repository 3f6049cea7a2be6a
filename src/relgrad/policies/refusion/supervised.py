r"""ReFusion's supervised loss (Li et al. 2025, arXiv:2512.13586; the forward of ML-GSAI/ReFusion's Qwen3ForCausalLM).

An answer of n tokens is cut into slots of a size drawn for it; each is masked with probability p = (1 - eps) u + eps, u uniform.
The input is

    [prompt] [clean slots, shuffled] [masked slots, in order]      causal, every token at its position in the text

    loss = mean over clean slots' tokens but each slot's first, of -log p(token | what stands before it)           (shifted)
         + 1 / (n p) sum over masked tokens of -log p(token | its own mask and what stands before that)            (not shifted)

Examples are weighted by n. That is the original's loss where a device has one example; its means over the clean tokens of several
would depend on which examples are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.randomness import Draws
from relgrad.core.types import SupervisedLoss
from relgrad.laws import tiled
from relgrad.networks.refusion.layout import PADDING, PROMPT, Places
from relgrad.networks.refusion.network import SlotNetwork

EPS = 1e-3
"""The least probability of a mask."""


class Row(NamedTuple):
    """One example as it is shown: tokens and positions [W], labels [W] (-1: none) and the weight of each label's loss."""

    token_W: Tensor
    position_W: Tensor
    label_W: Tensor
    weight_W: Tensor


class Cut(NamedTuple):
    """How an answer is cut: the size of its slots, a mask's probability, which slots are masked, and the order of the others."""

    size: int
    p_mask: float
    masked_N: Tensor
    order_N: Tensor


def draw_cuts(draws: Draws, sizes: Sequence[int], lengths: Sequence[int]) -> list[Cut]:
    """One for every answer; what is drawn for it depends on its own length alone."""
    slots = [-(-length // min(sizes)) for length in lengths]
    size_B, u_B = draws.randint(0, len(sizes)), draws.rand(dtype=torch.float64)
    uniforms = draws.rand_each(slots, 2, dtype=torch.float64).split(slots)
    cuts = []
    for number, u, uniform_N2 in zip(size_B.tolist(), u_B.tolist(), uniforms, strict=True):
        p_mask = (1 - EPS) * u + EPS
        cuts.append(Cut(sizes[number], p_mask, uniform_N2[:, 0] < p_mask, uniform_N2[:, 1]))
    return cuts


def show(prompt: Tensor, answer: Tensor, cut: Cut, mask_id: int) -> Row:
    """An example as it is shown under a cut."""
    length, start = len(answer), len(prompt)
    slot_L = torch.arange(length) // cut.size
    masked_L = cut.masked_N[slot_L]
    # clean slots by their drawn order, then masked ones by their number; positions stay in order inside of a slot
    key_L = torch.where(masked_L, 1.0 + slot_L, cut.order_N[slot_L])
    shown_L = key_L.argsort(stable=True)
    position_L, is_masked_L = shown_L + start, masked_L[shown_L]
    within_L = shown_L % cut.size
    follows_L = (within_L + 1 < cut.size) & (shown_L + 1 < length)  # the next token of the same slot
    next_L = answer[(shown_L + 1).clamp(max=length - 1)]
    label_L = torch.where(is_masked_L, answer[shown_L], torch.where(follows_L, next_L, -1))
    clean = max(int((follows_L & ~is_masked_L).sum()), 1)
    weight_L = torch.where(is_masked_L, 1 / cut.p_mask, length / clean)
    nothing = torch.full_like(prompt, -1)
    return Row(
        torch.cat([prompt, torch.where(is_masked_L, mask_id, answer[shown_L])]),
        torch.cat([torch.arange(start), position_L]),
        torch.cat([nothing, label_L]),
        torch.cat([torch.zeros(start), weight_L]),
    )


def refusion_loss(
    network: SlotNetwork, examples: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int], draws: Draws
) -> SupervisedLoss:
    """The loss of (prompt, answer) pairs of token ids, summed over the answers' tokens; nats. It is no likelihood's."""
    cuts = draw_cuts(draws, sizes, [len(answer) for _, answer in examples])
    rows = [show(*example, cut, network.mask_id) for example, cut in zip(examples, cuts, strict=True)]
    token_BW, position_BW, weight_BW = (
        pad_sequence(list(column), batch_first=True)
        for column in zip(*((r.token_W, r.position_W, r.weight_W) for r in rows), strict=True)
    )
    label_BW = pad_sequence([row.label_W for row in rows], batch_first=True, padding_value=-1)
    length_B = torch.tensor([len(row.token_W) for row in rows])
    within_BW = torch.arange(token_BW.shape[1]) < length_B[:, None]
    thread_BW = torch.where(within_BW, PROMPT, PADDING)  # one thread: plain causal attention
    places = Places(token_BW, position_BW, thread_BW, thread_BW, position_BW, within_BW)
    has_label_BW = label_BW >= 0
    hidden_NH = network.hidden(places)[has_label_BW.to(network.device)]
    logp_N, _ = tiled.log_probs(hidden_NH, network.head(), label_BW[has_label_BW].to(network.device))
    total = -(logp_N * weight_BW[has_label_BW].to(logp_N)).sum()
    return SupervisedLoss(total, sum(len(answer) for _, answer in examples))
