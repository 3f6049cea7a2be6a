"""What `relgrad run RECIPE --dry-run` says beforehand, against what a process then takes: memory at the peak, and time of a step.

Every stage is measured in a process of its own, which first builds and trains the smallest network of its kind for a step, so that
libraries are loaded and their buffers made; what it holds then is its baseline. Memory is the highest resident size beyond the
baseline while the stage itself is built, draws and takes steps. Time is that of the steps after the first. The estimates are made
in the same process, before: by one layer's speed, and by two steps.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from benchmarks import harness
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.runs import estimate
from relgrad.runs.build import find_recipe, linked_rewards, load_task, resolve, with_epochs_counted
from relgrad.runs.recipe import load_recipe
from relgrad.stages.kind import Materials, kind_of
from relgrad.stages.settings import Stage

TITLE = "estimates before the launch, against memory and time"
STAGES: dict[str, tuple[str, int, list[str], list[str]]] = {
    "quick, sft": ("quick", 0, [], ["policy.model=tiny:32x1"]),
    "quick, grpo": ("quick", 1, [], ["policy.model=tiny:32x1"]),
    "fill-quick, sft": ("fill-quick", 0, [], ["policy.n_embd=8", "policy.n_layer=1"]),
    "fill-quick, grpo": ("fill-quick", 3, ["rewards=[{kind: hidden}]"], ["policy.n_embd=8", "policy.n_layer=1"]),
    "forms-flow-quick, sft": ("forms-flow-quick", 0, [], ["policy.network.hidden=8", "policy.network.blocks=1"]),
    "forms-flow-quick, grpo": ("forms-flow-quick", 1, [], ["policy.network.hidden=8", "policy.network.blocks=1"]),
    "unmasking-quick, sft": ("unmasking-quick", 0, [], ["policy.network.n_embd=8", "policy.network.n_layer=1"]),
    "unmasking-quick, grpo": ("unmasking-quick", 1, [], ["policy.network.n_embd=8", "policy.network.n_layer=1"]),
    "demo with 2 prompts a step, grpo": ("demo", 0, ["grpo.num_prompts=2"], []),
}
"""Recipe, stage, settings, and settings that make it small. A judge needs a stage before it, so the truth rewards in its place."""
SMALL = ["grpo.num_prompts=2", "grpo.num_generations=2", "sft.batch_size=2", "evaluation.num_generations=1"]
STEPS = 4


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record a stage."""
    records = []
    for name in list(STAGES)[: 2 if quick else None]:
        records.append(one(name))
        say(str(records[-1]))
    return records


def one(name: str) -> dict[str, Any]:
    """What a process of its own measured. Raises RelgradError where it failed."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.estimates", name], cwd=harness.ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    lines = [line for line in ended.stdout.splitlines() if line.startswith(harness.MARK)]
    if ended.returncode or not lines:
        raise RelgradError(f"{name}: {ended.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(lines[-1].removeprefix(harness.MARK))
    return record


# ---------------------------------------------------------------------- in the measured process


class Peak:
    """The highest resident size of this process while it is watched, looked at every 2 ms."""

    def __init__(self) -> None:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        statm = Path("/proc/self/statm")
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, int(statm.read_text().split()[1]) * 4096)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def stage_of(name: str, small: bool) -> Stage:
    recipe, number, settings, shrunk = STAGES[name]
    overrides = [f"stages.{number}.{s}" if s.startswith("rewards") else s for s in settings]
    if recipe == "demo":
        overrides = settings
    resolved = resolve(load_recipe(find_recipe(recipe), [*overrides, *(shrunk + SMALL if small else [])]))
    return with_epochs_counted(resolved.stages[number])


def trained(stage: Stage, steps: int) -> list[float]:
    """Seconds of the stage's first steps, after a few evaluated prompts were drawn."""
    task = load_task(stage)
    parts = kind_of(stage).build(stage, Materials(task, None, lambda c, timeout: linked_rewards(c, timeout, None)))
    parts.policy.sample(list(task.test[:16]), stage.evaluation.num_generations, generator(0, "benchmark"))
    took = []
    for _ in range(steps):
        started = time.perf_counter()
        parts.loop.update()
        took.append(time.perf_counter() - started)
    for rewards in {id(r): r for r in (parts.rewards, parts.judged_by) if r is not None}.values():
        rewards.close()
    return took


def measured(name: str) -> dict[str, Any]:
    """One record: estimates, then what was taken."""
    stage = stage_of(name, small=False)
    by_speed = estimate._stage(stage, measured=False)
    trained(stage_of(name, small=True), 1)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    baseline = psutil.Process().memory_info().rss
    with Peak() as peak:
        took = trained(stage, STEPS)
    assert by_speed.needs is not None
    return {
        "stage": name,
        "arm": "relgrad",
        "estimated_bytes": by_speed.needs.bytes,
        "measured_bytes": peak.bytes - baseline,
        "baseline_bytes": baseline,
        "by_layer_s": by_speed.step_seconds,
        "by_two_steps_s": took[1],
        "measured_s": sum(took[2:]) / len(took[2:]),
        "load": psutil.getloadavg()[0],
    }


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """Estimates beside measurements; what is off by more than a quarter is marked."""
    table = Table(title="estimates / measured; ! is off by more than 25 %")
    for column in ("stage", "memory MB", "measured", "", "step by a layer, s", "by two steps", "measured", "", "load"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for record in records:
        size, was = record["estimated_bytes"] / 1e6, record["measured_bytes"] / 1e6
        layer, two, step = record["by_layer_s"], record["by_two_steps_s"], record["measured_s"]
        table.add_row(
            record["stage"], f"{size:.1f}", f"{was:.1f}", off(size, was),
            f"{layer:.3f}{off(layer, step)}", f"{two:.3f}{off(two, step)}", f"{step:.3f}", "", f"{record['load']:.0f}",
        )  # fmt: skip
    return [table]


def off(estimated: float, was: float) -> str:
    """How far an estimate is off, in per cent."""
    share = estimated / was - 1 if was > 0 else float("nan")
    return f" {share:+.0%}{'' if abs(share) <= 0.25 else ' !'}"


if __name__ == "__main__":
    print(harness.MARK + json.dumps(measured(sys.argv[1])))
