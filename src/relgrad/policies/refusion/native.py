"""ReFusion's own decoding: plan, verify, infill (Li et al. 2025, arXiv:2512.13586; `generate_refusion` of ML-GSAI/ReFusion).

In every serial block, while it has slots to write:

    plan     a pass over the masks of these slots drafts all their tokens. Slots whose first token is more probable than
             `slot_threshold` are chosen; where there are none, the best one
    verify   the chosen drafts, one behind the other, are read as a language model reads. A token stands where its probability is
             more than `token_threshold`; a slot's first always does. Whole slots at the beginning that stand are written
    infill   where not even the first slot stands, all chosen slots are written side by side, in rounds: tokens that do not stand
             are masked and predicted again (the most probable), then read again; one token more of every slot always stands

An end of sequence drops the slots behind it, and its block is the last. After an end found while infilling, the public code
drops slots by their number among the chosen ones, which may leave a gap before the end; here they are those behind the end.
Probabilities are those at temperature 1; noise is on drafts only. No law of thresholds and second predictions is scored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from relgrad.laws import categorical
from relgrad.laws.categorical import Truncation
from relgrad.networks.refusion.layout import PLAN, Places
from relgrad.networks.refusion.network import SlotNetwork, trim
from relgrad.policies.refusion.schedule import Schedule
from relgrad.policies.refusion.settings import Native


class Decoded(NamedTuple):
    """The answer's token ids up to its first end of sequence, which is the last of them where there is one; forward passes."""

    ids: list[int]
    forwards: int


@torch.no_grad()
def decode(
    network: SlotNetwork,
    prompt: Tensor,
    schedule: Schedule,
    settings: Native,
    end_ids: Tensor,
    generator: torch.Generator,
) -> Decoded:
    """One answer to a prompt [P] of token ids."""
    decoding = _Decoding(network, prompt, schedule, settings, end_ids, generator)
    for block in range(schedule.serial):
        decoding.write(block)
        if decoding.ended:
            break
    return Decoded(decoding.text(), decoding.forwards)


