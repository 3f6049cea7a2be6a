r"""The probability path of discrete flow matching, at the positions that are generated (Gat et al. 2024, arXiv:2407.15595).

    x_t^i = x_1^i with probability kappa_t, else x_0^i,    x_0^i uniform over the source's ids,    i editable
    x_t^i = x_1^i                                                                                  i given

The prompt is clean at every t, exactly as in generation, where it never changes. A mask source is uniform over one id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.laws.ctmc import Kernel, Law
from relgrad.laws.schedule import Scheduler

At = tuple[Tensor, Tensor]
"""(row_N, column_N): chosen positions of [B, L]."""
Network = Callable[[Tensor, Tensor, Tensor | None, At], Tensor]
"""(ids_BL, time_B, step_B or None, at) -> logits [N, V] at the positions `at`, -inf for tokens that are never drawn.

The losses ask about whole rows, perhaps not about all of a batch's, and `at` names every editable position of them. Behind the last
one of a row there is padding only (answer.py), so that `at` also tells what may be attended to.
"""
Uniforms = Callable[[], Tensor]
"""() -> [N, 2] fresh uniform numbers in [0, 1) for N positions, on the CPU."""


class Noised(NamedTuple):
    """Rows on their way: `x_BL` at `time_B`; and of their N editable positions (row by row), which they are, what stands
    there now, and what should."""

    x_BL: Tensor
    time_B: Tensor
    at: At
    current_N: Tensor
    label_N: Tensor

    def rows(self, chosen_B: Tensor) -> Noised:
        """The chosen rows (bool [B])."""
        kept_N = chosen_B[self.at[0]]
        renumbered_B = chosen_B.cumsum(0) - 1
        at = (renumbered_B[self.at[0][kept_N]], self.at[1][kept_N])
        return Noised(self.x_BL[chosen_B], self.time_B[chosen_B], at, self.current_N[kept_N], self.label_N[kept_N])

    def moved(self, current_N: Tensor) -> Noised:
        """The same rows with other tokens at the editable positions."""
        return self._replace(x_BL=self.x_BL.index_put(self.at, current_N), current_N=current_N)


@dataclass(frozen=True)
class Path:
    """The scheduler, and the ids over which the source is uniform: the ordinary ones, or the mask's alone."""

    scheduler: Scheduler
    source_K: Tensor

    def __post_init__(self) -> None:
        if self.source_K.dim() != 1 or not len(self.source_K):
            raise RelgradError(
                f"source_K has shape {tuple(self.source_K.shape)}; give the ids of the source, at least one"
            )

    @property
    def masked(self) -> bool:
        """Whether the source is a mask: then a position never changes once it is unmasked."""
        return len(self.source_K) == 1

    def law(self, kernel: Kernel) -> Law:
        """The law of a step along this path."""
        return Law(kernel, "mask", int(self.source_K[0])) if self.masked else Law(kernel, "uniform")

    def noise(self, ids_BL: Tensor, editable_BL: Tensor, time_B: Tensor, draws: Draws) -> Noised:
        """Draw x_t at the times given (float64 [B]), with two random numbers for every editable position.

        `draws` are those of the rows, or of prompts whose rows stand together, equally many of each.

        Raises RelgradError where a row has no editable position.
        """
        empty = (~editable_BL.any(-1)).nonzero()[:, 0].tolist()
        if empty:
            raise RelgradError(
                f"no editable position in row {', '.join(map(str, empty[:5]))} of {len(ids_BL)}: there is nothing to generate "
                "after the prompt. Shorten the prompt or give the answer more room"
            )
        device = ids_BL.device
        row_N, column_N = editable_BL.nonzero(as_tuple=True)
        label_N = ids_BL[row_N, column_N]
        left_N = self.scheduler.left(time_B.to(device))[row_N]  # exactly 1 at t = 0 and exactly 0 at t = 1
        count_G = editable_BL.reshape(len(draws), -1).sum(-1)
        uniform_N2 = draws.rand_each(count_G.tolist(), 2, dtype=torch.float64)
        reached_N = uniform_N2[:, 0].to(device) >= left_N
        source_N = self.source_K[(uniform_N2[:, 1] * len(self.source_K)).long()].to(device)
        current_N = torch.where(reached_N, label_N, source_N)
        at = (row_N, column_N)
        return Noised(ids_BL.index_put(at, current_N), time_B.to(device), at, current_N, label_N)
