"""Generation on the shared prompt: one prefill per prompt, one cache of fixed size, rows retired as they finish.

A batch of G prompts x K completions is a grid of slots [G, K]. A prompt's keys and values are computed and stored once;
in every step the K rows of a group meet them in one matrix product (grid.py). A row that has ended goes on drawing until the
grid is looked at, and what it drew after its end is cut off: only a look asks the device for an answer, so that a GPU never
waits for the host in between. Once enough rows have ended, a look compacts the grid: finished groups go, and every group
keeps as many slots as the fullest one still needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.laws import categorical, tiled
from relgrad.networks.causal.grid import Grid, Prefill
from relgrad.networks.causal.lean_decoder import LeanDecoder
from relgrad.networks.causal.shared_prompt import Ragged, hidden_states

COMPACT_BELOW = 0.75
"""The grid is compacted when it can shrink to this share of its slots; copying the cache costs about one step."""
LOOK_EVERY = {"cpu": 1}
"""Steps between two looks at which rows have ended, by device. On a CPU a look costs nothing, and rows that have ended are
work until they go."""
LOOK_EVERY_ELSEWHERE = 16
"""An answer of an accelerator takes as long as several small operations, and stops it from working ahead; a row that
has ended costs at most this many tokens more."""


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

    @staticmethod
    def cut(token_BT: Tensor, logp_BT: Tensor, eos_ids: Tensor, support: tiled.Support | None = None) -> Generated:
        """Rows as they were drawn, each cut off after its first end-of-sequence token; 0 beyond that."""
        is_end_BT = _is_end(token_BT, eos_ids)
        ended_B = is_end_BT.any(1)
        length_B = torch.where(ended_B, is_end_BT.to(torch.int8).argmax(1) + 1, token_BT.shape[1])
        beyond_BT = torch.arange(token_BT.shape[1], device=token_BT.device) >= length_B[:, None]
        logp_BT = logp_BT.float().masked_fill(beyond_BT, 0.0)
        return Generated(token_BT.masked_fill(beyond_BT, 0), logp_BT, length_B, ended_B, support)

    def ordinary(self) -> Generated:
        """The same on the CPU, in tensors that a backward pass may keep (those of inference mode it may not)."""

        def copy(t: Tensor) -> Tensor:
            return t.clone() if t.device.type == "cpu" else t.to("cpu")

        with torch.inference_mode(False):
            support = self.support and tiled.Support(copy(self.support.offset_N1), copy(self.support.entry_M))
            return Generated(copy(self.token_BT), copy(self.logp_BT), copy(self.length_B), copy(self.ended_B), support)


class _Record:
    """What has been drawn so far, row by row; `looked` is the first step that no look has seen."""

    def __init__(self, rows: int, limit: int, eos_ids: Tensor) -> None:
        self.eos_ids, self.looked, self.steps = eos_ids, 0, 0
        self.token_TB = torch.zeros(limit, rows, dtype=torch.int64, device=eos_ids.device)
        self.logp_TB = torch.zeros(limit, rows, dtype=torch.float32, device=eos_ids.device)
        self._waiting: list[Tensor] = []
        self._packed: list[tuple[Tensor, tiled.Support]] = []

    def add(self, row_N: Tensor, token_N: Tensor, logp_N: Tensor, support_NV: Tensor | None) -> None:
        """Keep what the slots drew in this step."""
        self.token_TB[self.steps].index_copy_(0, row_N, token_N)
        self.logp_TB[self.steps].index_copy_(0, row_N, logp_N)
        if support_NV is not None:
            self._waiting.append(support_NV)
        self.steps += 1

    def look(self, row_N: Tensor, alive_N: Tensor) -> tuple[Tensor, list[int]]:
        """Which of the slots are still alive, given which were at the last look: as a tensor, and as numbers for the host."""
        new_TN = self.token_TB[self.looked : self.steps].index_select(1, row_N)
        alive_N = alive_N & ~_is_end(new_TN, self.eos_ids).any(0)
        *numbers, entries = torch.cat([alive_N.long(), self._entries().long()]).tolist()
        self._pack(row_N, entries)
        return alive_N, numbers

    def _entries(self) -> Tensor:
        """[1]: how many entries the supports that wait have together."""
        counts = [support_NV.sum() for support_NV in self._waiting]
        return torch.stack(counts).sum()[None] if counts else self.eos_ids.new_zeros(1)

    def _pack(self, row_N: Tensor, entries: int) -> None:
        """Keep the supports drawn since the last look, when the slots were the same, as lists of their entries."""
        if self._waiting:
            step_T1 = torch.arange(self.looked, self.steps, device=row_N.device)[:, None]
            cell_N = (row_N * len(self.token_TB) + step_T1).flatten()
            self._packed.append((cell_N, tiled.Support.pack(torch.cat(self._waiting), entries)))
            self._waiting = []
        self.looked = self.steps

    def finish(self, row_N: Tensor) -> Generated:
        """Everything drawn; `row_N` are the rows of the last step's slots."""
        if self._waiting:
            self._pack(row_N, int(self._entries()))
        out = Generated.cut(self.token_TB.T, self.logp_TB.T, self.eos_ids)
        if self._packed:
            # cells row by row and step by step, without those that a row drew after its end
            place_M = torch.empty(out.token_BT.numel(), dtype=torch.int64)
            cell_N = torch.cat([cells for cells, _ in self._packed]).cpu()
            place_M[cell_N] = torch.arange(len(cell_N))
            inside_BT = torch.arange(out.token_BT.shape[1]) < out.length_B.cpu()[:, None]
            out.support = (
                tiled.Support.concatenate([s for _, s in self._packed]).to("cpu").take(place_M[inside_BT.flatten()])
            )
        return out


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
    look_every: int | None = None,
) -> Generated:
    """Draw `per_prompt` completions for each prompt (int64 token ids) of at most `limit` tokens, with their log-probs.

    uniform_BT  [B, limit] uniform numbers: decision (b, t) uses entry (b, t), whatever else is in the batch
    eos_ids     every id that ends a row; drawing one is a decision of its own
    look_every  steps between two looks at which rows have ended; None is the device's own number
    """
    device, rows = prompts[0].device, len(prompts) * per_prompt
    look_every = look_every or LOOK_EVERY.get(device.type, LOOK_EVERY_ELSEWHERE)
    ragged = Ragged([len(p) for p in prompts], device)
    furthest = ragged.width + limit
    lean = LeanDecoder.of(decoder, limit - 1, furthest)
    head = _ready(head, copy=lean is not None)

    def run(token_N: Tensor, position_N: Tensor, layout: Prefill | Grid) -> Tensor:
        if lean is not None:
            return lean.step(token_N, position_N, layout)
        return hidden_states(decoder, token_N, position_N, layout)

    prefill = Prefill(ragged)
    hidden = run(torch.cat(list(prompts)), ragged.position.to(device), prefill)
    length_G = torch.tensor(ragged.lengths, device=device)
    logits = tiled.logits(hidden[length_G.cumsum(0) - 1], head).repeat_interleave(per_prompt, 0)

    record = _Record(rows, limit, eos_ids)
    grid = Grid(prefill, len(prompts), per_prompt, limit)
    position_N = length_G.repeat_interleave(per_prompt)
    row_N = torch.arange(rows, device=device)
    alive_N = torch.ones(rows, dtype=torch.bool, device=device)
    uniform_TB = uniform_BT.T.contiguous()
    for step in range(limit):
        uniform_N = uniform_TB[step].index_select(0, row_N)
        token_N, logp_N, support_NV = categorical.sample(logits, law, uniform_N=uniform_N)
        record.add(row_N, token_N, logp_N, support_NV)
        if step + 1 == limit:
            break
        if (step + 1) % look_every == 0:
            alive_N, numbers = record.look(row_N, alive_N)
            if not any(numbers):
                break
            kept = _compaction(numbers, grid.per_group)
            if kept is not None:
                group_G, slot_GK = (torch.tensor(chosen, device=device) for chosen in kept)
                slot_N = (group_G[:, None] * grid.per_group + slot_GK).flatten()
                grid.keep(group_G, slot_GK)
                alive_N, token_N, position_N, row_N = (t[slot_N] for t in (alive_N, token_N, position_N, row_N))
        grid.step = step
        logits = tiled.logits(run(token_N, position_N + step, grid), head)
    return record.finish(row_N)


