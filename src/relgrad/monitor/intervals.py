"""Intervals in words: what they are over, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

ONE = {"prompts": "prompt", "families": "family", "seeds": "seed"}
"""What intervals are over, and what one of these is called."""


def counted(units: int | None, over: str) -> str:
    """ "128 prompts", "1 family", or "prompts" where nobody counted."""
    if units is None:
        return over
    return f"{units:,} {ONE.get(over, over) if units == 1 else over}"


def ends(low: Any, high: Any, write: Callable[[float], str], *, over: str = "prompts", units: int | None = None) -> str:
    """ "[0.61, 0.68] over 128 prompts"; of too few units "no interval, 1 prompt". `write` writes a number."""
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in (low, high)):
        return f"no interval, {counted(units, over)}"
    return f"[{write(low)}, {write(high)}] over {counted(units, over)}"


def ends_of(record: Mapping[str, Any], write: Callable[[float], str], prefix: str = "") -> str:
    """Of a line of evaluations.jsonl: its score's interval, or with the prefix "difference_" its difference's."""
    over, units = record.get("over", "prompts"), record.get("units", record.get("n"))
    return ends(record.get(f"{prefix}low"), record.get(f"{prefix}high"), write, over=over, units=units)
