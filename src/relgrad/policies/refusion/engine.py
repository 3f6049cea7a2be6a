r"""How a ReFusion policy writes. One planning step, given what was written before it:

    plan    a pass over the masks of the slots that are open; slots are chosen in order by Plackett-Luce (laws/plackett_luce.py)
            with the score max_v log p(v) at the first mask of each, over `slot_temperature`; it does not look at what is drawn
    first   each chosen slot's first token, from the law at its first mask: the token at the mask's own position
    rest    each slot's other tokens one after the other, from the law at the token before, all chosen slots side by side

The step's log-probability is the sum of all these choices'. A slot ends at its first end of sequence. Keys and values of what was
written are kept as they are; those of masks are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.laws import categorical, plackett_luce, tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.refusion.layout import PLAN, Places
from relgrad.networks.refusion.network import SlotNetwork, repeat, trim
from relgrad.policies.refusion.schedule import Schedule

LOGITS = 2**24
"""Logits computed at once while tokens are drawn (64 MB in float32)."""


class Uniforms(NamedTuple):
    """Uniform numbers for every choice there may be: float64 `slot_BTN`, and `token_BTKS`."""

    slot_BTN: Tensor
    token_BTKS: Tensor


class Written(NamedTuple):
    """B finished trajectories of up to T steps.

    slot_BTK    the slots that each step wrote, in the order of its choice; -1 where it wrote fewer
    token_BTKS  their tokens; -1 behind a slot's end
    logp_BT     float64, nats
    support     what each token could be, in the order of [B, T, K, S]; None where nothing is truncated
    """

    slot_BTK: Tensor
    token_BTKS: Tensor
    logp_BT: Tensor
    support: tiled.Support | None


class Laws(NamedTuple):
    """The law of tokens, and by what the scores of slots are divided."""

    tokens: Truncation
    slot_temperature: float


@torch.no_grad()
def write(
    network: SlotNetwork,
    prompts: Sequence[Tensor],
    each: int,
    schedule: Schedule,
    laws: Laws,
    end_ids: Tensor,
    uniforms: Uniforms,
) -> Written:
    """`each` answers to every prompt [P] of token ids; `end_ids` are what ends one."""
    return _Writing(network, prompts, each, schedule, laws, end_ids).run(uniforms)


class _Writing:
    """All rows of a call, step by step. `places` are those whose keys and values are in the cache."""

    def __init__(
        self,
        network: SlotNetwork,
        prompts: Sequence[Tensor],
        each: int,
        schedule: Schedule,
        laws: Laws,
        end_ids: Tensor,
    ) -> None:
        self.network, self.schedule, self.laws, self.end_ids = network, schedule, laws, end_ids
        self.start_B = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(each)
        self.rows = len(self.start_B)
        places = Places.prompts(prompts)
        self.cache = network.empty_cache()
        network.hidden(places, cache=self.cache)
        repeat(self.cache, each)
        self.places = Places(*(column.repeat_interleave(each, 0) for column in places))
        self.written_BN = torch.zeros(self.rows, schedule.slots, dtype=torch.bool)
        self.end_B = torch.full((self.rows,), schedule.positions)
        self.pending: Places | None = None
        self.logp_B = torch.zeros(self.rows, dtype=torch.float64)
        self.drawn: list[tuple[Tensor, tiled.Support]] = []

    def run(self, uniforms: Uniforms) -> Written:
        schedule, size = self.schedule, self.schedule.size
        slot_BTK = torch.full((self.rows, schedule.steps, schedule.widest), -1)
        token_BTKS = torch.full((*slot_BTK.shape, size), -1)
        logp_BT = torch.zeros(slot_BTK.shape[:2], dtype=torch.float64)
        for step in range(schedule.steps):
            open_BN = schedule.open(step, self.written_BN, self.end_B)
            if not bool(open_BN.any()):
                continue
            self.logp_B = torch.zeros(self.rows, dtype=torch.float64)
            slot_BK, first_BKH = self.plan(step, open_BN, uniforms.slot_BTN[:, step])
            token_BKS = self.fill(step, slot_BK, first_BKH, uniforms.token_BTKS[:, step])
            width = slot_BK.shape[1]
            slot_BTK[:, step, :width], token_BTKS[:, step, :width] = slot_BK, token_BKS
            logp_BT[:, step] = self.logp_B
            self.close(slot_BK, token_BKS)
        return Written(slot_BTK, token_BTKS, logp_BT, self.support())

    # ------------------------------------------------------------------ one step

    def plan(self, step: int, open_BN: Tensor, uniform_BN: Tensor) -> tuple[Tensor, Tensor]:
        """([B, K] the slots chosen, -1 for none, [B, K, H] the network's output at their first masks)."""
        size = self.schedule.size
        count = int(open_BN.sum(-1).max())
        slot_BM = (~open_BN).byte().argsort(dim=-1, stable=True)[:, :count]
        is_open_BM = open_BN.gather(1, slot_BM)
        position_BL = self.positions(slot_BM[..., None], torch.arange(size)).flatten(1)
        valid_BL = is_open_BM.repeat_interleave(size, 1)
        mask_BL = torch.full_like(position_BL, self.network.mask_id)
        thread_BL = torch.full_like(position_BL, PLAN)
        masks = Places.written(mask_BL, position_BL, thread_BL, step, self.limit(), valid_BL)
        hidden_BLH = self.forward(masks if self.pending is None else self.pending.beside(masks))
        self.forget(mask_BL.shape[1])
        self.pending = None
        first_BMH = hidden_BLH[:, -mask_BL.shape[1] :: size]
        on = is_open_BM.to(self.network.device)
        score_M = self.network.confidence(first_BMH[on]).double().cpu() / self.laws.slot_temperature
        score_BM = torch.full(is_open_BM.shape, -torch.inf, dtype=torch.float64)
        score_BM[is_open_BM] = score_M
        # the uniform numbers are those of slots, wherever they stand in the input
        chosen_BK = plackett_luce.draw(score_BM, self.schedule.counts[step], uniform_BN.gather(1, slot_BM))
        logp_QM, choice_Q, row_Q = plackett_luce.choices(score_BM, chosen_BK)
        self.logp_B.index_add_(0, row_Q, logp_QM.gather(-1, choice_Q[:, None])[:, 0])
        at_BK = chosen_BK.clamp(min=0)
        slot_BK = torch.where(chosen_BK < 0, -1, slot_BM.gather(1, at_BK))
        row_B1 = torch.arange(self.rows)[:, None]
        return slot_BK, first_BMH[row_B1.to(self.network.device), at_BK.to(self.network.device)]

    def fill(self, step: int, slot_BK: Tensor, first_BKH: Tensor, uniform_BKS: Tensor) -> Tensor:
        """int64 [B, K, S]: the tokens of the slots, -1 behind an end and where there is no slot."""
        size = self.schedule.size
        token_BKS = torch.full((*slot_BK.shape, size), -1)
        hidden_BKH, going_BK = first_BKH, slot_BK >= 0
        thread_BK = torch.arange(slot_BK.shape[1]).expand(slot_BK.shape)
        for number in range(size):
            token_BK = self.draw(hidden_BKH, going_BK, uniform_BKS[:, : slot_BK.shape[1], number], step, number)
            token_BKS[..., number] = token_BK
            position_BK = self.positions(slot_BK.clamp(min=0), number)
            places = Places.written(token_BK.clamp(min=0), position_BK, thread_BK, step, self.limit(), going_BK)
            going_BK = going_BK & ~torch.isin(token_BK, self.end_ids)
            if number + 1 == size or not bool(going_BK.any()):
                self.pending = places  # its keys and values are computed in the next step's plan
                break
            hidden_BKH = self.forward(places)
        return token_BKS

    def draw(self, hidden_BKH: Tensor, going_BK: Tensor, uniform_BK: Tensor, step: int, number: int) -> Tensor:
        """int64 [B, K]: tokens where `going_BK`, -1 elsewhere. Their log-probabilities are added to the step's."""
        device, law = self.network.device, self.laws.tokens
        hidden_NH, uniform_N = hidden_BKH[going_BK.to(device)], uniform_BK[going_BK].to(device)
        rows = max(LOGITS // self.network.model.get_output_embeddings().weight.shape[0], 1)
        tokens, logps, supports = [], [], []
        for piece_NH, piece_N in zip(hidden_NH.split(rows), uniform_N.split(rows), strict=True):
            token_N, logp_N, support_NV = categorical.sample(self.network.logits(piece_NH), law, uniform_N=piece_N)
            tokens.append(token_N.cpu())
            logps.append(logp_N.double().cpu())
            if support_NV is not None:
                supports.append(tiled.Support.pack(support_NV).to("cpu"))
        token_BK = torch.full(going_BK.shape, -1)
        token_BK[going_BK] = torch.cat(tokens)
        row_N, slot_N = going_BK.nonzero(as_tuple=True)
        self.logp_B.index_add_(0, row_N, torch.cat(logps))
        if supports:
            place_N = (row_N * self.schedule.steps + step) * self.schedule.widest + slot_N
            self.drawn.append((place_N * self.schedule.size + number, tiled.Support.concatenate(supports)))
        return token_BK

    def close(self, slot_BK: Tensor, token_BKS: Tensor) -> None:
        """Take what a step wrote into the state."""
        row_N, number_N = (slot_BK >= 0).nonzero(as_tuple=True)
        self.written_BN[row_N, slot_BK[row_N, number_N]] = True
        position_BKS = slot_BK[..., None] * self.schedule.size + torch.arange(self.schedule.size)
        is_end_BKS = torch.isin(token_BKS, self.end_ids)
        first_B = torch.where(is_end_BKS, position_BKS, self.schedule.positions).flatten(1).amin(-1)
        self.end_B = torch.minimum(self.end_B, first_B)

    # ------------------------------------------------------------------ the network's input

    def positions(self, slot: Tensor, number: Tensor | int) -> Tensor:
        """Positions in the text of some slots' tokens: of prompt and answer. Rows first, any shape behind."""
        return self.start_B.view(-1, *[1] * (slot.dim() - 1)) + slot * self.schedule.size + number

    def limit(self) -> Tensor:
        """int64 [B]: the last position that is seen of earlier steps: that of the end."""
        return self.start_B + self.end_B

    def forward(self, added: Places) -> Tensor:
        """[B, W, H]: the network's output at the places added, which join the cache."""
        self.places = self.places.beside(added)
        return self.network.hidden(self.places, added.token_RW.shape[1], self.cache)

    def forget(self, count: int) -> None:
        """Take the last `count` places out of the cache."""
        length = self.places.token_RW.shape[1] - count
        self.places = self.places.first(length)
        trim(self.cache, length)

    def support(self) -> tiled.Support | None:
        """What each token could be, in the order of [B, T, K, S]."""
        if not self.laws.tokens.truncates:
            return None
        place_M = torch.cat([place_N for place_N, _ in self.drawn])
        together = tiled.Support.concatenate([support for _, support in self.drawn])
        return together.take(place_M.argsort())
