"""How many cores this process may use: those it is bound to, and no more than its control group's share of time."""

from __future__ import annotations

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def cores(groups: Path = GROUPS) -> int:
    """At least 1. Where a quota of processor time is set (a container's, say), as many cores as it keeps busy."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota(groups))))


def _quota(groups: Path) -> float:
    """Cores' worth of time by the kernel's files, of either version, where this container's own group is mounted; inf: no limit."""
    try:
        match (groups / "cpu.max").read_text().split():
            case [allowed, every] if allowed != "max":
                return int(allowed) / int(every)
    except (OSError, ValueError):
        pass
    try:
        quota, period = (int((groups / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
