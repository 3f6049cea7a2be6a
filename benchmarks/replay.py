"""Replay: reverse four digits after a poor warm start, with a reward that is nearly always 0; equal numbers of sampled completions.

The warm start is supervised training on a teacher that draws 80 % of its digits at random; it writes the right answer about once in
250. Most groups of eight are then all wrong and teach nothing, which is where experience of the past can help. Every arm goes on
from it on the same 64 prompts until it has sampled as many completions as the others; `two passes` reuses every batch once more,
the usual way to take more from a sample. Exact match is measured on 256 other prompts, and is not timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table
from scipy import stats

from benchmarks import harness
from relgrad.core.types import Example
from relgrad.networks.causal import load as causal
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import Task, digits
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings

TITLE = "replay: reverse four digits, reward 1 for the exact answer, equal numbers of sampled completions"
SETTINGS: dict[str, dict[str, Any]] = {
    "fresh": {},
    "two passes": {"num_iterations": 2},
    "groups": {"replay": {"keep": "groups", "share": 0.5, "max_age": 8}},
    "solutions": {"replay": {"keep": "solutions", "share": 0.5, "max_age": 64}},
}
ARMS = tuple(SETTINGS)
PROMPTS, HELD_OUT, WARM_UP_STEPS = 64, 256, 300
BUDGET, EVERY = 12_800, 1_600
"""Completions to sample, and after how many of them the policy is judged."""


def exact(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the completion is the answer."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def task() -> Task:
    settings = digits.Settings(length=4, train_size=5000, held_out_size=HELD_OUT, noise=0.8)
    return digits.load(settings, seed=0)


def policy(model: str) -> Any:
    return autoregressive.build(autoregressive.Settings(model=model, max_completion_length=5), seed=0)


def warm_start() -> str:
    """The folder of the model that every arm goes on from, made once and cached."""
    folder = causal.cache_dir() / "benchmarks" / "replay-warm-start"
    if not (folder / "model.safetensors").is_file():
        model = policy("tiny")
        examples = [Example(p, str(p.columns["completion"])) for p in task().train]
        loop = Sft(model, examples, SftSettings(steps=WARM_UP_STEPS, batch_size=64, learning_rate=2e-3))
        for _ in range(WARM_UP_STEPS):
            loop.update()
        model.save(folder)
    return str(folder)


def judged(model: Any, chosen: Task) -> float:
    """Exact match on the held-out prompts, two completions each, always by the same random numbers."""
    rollouts = model.sample(chosen.validation, 2, torch.Generator().manual_seed(0))
    answers = [chosen.validation[group].columns["answer"] for group in rollouts.group_B.tolist()]
    return statistics.fmean(exact([output.text for output in rollouts.outputs], answers))


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """The held-out curve [(sampled completions, exact match)], flat groups, and seconds of training."""
    chosen, model = task(), policy(warm_start())
    settings = GrpoSettings(num_prompts=8, num_generations=8, learning_rate=5e-4, steps=100_000, **SETTINGS[arm])
    rewards = RewardSet([NamedReward("exact", exact)], 60)
    loop = Grpo(model, chosen.train[:PROMPTS], rewards, PolicyLoss(), settings, seed=options["seed"])
    curve, flat, seconds = [(0, judged(model, chosen))], [], 0.0
    while loop.cursor * 8 < options["budget"]:
        began = time.process_time()
        metrics = loop.update().metrics
        seconds += time.process_time() - began
        if "frac_reward_zero_std" in metrics:
            flat.append(metrics["frac_reward_zero_std"])
        if loop.cursor * 8 >= curve[-1][0] + EVERY:
            curve.append((loop.cursor * 8 // EVERY * EVERY, judged(model, chosen)))
    return {"curve": curve, "steps": loop.step, "frac_reward_zero_std": flat, "cpu_s": seconds, "wall_s": seconds}


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One thread: the curves do not depend on it."""
    say(f"warm start: {warm_start()}")
    cases = [{"seed": seed, "budget": 3_200 if quick else BUDGET} for seed in range(1 if quick else 5)]
    return harness.take_turns("replay", cases, threads=[1], repeats=1, say=say)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """Exact match by sampled completions, and the difference to `fresh` with a t interval over seeds."""
    table = Table(title="held-out exact match, mean over seeds (lowest - highest)")
    of_arm = {arm: sorted((r for r in records if r["arm"] == arm), key=lambda r: r["seed"]) for arm in ARMS}
    last = [row["curve"][-1][1] for row in of_arm["fresh"]]
    points = [point for point in range(len(of_arm["fresh"][0]["curve"])) if point % 2 == 0]
    table.add_column("completions")
    for point in points:
        table.add_column(str(of_arm["fresh"][0]["curve"][point][0]), justify="right")
    for column in ("difference to fresh, 95 %", "seeds above", "flat groups", "updates", "cpu-s"):
        table.add_column(column, justify="right")
    for arm, rows in of_arm.items():
        cells = []
        for point in points:
            values = [row["curve"][point][1] for row in rows]
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f} - {max(values):.3f})")
        differences = [row["curve"][-1][1] - base for row, base in zip(rows, last, strict=True)]
        table.add_row(
            arm,
            *cells,
            "" if arm == "fresh" else interval(differences),
            "" if arm == "fresh" else f"{sum(d > 0 for d in differences)} of {len(differences)}",
            f"{statistics.fmean(statistics.fmean(row['frac_reward_zero_std']) for row in rows):.2f}",
            f"{statistics.fmean(row['steps'] for row in rows):.0f}",
            f"{harness.median(rows, 'cpu_s'):.0f}",
        )
    return [table]


def interval(differences: Sequence[float]) -> str:
    """The mean over seeds with Student's 95 % interval; the mean alone of one seed."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