def _ready(head: tiled.Head, *, copy: bool) -> tiled.Head:
    """On a CPU: in float32, in which it multiplies (laws/tiled.py), and, where a copy may be made, stored column by column, which
    products of few rows read half as fast again. Once, not in every step."""
    weight_VH = head.weight_VH.detach()
    if weight_VH.device.type == "cpu":
        weight_VH = weight_VH.to(torch.promote_types(weight_VH.dtype, torch.float32))
        weight_VH = weight_VH.T.contiguous().T if copy else weight_VH
    return head._replace(weight_VH=weight_VH)


def _is_end(token: Tensor, eos_ids: Tensor) -> Tensor:
    return (token[..., None] == eos_ids).any(-1)


def _compaction(alive: Sequence[int], per_group: int) -> tuple[list[int], list[list[int]]] | None:
    """(groups, their slots, numbered within the group) to keep when that shrinks the grid enough, else None.

    `alive` has an entry for every slot, group by group. Living slots come first, in their old order; dead ones fill groups that
    have fewer than the fullest.
    """
    rows = [alive[first : first + per_group] for first in range(0, len(alive), per_group)]
    groups = [number for number, row in enumerate(rows) if any(row)]
    fullest = max(sum(row) for row in rows)
    if len(groups) * fullest > COMPACT_BELOW * len(alive):
        return None
    living_first = [sorted(range(per_group), key=[not alive for alive in rows[group]].__getitem__) for group in groups]
    return groups, [order[:fullest] for order in living_first]
