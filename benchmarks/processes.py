"""Two processes that share a job, against two independent jobs side by side: optimizer steps per second of the machine.

Two processes of one thread each do both in turn (apart, together, apart, together ...). Apart, each runs the whole job for itself,
and their steps per second are added: as much as the machine can do without any talk. Together they share every step. The ratio is
what sharing costs: waiting for each other, gathering tables, adding gradients, and what each computes alike (optimizer, loss).
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from benchmarks import harness
from relgrad.core.errors import RelgradError

TITLE = "two processes of one thread: one job shared, against two independent jobs side by side"
JOBS = {"tiny": 4, "fill": 10, "flow": 1}
"""Benchmark (a), the fill-in step and the flow update (from a uniform source, 4 prompts), and steps in one turn of each."""
TARGET = 0.85
TURNS = 3


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record a job, with the steps per second of every turn."""
    records = []
    for job in JOBS:
        records.append({"job": job, "arm": "relgrad", **pair(job, 1 if quick else TURNS)})
        say(f"{job}: {records[-1]}")
    return records


def pair(job: str, turns: int) -> dict[str, Any]:
    """What two processes measured. Raises RelgradError where one of them failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.processes", job, str(turns)]
    processes = [
        subprocess.Popen(
            command, cwd=harness.ROOT, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate() for process in processes]
    lines = [line for line in outputs[0][0].splitlines() if line.startswith(harness.MARK)]
    if any(process.returncode for process in processes) or not lines:
        raise RelgradError(f"benchmark processes, {job}:\n{outputs[0][1][-3000:]}\n{outputs[1][1][-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1][len(harness.MARK) :])
    return found


def measure(job: str, turns: int) -> None:
    """In each of the two processes: both arms in turn; the first process prints steps per second of all turns."""
    from relgrad.core import ranks

    met = ranks.start()
    loops = {"apart": loop_of(job, ranks.ALONE), "together": loop_of(job, met)}
    rates: dict[str, list[float]] = {arm: [] for arm in loops}
    for turn in range(turns + 1):
        for arm, loop in loops.items():
            met.wait()
            began = time.perf_counter()
            for _ in range(JOBS[job]):
                loop.update()
            own = JOBS[job] / (time.perf_counter() - began)
            everybodys = met.gather(own)
            if turn:  # the first one warms up
                rates[arm].append(sum(everybodys) if arm == "apart" else min(everybodys))
    if met.first:
        print(harness.MARK + json.dumps(rates), flush=True)
    met.wait()


def loop_of(job: str, met: Any) -> Any:
    """The loop of one of the other benchmarks, run by these processes."""
    from benchmarks import fill, flow, models, systems

    if job == "fill":
        chosen = fill.Job()
        return fill.relgrad_loop(chosen, chosen.reward("cheap").of_group, ranks=met, steps=10_000)
    if job == "flow":
        update = flow.JOBS["uniform"]._replace(num_prompts=4)
        return flow.relgrad_loop(update, update.policy(), 10_000, met)
    whole = systems.Job(
        model=str(models.tiny_qwen3()), prompts=models.word_prompts(64, 21), reward=models.reward,
        num_prompts=8, num_generations=8, length=64, steps=10_000, learning_rate=1e-4, exact_length=True,
    )  # fmt: skip
    return systems.relgrad_loop(whole, met)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    table = Table(title=f"optimizer steps per second, medians of {len(records[0]['apart'])} turns; target {TARGET}")
    for column in ("job", "two jobs apart", "one job together", "together / apart (lowest - highest turn)"):
        table.add_column(column, justify="right")
    for record in records:
        ratios = [t / a for t, a in zip(record["together"], record["apart"], strict=True)]
        table.add_row(
            record["job"],
            f"{statistics.median(record['apart']):.3f}",
            f"{statistics.median(record['together']):.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        )
    return [table]


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
