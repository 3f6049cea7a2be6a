"""Which slots a planning step may write, and how many: a function of what was written before it.

The answer is N slots of S positions, in serial blocks of equally many slots. A block's steps share its slots out evenly. Step t may
write the slots of its block that are not written yet and begin before the end, which is the first end of sequence among the tokens
written so far. What stands behind the end is no part of the text, and no later step sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """`slots` of `size` positions; step t writes up to `counts[t]` slots of block `blocks[t]`, of `serial` blocks."""

    slots: int
    size: int
    serial: int
    counts: tuple[int, ...]
    blocks: tuple[int, ...]

    @staticmethod
    def of(positions: int, size: int, serial: int, steps: int) -> Schedule:
        """Of `steps` steps, or as many as there are slots where those are fewer. Raises ValueError for what does not divide."""
        unit = size * serial
        if positions % unit:
            below = positions // unit * unit
            raise ValueError(
                f"max_completion_length={positions} is not a multiple of slot_size={size} times serial_num_blocks={serial}: take "
                + " or ".join(str(length) for length in (below, below + unit) if length)
            )
        if steps % serial:
            raise ValueError(
                f"{steps} steps cannot be shared out over serial_num_blocks={serial}: take a multiple of it"
            )
        slots = positions // size
        each, of_block = slots // serial, min(steps // serial, slots // serial)
        counts = [each * (step + 1) // of_block - each * step // of_block for step in range(of_block)]
        blocks = [block for block in range(serial) for _ in range(of_block)]
        return Schedule(slots, size, serial, tuple(counts * serial), tuple(blocks))

    @property
    def steps(self) -> int:
        return len(self.counts)

    @property
    def positions(self) -> int:
        return self.slots * self.size

    @property
    def widest(self) -> int:
        """K, the most slots of a step."""
        return max(self.counts)

    @cached_property
    def offered_TN(self) -> Tensor:
        """bool [T, N]: which slots belong to the block of each step."""
        block_N = torch.arange(self.slots) // (self.slots // self.serial)
        return torch.tensor(self.blocks)[:, None] == block_N

    def open(self, step: int, written_BN: Tensor, end_B: Tensor) -> Tensor:
        """bool [B, N]: the slots that step may write. `end_B` is the position of the end, `positions` where there is none."""
        begin_N = torch.arange(self.slots) * self.size
        return self.offered_TN[step] & ~written_BN & (begin_N < end_B[:, None])


def written_before(slot_BTK: Tensor, slots: int) -> Tensor:
    """bool [B, T, N]: the slots that were written before each step. `slot_BTK` are those of every step, -1 for none."""
    rows, steps, _ = slot_BTK.shape
    written_BTN = torch.zeros(rows, steps, slots + 1, dtype=torch.bool)
    written_BTN.scatter_(2, torch.where(slot_BTK < 0, slots, slot_BTK), True)
    after_BTN = written_BTN[..., :slots].cummax(1).values
    return torch.nn.functional.pad(after_BTN, (0, 0, 1, 0))[:, :-1]


def ends(slot_BTK: Tensor, is_end_BTKS: Tensor, positions: int) -> Tensor:
    """int64 [B, T + 1]: the end of the text as it is known before each step, and after the last: the first position that holds an
    end of sequence, `positions` where there is none."""
    size = is_end_BTKS.shape[-1]
    position_BTKS = slot_BTK[..., None] * size + torch.arange(size)
    first_BT = torch.where(is_end_BTKS, position_BTKS, positions).flatten(2).amin(-1)
    return torch.nn.functional.pad(first_BT, (1, 0), value=positions).cummin(1).values
