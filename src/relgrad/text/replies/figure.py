"""The split as a picture: engagement and length of the replies, part by part."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.text.replies.rows import Row
from relgrad.text.replies.splitting import engagement

INSTALL = "pip install 'relgrad[replies]'"


def require() -> Any:
    """matplotlib's Figure. Raises RelgradError with the line that installs it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RelgradError(f"split: the picture needs matplotlib; {INSTALL}, or --no-figure") from None
    return Figure


def draw(parts: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write the picture as PNG: histograms of engagement (as densities) and box plots of characters."""
    shown = {part: rows for part, rows in parts.items() if rows}
    figure = require()(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = {part: [e for e in map(engagement, rows) if e == e] for part, rows in shown.items()}
    every = sorted(value for own in values.values() for value in own)
    if every:
        top = every[int(0.99 * (len(every) - 1))] or 1.0
        for part, own in values.items():
            clipped = [min(value, top) for value in own]
            left.hist(clipped, bins=50, range=(0, top), density=True, histtype="step", label=f"{part} ({len(own):,})")
        left.legend()
    left.set(xlabel="likes of the reply / likes of the post (99th percentile and above together)", ylabel="density")
    right.boxplot([[len(row["reply"]) for row in rows] for rows in shown.values()], tick_labels=list(shown))
    right.set(ylabel="characters of the reply")
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    path.write_bytes(content.getvalue())