class _Decoding:
    """One answer. `places` are those whose keys and values are in the cache; `step` counts the rounds of plan and verify."""

    def __init__(
        self,
        network: SlotNetwork,
        prompt: Tensor,
        schedule: Schedule,
        settings: Native,
        end_ids: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.network, self.size, self.settings = network, schedule.size, settings
        self.each, self.start = schedule.slots // schedule.serial, len(prompt)
        self.end_ids, self.generator = end_ids, generator
        self.limit_1 = torch.tensor([self.start + schedule.positions])
        self.step, self.forwards, self.ended = 0, 0, False
        self.cache: Any = network.empty_cache()
        self.places = Places.prompts([prompt])
        network.hidden(self.places, cache=self.cache)

    def write(self, block: int) -> None:
        """Write one serial block."""
        slots = torch.arange(block * self.each, (block + 1) * self.each)
        while len(slots):
            draft_MS, p_MS = self.plan(slots)
            sure_M = p_MS[:, 0] > self.settings.slot_threshold
            if not bool(sure_M.any()):
                sure_M[p_MS[:, 0].argmax()] = True
            chosen_C, draft_CS = slots[sure_M], draft_MS[sure_M]
            stands_CS, added = self.verify(chosen_C, draft_CS, p_MS[sure_M])
            written_C, last = self.accept(chosen_C, draft_CS, stands_CS, added)
            if not len(written_C):
                written_C, last = self.infill(chosen_C, draft_CS, stands_CS)
            slots = slots[~torch.isin(slots, written_C)]
            if last is not None:
                slots = slots[slots < last]
                self.ended = True
            self.step += 1

    def plan(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """([M, S] drafts, [M, S] their probabilities) of the slots given."""
        position_L = (slots[:, None] * self.size + torch.arange(self.size)).flatten()
        mask_L = torch.full_like(position_L, self.network.mask_id)
        logits_LV = self.logits(self.added(mask_L, position_L, torch.full_like(position_L, PLAN)))
        self.forget(len(position_L))
        draft_L = logits_LV.argmax(-1)
        if self.settings.temperature > 0:
            uniform_L = torch.rand(len(draft_L), generator=self.generator)
            law = Truncation(self.settings.temperature)
            draft_L, _, _ = categorical.sample(logits_LV, law, uniform_N=uniform_L.to(logits_LV.device))
        p_L = chance(logits_LV, draft_L)
        return draft_L.cpu().view(-1, self.size), p_L.view(-1, self.size)

    def verify(self, chosen_C: Tensor, draft_CS: Tensor, p_CS: Tensor) -> tuple[Tensor, int]:
        """(bool [C, S] whether each token stands, how many places were added): the drafts, one behind the other."""
        position_L = (chosen_C[:, None] * self.size + torch.arange(self.size)).flatten()
        logits_LV = self.logits(self.added(draft_CS.flatten(), position_L, torch.zeros_like(position_L)))
        read_L = chance(logits_LV[:-1], draft_CS.flatten()[1:].to(logits_LV.device))
        read_CS = torch.cat([p_CS.flatten()[:1], read_L]).view(-1, self.size)
        stands_CS = read_CS > self.settings.token_threshold
        stands_CS[:, 0] = True
        return stands_CS, len(position_L)

    def accept(self, chosen_C: Tensor, draft_CS: Tensor, stands_CS: Tensor, added: int) -> tuple[Tensor, int | None]:
        """(the slots that are written by what stands, the slot with the end); what is not written is forgotten."""
        count = int(stands_CS.flatten().int().cumprod(0).sum())
        end_N = torch.isin(draft_CS.flatten()[:count], self.end_ids).nonzero()[:, 0]
        if len(end_N):
            first = int(end_N[0])
            self.forget(added - first - 1)
            return chosen_C[: first // self.size + 1], int(chosen_C[first // self.size])
        whole = count // self.size
        self.forget(added - whole * self.size)
        return chosen_C[:whole], None

    def infill(self, chosen_C: Tensor, draft_CS: Tensor, stands_CS: Tensor) -> tuple[Tensor, int | None]:
        """(the slots written, the slot with the end): all chosen slots side by side, in rounds."""
        size, mask_id, threshold = self.size, self.network.mask_id, self.settings.token_threshold
        token_CS, stands_CS = draft_CS.clone(), stands_CS.int().cumprod(-1).bool()
        count, kept, end = len(chosen_C), 0, None
        base = self.places.token_RW.shape[1]
        live_C = torch.ones(count, dtype=torch.bool)
        while not bool(stands_CS[live_C].all()):
            stands_CR, width = stands_CS[:, kept:], size - kept
            masked_CR = torch.where(stands_CR, token_CS[:, kept:], mask_id)
            predicted_CR = self.side_by_side(chosen_C, masked_CR, kept).argmax(-1).cpu()
            self.forget(count * width)
            token_CS[:, kept:] = torch.where(stands_CR, token_CS[:, kept:], predicted_CR)
            logits_CRV = self.side_by_side(chosen_C, token_CS[:, kept:], kept)
            stood_before_CR = torch.nn.functional.pad(stands_CR, (1, 0), value=True)[:, :-1]
            read_CR = torch.ones(count, width)
            if width > 1:
                target_N = token_CS[:, kept + 1 :].flatten().to(logits_CRV.device)
                read_CR[:, 1:] = chance(logits_CRV[:, :-1].flatten(0, 1), target_N).view(count, -1)
            stands_CS[:, kept:] = ((read_CR > threshold) | stood_before_CR).int().cumprod(-1).bool()
            ends_C = (torch.isin(token_CS, self.end_ids) & stands_CS)[:, kept:].any(-1) & live_C
            if bool(ends_C.any()):
                end = int(ends_C.nonzero()[0])
                live_C &= torch.arange(count) <= end
                stands_CS[end] = True
            fresh = int(stands_CS[live_C, kept:].sum(-1).min())
            fresh -= (
                0 if bool(stands_CS[live_C].all()) else 1
            )  # the last one is read again: what follows is read from it
            kept += fresh
            self.forget(count * (width - fresh))
        self.hide(base, live_C, token_CS)
        return chosen_C[live_C], None if end is None else int(chosen_C[end])

    def side_by_side(self, chosen_C: Tensor, token_CR: Tensor, first: int) -> Tensor:
        """[C, R, V] logits at tokens first, first + 1, ... of every slot, each slot a thread; the first ones of all come first."""
        count, width = token_CR.shape
        position_CR = chosen_C[:, None] * self.size + first + torch.arange(width)
        thread_CR = torch.arange(count)[:, None].expand(count, width)
        added = self.added(*(column_CR.T.flatten() for column_CR in (token_CR, position_CR, thread_CR)))
        return self.logits(added).view(width, count, -1).transpose(0, 1)

    def hide(self, base: int, live_C: Tensor, token_CS: Tensor) -> None:
        """Take slots that were dropped, and what stands behind an end, out of the sight of later steps."""
        is_end_CS = torch.isin(token_CS, self.end_ids).int()
        behind_CS = is_end_CS.cumsum(-1) > is_end_CS
        kept_RW = self.places.kept_RW.clone()
        kept_RW[0, base:] = (~behind_CS & live_C[:, None]).T.flatten()
        self.places = self.places._replace(kept_RW=kept_RW)

    # ------------------------------------------------------------------ the network's input

    def added(self, token_L: Tensor, position_L: Tensor, thread_L: Tensor) -> Places:
        """What this step adds; positions are counted from the beginning of the answer."""
        everywhere_1L = torch.ones(1, len(token_L), dtype=torch.bool)
        position_1L = position_L[None] + self.start
        return Places.written(token_L[None], position_1L, thread_L[None], self.step, self.limit_1, everywhere_1L)

    def logits(self, added: Places) -> Tensor:
        """[L, V] at the places added, which join the cache."""
        self.places = self.places.beside(added)
        self.forwards += 1
        return self.network.logits(self.network.hidden(self.places, added.token_RW.shape[1], self.cache)[0])

    def forget(self, count: int) -> None:
        """Take the last `count` places out of the cache."""
        length = self.places.token_RW.shape[1] - count
        self.places = self.places.first(length)
        trim(self.cache, length)

    def text(self) -> list[int]:
        """The tokens written, by their position, up to the first end of sequence and with it."""
        written_W = self.places.kept_RW[0] & (self.places.step_RW[0] >= 0)
        token_W, position_W = self.places.token_RW[0][written_W], self.places.position_RW[0][written_W]
        token_W = token_W[position_W.argsort()]
        end_N = torch.isin(token_W, self.end_ids).nonzero()[:, 0]
        return token_W[: int(end_N[0]) + 1 if len(end_N) else len(token_W)].tolist()


def chance(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """float32 [N] on the CPU: the probability of each token at temperature 1."""
    return logits_NV.softmax(-1).gather(-1, token_N[:, None])[:, 0].float().cpu()
