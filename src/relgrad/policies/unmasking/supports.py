"""The tokens that could be drawn where something is truncated, recorded when a step is drawn and held fixed in every later score.

trace["support_first"]   int64 [B T + 1]; the supports of row b in step t are first[b T + t] .. first[b T + t + 1], one for every
                         position whose logits its score needs
trace["support_offset"], trace["support_index"]   these supports, as laws/tiled.py keeps them
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from relgrad.laws.tiled import Support


class Log:
    """Collects the supports of a batch of B rows over T steps, step by step."""

    def __init__(self, rows: int, steps: int) -> None:
        self.rows, self.steps = rows, steps
        self._cells: list[Tensor] = []
        self._parts: list[Support] = []

    def add(self, row_C: Tensor, step: int, support: Support) -> None:
        """The supports at C positions of these rows in one step; of a row in its order."""
        self._cells.append(row_C * self.steps + step)
        self._parts.append(support)

    def trace(self) -> dict[str, Tensor]:
        """See the module."""
        cell_M = torch.cat(self._cells)
        support = Support.concatenate(self._parts).take(cell_M.argsort(stable=True))
        count_N = torch.bincount(cell_M, minlength=self.rows * self.steps)
        return {
            "support_first": torch.nn.functional.pad(count_N.cumsum(0), (1, 0)),
            "support_offset": support.offset_N1,
            "support_index": support.entry_M,
        }


def recorded(trace: Mapping[str, Tensor], cells_N2: Tensor, steps: int) -> Support | None:
    """The supports of the cells (row, step) given, in their order; None where nothing was truncated."""
    if "support_first" not in trace:
        return None
    cell_N, first = cells_N2[:, 0] * steps + cells_N2[:, 1], trace["support_first"]
    count_N = first[cell_N + 1] - first[cell_N]
    before_N = count_N.cumsum(0) - count_N
    number_M = torch.arange(int(count_N.sum())) - before_N.repeat_interleave(count_N)
    everything = Support(trace["support_offset"], trace["support_index"])
    return everything.take(first[cell_N].repeat_interleave(count_N) + number_M)
