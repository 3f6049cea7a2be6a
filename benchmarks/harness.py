"""What every benchmark shares: fresh processes in turn, clocks by phase, peak memory, the machine's own matmul speed.

A benchmark is a module with

    ARMS                              names of the contenders, in the order in which they take turns
    measure(arm, options) -> dict     one measurement, run in a process of its own; plain numbers, printed as JSON
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.runs import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
MARK = "RESULT "
PACKAGES = (*environment.PACKAGES, "trl", "accelerate")


# ---------------------------------------------------------------------- inside the measured process


class Meter:
    """Wall and process (all threads' CPU) seconds per phase; what no phase claims is "rest"."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._began = (0.0, 0.0)

    def start(self) -> None:
        """Forget everything so far: the warm-up is over."""
        self.wall.clear()
        self.cpu.clear()
        self._began = (time.perf_counter(), time.process_time())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.process_time() - cpu

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Count every call of `owner.name` as `phase`; phases must not be nested."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return original(*args, **kwargs)

        setattr(owner, name, timed)

    def per_step(self, steps: int) -> dict[str, Any]:
        """Seconds per step since `start()`: total, and by phase."""
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {
            "wall_s": wall / steps,
            "cpu_s": cpu / steps,
            "phases_wall_s": {k: v / steps for k, v in self.wall.items()}
            | {"rest": (wall - sum(self.wall.values())) / steps},
            "phases_cpu_s": {k: v / steps for k, v in self.cpu.items()}
            | {"rest": (cpu - sum(self.cpu.values())) / steps},
        }


def matmul_speed(seconds: float = 0.7, size: int = 1024) -> dict[str, float]:
    """Float32 GEMM speed, right now and with this process's threads: GFLOP per wall and per process second."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    out = a @ b
    wall, cpu, products = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        torch.mm(a, b, out=out)
        products += 1
    work = 2 * size**3 * products / 1e9
    return {
        "gemm_gflops_wall": work / (time.perf_counter() - wall),
        "gemm_gflops_cpu": work / (time.process_time() - cpu),
    }


def matmul_share(found: Mapping[str, float], threads: int) -> float:
    """Matrix-product FLOPs done per second, as a share of `matmul_speed`: by process time for one thread, else by wall."""
    clock = "cpu" if threads == 1 else "wall"
    return found["gflop"] / found[f"{clock}_s"] / found[f"gemm_gflops_{clock}"]


def count_flops() -> Any:
    """A context manager whose `get_total_flops()` are the matrix-product FLOPs executed inside (attention too)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    # shapes of the arguments come in; these three are what torch's own table lacks for a CPU
    extra = {
        torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=extra)


def resident_mb() -> float:
    """Memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def reset_peak() -> None:
    """Start a new measurement of the peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory this process has held since it began or since `reset_peak()` (Linux: VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RelgradError("the kernel does not report VmHWM: peak memory is measured on Linux only")


def child(module: str, arm: str, options: str) -> None:
    """Entry of the measured process: one measurement, as one marked line of JSON."""
    found = importlib.import_module(f"benchmarks.{module}").measure(arm, json.loads(options))
    print(MARK + json.dumps(found), flush=True)


# ---------------------------------------------------------------------- in the parent


def measure_apart(module: str, arm: str, threads: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement in a fresh process with `threads` OpenMP threads. Raises RelgradError when it fails."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "benchmarks.run", "child", module, arm, json.dumps(dict(options))]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise RelgradError(
            f"benchmark {module}, {arm}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return {"arm": arm, "threads": threads, "load_before": load, **options, **json.loads(lines[-1][len(MARK) :])}


def take_turns(
    module: str,
    cases: Sequence[Mapping[str, Any]],
    *,
    threads: Sequence[int],
    repeats: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For every number of threads and case: the module's arms one after the other, `repeats` times (A, B, A, B, ...)."""
    arms = importlib.import_module(f"benchmarks.{module}").ARMS
    found = []
    for count in threads:
        for case in cases:
            for repeat in range(repeats):
                for arm in arms:
                    record = measure_apart(module, arm, count, case) | {"repeat": repeat}
                    found.append(record)
                    took = f"{record['cpu_s']:.3f} cpu-s, {record['wall_s']:.3f} s" if "cpu_s" in record else ""
                    say(
                        f"{module} {arm}, {count} thread{'s' if count > 1 else ''}, {dict(case)}, repeat {repeat + 1}: {took}"
                    )
    return found


def median(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in records)


def spread(records: Sequence[Mapping[str, Any]], key: str) -> float:
    """Half the range over the median: 0.03 reads as plus or minus 3 %."""
    values = [r[key] for r in records]
    return (max(values) - min(values)) / 2 / statistics.median(values)


def save(name: str, records: Sequence[Mapping[str, Any]], extra: Mapping[str, Any] | None = None) -> Path:
    """Write benchmarks/results/<date>-<name>.json with everything needed to judge the figures."""
    RESULTS.mkdir(exist_ok=True)
    about = environment.capture() | {"packages": environment.versions(PACKAGES)}
    file = RESULTS / f"{datetime.datetime.now():%Y-%m-%d-%H%M}-{name}.json"
    file.write_text(
        json.dumps({"benchmark": name, **about, **(extra or {}), "records": list(records)}, indent=1) + "\n"
    )
    return file
