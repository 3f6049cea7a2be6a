"""An update of a policy that unmasks: its steps together, against one step of one text at a time.

    together    all texts are written side by side; steps of many texts, at different times, are scored in one pass
    one by one  every text is written alone, every step scored alone, with a backward pass of its own

Both ways are relgrad's functions, and before a clock starts they must give one gradient of the same texts. `forms` has the network
of the recipe `forms-unmasking` (88,032 parameters): 4 prompts of 70 characters x 8 completions of 76 positions in 8 steps; `quick`
that of `unmasking-quick`: 8 prompts of 5 x 8 completions of 6 positions in 3 steps. The arms take turns in one process; `cpu` is
process time, which other load hardly touches.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Prompt, Rollouts
from relgrad.policies import unmasking
from relgrad.policies.unmasking.policy import UnmaskingPolicy

TITLE = "an update of a policy that unmasks: steps together, against one by one"
ARMS = ("together", "one by one")
TARGET, TOLERANCE, BUDGET = 4.0, 1e-4, 8192
TURNS = 3


class Job(NamedTuple):
    """Sizes of one update."""

    prompts: int = 4
    each: int = 8
    prompt: int = 70
    positions: int = 76
    steps: int = 8
    width: int = 48
    layers: int = 3


JOBS = {"forms": Job(), "quick": Job(8, 8, 5, 6, 3, 64, 2)}


def policy_of(job: Job) -> UnmaskingPolicy:
    """A random network of these sizes."""
    network = {"block_size": job.prompt + job.positions, "n_layer": job.layers, "n_head": 4, "n_embd": job.width}
    settings = unmasking.Settings(
        network=network,
        max_completion_length=job.positions,
        steps=job.steps,
        law={"order": "plackett_luce"},
        device="cpu",
    )
    return unmasking.build(settings, seed=0)


def prompts_of(job: Job) -> list[Prompt]:
    return [Prompt(chr(ord("a") + number) * job.prompt, id=number) for number in range(job.prompts)]


def backward(policy: UnmaskingPolicy, rollouts: Rollouts, budget: int) -> None:
    """The gradient of the mean log-probability, chunk by chunk of so many tokens; a budget of 1 is a step by itself."""
    for cells_N2 in policy.plan(rollouts, torch.arange(rollouts.rows), budget):
        (policy.score(rollouts, cells_N2).logp_N.sum() / rollouts.rows).backward()


def gradient(policy: UnmaskingPolicy, rollouts: Rollouts, budget: int) -> Tensor:
    """The same, as one vector; gradients are cleared."""
    backward(policy, rollouts, budget)
    return taken(policy)


def taken(policy: UnmaskingPolicy) -> Tensor:
    parts = []
    for _, parameter in policy.parameters():
        parts.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return torch.cat([part.flatten() for part in parts])


def gate(job: Job) -> float:
    """How far the gradients of both ways are apart, over their norm."""
    policy = policy_of(job)
    rollouts = policy.sample(prompts_of(job), 2, generator(0, "gate"))
    whole_P, single_P = gradient(policy, rollouts, BUDGET), gradient(policy, rollouts, 1)
    return float((whole_P - single_P).norm() / whole_P.norm())


def together(policy: UnmaskingPolicy, job: Job) -> None:
    """One update."""
    backward(policy, policy.sample(prompts_of(job), job.each, generator(0, "together")), BUDGET)
    taken(policy)


def one_by_one(policy: UnmaskingPolicy, job: Job) -> None:
    """One update."""
    for prompt in prompts_of(job):
        for number in range(job.each):
            backward(policy, policy.sample([prompt], 1, generator(0, "one", prompt.id, number)), 1)
    taken(policy)


def run(
    *, quick: bool, threads: Sequence[int], say: Callable[[str], None], jobs: Mapping[str, Job] = JOBS
) -> list[dict[str, Any]]:
    """One record a job, arm and number of threads, with every turn's times. Raises RelgradError where the ways differ."""
    records, before = list[dict[str, Any]](), torch.get_num_threads()
    for name, job in jobs.items():
        for count in threads:
            torch.set_num_threads(count)
            records += [{"job": name, "threads": count, **record} for record in measure(job, 1 if quick else TURNS)]
            for record in records[-len(ARMS) :]:
                say(f"{name}, {record['arm']}, {count} threads: {statistics.median(record['cpu']):.2f} cpu-s")
    torch.set_num_threads(before)
    return records


def measure(job: Job, turns: int) -> list[dict[str, Any]]:
    """A record an arm, which take turns; another one before warms up. Raises RelgradError where the ways differ."""
    if (apart := gate(job)) > TOLERANCE:
        raise RelgradError(f"benchmark unmasking: the gradients of both ways are {apart:.2g} of their norm apart")
    policy, load = policy_of(job), os.getloadavg()[0]
    records: list[dict[str, Any]] = [{"arm": arm, "load_before": load, "wall": [], "cpu": []} for arm in ARMS]
    for turn in range(turns + 1):
        for record, work in zip(records, (together, one_by_one), strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            work(policy, job)
            if turn:
                record["wall"].append(time.perf_counter() - wall)
                record["cpu"].append(time.process_time() - cpu)
    return records


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """Medians, and how many times as long the arm takes."""
    table = Table(title=f"seconds of an update, medians of {len(records[0]['cpu'])} turns")
    for column in ("job", "threads", "steps", "cpu-s", "wall s", "cpu / together", "target"):
        table.add_column(column, justify="right")
    first: dict[tuple[str, int], float] = {}
    for record in records:
        cpu = statistics.median(record["cpu"])
        ratio = cpu / first.setdefault((record["job"], record["threads"]), cpu)
        met = "" if record["arm"] == ARMS[0] else f"{TARGET:g} {'met' if ratio >= TARGET else 'missed'}"
        wall = statistics.median(record["wall"])
        cells = record["job"], str(record["threads"]), record["arm"], f"{cpu:.2f}", f"{wall:.2f}", f"{ratio:.2f}", met
        table.add_row(*cells)
    return [table]
