"""What the sandbox costs: a program that does nothing, a call to the parent, a program with its tests; beside a bare interpreter.

The arms take turns within one process. Times are wall milliseconds of one evaluation, from the request to the end of the last
process, so they need a quiet machine; the load average is kept with them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
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
NOTHING = Job("def main(): return None")
ASKING = Job(f"def main():\n    for _ in range({CALLS}): call('f', x=1)", calls={"f": lambda x: x})
TESTED = (Program("def f(x): return x"), Checks("", ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"]))


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record an arm, with every turn's time; and one of many evaluations side by side."""
    sandbox = Sandbox(SandboxSettings())
    arms: dict[str, Callable[[], object]] = {
        "bare interpreter": lambda: _bare(sandbox),
        "program that does nothing": lambda: _value(sandbox, NOTHING),
        f"program with {CALLS} calls": lambda: _value(sandbox, ASKING),
        "program and three tests, apart": lambda: judge(sandbox, *TESTED),
    }
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    load = os.getloadavg()[0]
    for turn in range(1 + (5 if quick else TURNS)):
        for arm, work in arms.items():
            began = time.perf_counter()
            work()
            if turn:  # the first one warms up
                times[arm].append(1e3 * (time.perf_counter() - began))
    records = [{"arm": arm, "ms": values, "load_before": load} for arm, values in times.items()]
    records.append({"arm": "side by side", "ms": [_many(sandbox)], "cores": os.cpu_count(), "load_before": load})
    for record in records:
        say(f"{record['arm']}: {statistics.median(record['ms']):.1f} ms")
    return records


def _bare(sandbox: Sandbox) -> None:
    subprocess.run([sandbox.containment.interpreter.path, *OPTIONS, "-c", "import json"], check=True)


def _value(sandbox: Sandbox, job: Job) -> None:
    outcome = sandbox.run(job)
    if outcome.error is not None:
        raise RelgradError(f"benchmark sandbox: {outcome.error}: {outcome.message}")


def _many(sandbox: Sandbox, count: int = 100) -> float:
    """Milliseconds of one of many programs that do nothing, one a core at a time."""
    began = time.perf_counter()
    sandbox.run_all([NOTHING] * count)
    return 1e3 * (time.perf_counter() - began) / count


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    medians = {record["arm"]: statistics.median(record["ms"]) for record in records}
    table = Table(title="milliseconds, medians and half the range of the middle half")
    for column in ("evaluation", "ms", "±"):
        table.add_column(column, justify="right")
    for record in records:
        quarter = statistics.quantiles(record["ms"], n=4) if len(record["ms"]) > 1 else [0, 0, 0]
        table.add_row(record["arm"], f"{medians[record['arm']]:.1f}", f"{(quarter[2] - quarter[0]) / 2:.1f}")
    one = (medians[f"program with {CALLS} calls"] - medians["program that does nothing"]) / CALLS
    table.add_row("one call", f"{one:.3f}", "")
    return [table]
