"""Tables of several parts put one below the other, and whether anything in them was scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import RewardTable


def stack(parts: Sequence[Tensor]) -> Tensor:
    """[B_i, T_i] one below the other, padded with zeros on the right to the widest."""
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])


def merge_tables(tables: Sequence[RewardTable], decisions: int) -> RewardTable:
    """The tables of several parts one below the other; scores per decision padded with NaN to so many decisions."""
    return RewardTable(
        tables[0].names,
        tables[0].weights_R,
        torch.cat([t.value_BR for t in tables]),
        tuple(p for t in tables for p in t.parts),
        tuple(w for t in tables for w in t.why),
        _merge_decisions(tables, decisions),
        next((t.trace for t in tables if t.trace), ""),
    )


def _merge_decisions(tables: Sequence[RewardTable], decisions: int) -> Tensor | None:
    if all(table.decision_BRT is None for table in tables):
        return None
    merged = []
    for table in tables:
        whole_BRT = table.value_BR.new_full((*table.value_BR.shape, decisions), math.nan)
        if table.decision_BRT is not None:
            whole_BRT[..., : table.decision_BRT.shape[-1]] = table.decision_BRT
        merged.append(whole_BRT)
    return torch.cat(merged)


def require_scored(tables: Sequence[RewardTable]) -> None:
    """Raise RelgradError where no reward of any weight scored anything: a mistake, and no bad luck."""
    value_BR = torch.cat([table.value_BR[:, table.counted_R] for table in tables])
    if len(value_BR) and bool(value_BR.isnan().all()):
        reason = next((why for table in tables for why in table.why if why), "no reason given")
        trace = next((f"\n{table.trace.rstrip()}" for table in tables if table.trace), "")
        raise RelgradError(f"none of {len(value_BR)} completions could be scored; the first: {reason}{trace}")
