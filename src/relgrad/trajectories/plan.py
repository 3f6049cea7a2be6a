"""Which decisions are scored together: as many as fit the work that one call may have."""

from __future__ import annotations

from torch import Tensor


def in_chunks(cells_N2: Tensor, cost_N: Tensor, budget: int) -> list[Tensor]:
    """The cells [N, 2] in order, cut into chunks whose costs (tokens) add up to at most `budget`; a single cell may cost more."""
    chunks: list[list[int]] = []
    used = 0
    for number, cost in enumerate(cost_N.tolist()):
        if not chunks or used + cost > budget:
            chunks.append([])
            used = 0
        chunks[-1].append(number)
        used += cost
    return [cells_N2[chunk] for chunk in chunks]
