"""ReFusion's plan, verify and infill, slowly: one slot after the other, every forward pass over everything, no cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Slowly:
    """`context` has (token, position, which entries of the context it sees, itself included)."""

    model: Any
    never: list[int]
    mask_id: int
    size: int
    slot_threshold: float
    token_threshold: float
    ends: set[int]
    context: list[tuple[int, int, list[int]]] = field(default_factory=list)

    def logits(self, added: list[tuple[int, int]], sight: list[int]) -> Tensor:
        """[len(added), V] at (token, position) that see the context's entries `sight` and one another, causally."""
        whole = [*self.context, *((t, p, [*sight, *range(len(self.context), len(self.context) + n + 1)])
                                  for n, (t, p) in enumerate(added))]  # fmt: skip
        mask = torch.full((1, 1, len(whole), len(whole)), torch.finfo(torch.float32).min)
        for row, (_, _, seen) in enumerate(whole):
            mask[0, 0, row, seen] = 0.0
        ids = torch.tensor([[t for t, _, _ in whole]])
        positions = torch.tensor([[p for _, p, _ in whole]])
        out = self.model(ids, position_ids=positions, attention_mask=mask).logits[0, len(self.context) :]
        out[:, self.never] = -torch.inf
        return torch.as_tensor(out)

    def keep(self, tokens: list[tuple[int, int]], sight: list[int]) -> list[int]:
        first = len(self.context)
        for n, (token, position) in enumerate(tokens):
            self.context.append((token, position, [*sight, *range(first, first + n + 1)]))
        return list(range(first, len(self.context)))


@torch.no_grad()
def decode(slow: Slowly, prompt: list[int], slots: int, serial: int) -> list[int]:
    slow.keep([(token, place) for place, token in enumerate(prompt)], [])
    sight, begin, each, ended = list(range(len(prompt))), len(prompt), slots // serial, False
    for block in range(serial):
        left = list(range(block * each, (block + 1) * each))
        while left:
            written, end = one_round(slow, left, sight, begin)
            left = [slot for slot in left if slot not in written and (end is None or slot < end)]
            ended |= end is not None
        if ended:
            break
    answer = sorted((slow.context[n][1], slow.context[n][0]) for n in sight[len(prompt) :])
    tokens = [token for _, token in answer]
    cut = next((n + 1 for n, token in enumerate(tokens) if token in slow.ends), len(tokens))
    return tokens[:cut]


def one_round(slow: Slowly, left: list[int], sight: list[int], begin: int) -> tuple[list[int], int | None]:
    size = slow.size
    places = [begin + slot * size + n for slot in left for n in range(size)]
    p_LV = slow.logits([(slow.mask_id, place) for place in places], sight).softmax(-1)
    draft, sure = p_LV.argmax(-1).tolist(), p_LV.amax(-1).tolist()
    firsts = sure[::size]
    chosen = [n for n, p in enumerate(firsts) if p > slow.slot_threshold] or [
        max(range(len(left)), key=lambda n: firsts[n])
    ]
    drafts = [(draft[n * size + k], places[n * size + k]) for n in chosen for k in range(size)]
    read = slow.logits(drafts, sight).softmax(-1)
    stands = [k % size == 0 or float(read[k - 1, drafts[k][0]]) > slow.token_threshold for k in range(len(drafts))]
    prefix = 0
    while prefix < len(stands) and stands[prefix]:
        prefix += 1
    ends = [k for k in range(prefix) if drafts[k][0] in slow.ends]
    if ends:
        sight += slow.keep(drafts[: ends[0] + 1], list(sight))
        count = ends[0] // size + 1
        return [left[n] for n in chosen[:count]], left[chosen[count - 1]]
    if prefix >= size:
        whole = prefix // size
        sight += slow.keep(drafts[: whole * size], list(sight))
        return [left[n] for n in chosen[:whole]], None
    return infill(slow, [left[n] for n in chosen], [drafts[i * size : (i + 1) * size] for i in range(len(chosen))],
                  [stands[i * size : (i + 1) * size] for i in range(len(chosen))], sight)  # fmt: skip


def infill(
    slow: Slowly, slots: list[int], drafts: list[list[tuple[int, int]]], stands: list[list[bool]], sight: list[int]
) -> tuple[list[int], int | None]:
    """Slot by slot and round by round; an end cuts the list of slots behind it, in whatever round it is found."""
    size = slow.size
    standing = [next((k for k, s in enumerate(row) if not s), size) for row in stands]
    live, end = len(slots), None
    while any(count < size for count in standing[:live]):
        for i in range(live):
            known, row = standing[i], drafts[i]
            if known < size:
                shown = [(t if k < known else slow.mask_id, p) for k, (t, p) in enumerate(row)]
                again = slow.logits(shown, sight).argmax(-1).tolist()
                row = [(t if k < known else again[k], p) for k, (t, p) in enumerate(row)]
                read = slow.logits(row, sight).softmax(-1)
                count = known + 1
                while count < size and float(read[count - 1, row[count][0]]) > slow.token_threshold:
                    count += 1
                drafts[i], standing[i] = row, count
        found = [i for i in range(live) if any(t in slow.ends for t, _ in drafts[i][: standing[i]])]
        if found:
            end, live = found[0], found[0] + 1
            standing[end] = size
    before = list(sight)
    for i in range(live):
        row = drafts[i]
        if i == end:
            row = row[: next(k for k, (t, _) in enumerate(row) if t in slow.ends) + 1]
        sight += slow.keep(row, before)
    return slots[:live], None if end is None else slots[end]
