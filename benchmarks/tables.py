"""Tables that two benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.harness import median, spread


def clock(threads: int) -> str:
    """Process seconds are what one thread costs, whoever else uses the machine; with more, spinning threads count too."""
    return "cpu_s" if threads == 1 else "wall_s"


def threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def step_tables(
    records: Sequence[Mapping[str, Any]], arms: Sequence[str], phases: Sequence[str], targets: Mapping[str, float]
) -> list[Table]:
    """One table per number of threads: time per step with its phases, memory, share of matmul speed, ratio to relgrad."""
    found = []
    for count in sorted({r["threads"] for r in records}):
        key = clock(count)
        unit = "cpu-s" if key == "cpu_s" else "s"
        chosen = [r for r in records if r["threads"] == count]
        own = median([r for r in chosen if r["arm"] == "relgrad"], key)
        table = Table(title=f"{threads(count)}: {unit} per step (medians; ± is half the range)")
        columns = [
            "",
            "step",
            "±",
            "wall s",
            *phases,
            "GFLOP",
            "of matmul speed",
            "peak MB",
            "relgrad is faster by",
            "target",
        ]
        for column in columns:
            table.add_column(column, justify="right")
        for arm in arms:
            rows = [r for r in chosen if r["arm"] == arm]
            parts = [[r[f"phases_{key}"].get(phase, 0.0) for r in rows] for phase in phases]
            ratio = median(rows, key) / own
            target = targets.get(arm)
            table.add_row(
                arm,
                f"{median(rows, key):.3f}",
                f"{spread(rows, key):.0%}",
                f"{median(rows, 'wall_s'):.3f}",
                *(f"{sorted(values)[len(values) // 2]:.3f}" for values in parts),
                f"{median(rows, 'gflop'):.1f}",
                f"{median(rows, 'matmul_share'):.0%}",
                f"{median(rows, 'peak_mb'):.0f}",
                f"{ratio:.2f}",
                "" if target is None else f"{target} {'met' if ratio >= target else 'missed'}",
            )
        found.append(table)
    return found
