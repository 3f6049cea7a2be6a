"""What the sandbox costs: a program that does nothing, a call to the parent, a program with its tests; beside a bare interpreter.

The arms take turns within one process. `cpu` is process time of this process and of everything it started, which other load hardly
touches; `wall` is from the request to the end of the last process, and needs a quiet machine. The load average is kept with them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rich.table import Table

from relgrad.core.errors import RelgradError
from relgrad.environments.benchmarks.code import Checks, judge
from relgrad.environments.benchmarks.completion import Program
from relgrad.environments.sandbox.bubblewrap import OPTIONS
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Job, Sandbox

TITLE = "the sandbox: milliseconds of an evaluation"
CALLS = 100
TURNS = 30
SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER: processes whose parent has ended become this process's children."""
NOTHING = Job("def main(): return None")
ASKING = Job(f"def main():\n    for _ in range({CALLS}): call('f', x=1)", calls={"f": lambda x: x})
TESTED = (Program("def f(x): return x"), Checks("", ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"]))


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record an arm, with every turn's times."""
    sandbox = Sandbox(SandboxSettings())
    arms: dict[str, Callable[[], object]] = {
        "bare interpreter": lambda: _bare(sandbox),
        "program that does nothing": lambda: _value(sandbox, NOTHING),
        f"program with {CALLS} calls": lambda: _value(sandbox, ASKING),
        "program and three tests, apart": lambda: judge(sandbox, *TESTED),
    }
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    load = os.getloadavg()[0]
    records: dict[str, dict[str, Any]] = {arm: {"arm": arm, "wall": [], "cpu": [], "load_before": load} for arm in arms}
    for turn in range(1 + (5 if quick else TURNS)):
        for arm, work in arms.items():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            work()
            if turn:  # the first one warms up
                records[arm]["wall"].append(1e3 * (time.perf_counter() - wall))
                records[arm]["cpu"].append(1e3 * (_cpu_seconds() - cpu))
    for record in records.values():
        say(f"{record['arm']}: {statistics.median(record['cpu']):.1f} cpu-ms")
    return list(records.values())


def _cpu_seconds() -> float:
    """Of this process, and of all that it started, directly or not; waits for what has not ended."""
    with suppress(ChildProcessError):
        while True:
            os.wait()
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _bare(sandbox: Sandbox) -> None:
    subprocess.run([sandbox.containment.interpreter.path, *OPTIONS, "-c", "import json"], check=True)


def _value(sandbox: Sandbox, job: Job) -> None:
    outcome = sandbox.run(job)
    if outcome.error is not None:
        raise RelgradError(f"benchmark sandbox: {outcome.error}: {outcome.message}")


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    table = Table(
        title=f"milliseconds, medians of {len(records[0]['cpu'])} turns and half the range of the middle half"
    )
    for column in ("evaluation", "cpu-ms", "±", "wall ms", "±"):
        table.add_column(column, justify="right")
    for record in records:
        cells = (cell for clock in ("cpu", "wall") for cell in _cells(record[clock]))
        table.add_row(record["arm"], *cells)
    each = {record["arm"]: record for record in records}
    asking, nothing = each[f"program with {CALLS} calls"], each["program that does nothing"]
    for clock in ("cpu", "wall"):
        one = (statistics.median(asking[clock]) - statistics.median(nothing[clock])) / CALLS
        table.add_row(f"one call, {clock}", f"{one:.2f}", "", "", "")
    return [table]


def _cells(values: Sequence[float]) -> tuple[str, str]:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.1f}", f"{(high - low) / 2:.1f}"
