"""(d) Learning: reverse five digits, both systems from one warm start, same prompts in the same order, equal settings.

The warm start is supervised training on a teacher that draws half of its digits at random. Held-out exact match is measured
every 10 steps by one sampler for both (relgrad's, at temperature 1, always the same random numbers) and is not timed.
Equal algorithms must tie: a tie is the result that shows both to be right.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks import harness, models
from benchmarks.systems import Job, relgrad_loop, trl_trainer
from relgrad.core.types import Example, Prompt
from relgrad.networks.causal import load as causal
from relgrad.policies import autoregressive
from relgrad.tasks import digits
from relgrad.training.sft import Sft, SftSettings

TITLE = "(d) learning: reverse five digits, reward 1 for the exact answer, 8 prompts x 8 generations, 200 steps"
ARMS = ("relgrad", "trl")
STEPS, EVERY, HELD_OUT = 200, 10, 512
RATES = (3e-4, 1e-3)
LEVELS = (0.5, 0.8, 0.9)
LENGTH = 6
WARM_UP_STEPS = 1500


def exact(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the completion is the answer."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def task() -> Any:
    return digits.load(digits.Settings(length=5, train_size=20_000, held_out_size=HELD_OUT, noise=0.5), seed=0)


def warm_start() -> Path:
    """The model both systems start from, made once and cached."""
    folder = causal.cache_dir() / "benchmarks" / "digits-warm-start"
    if (folder / "model.safetensors").is_file():
        return folder
    settings = autoregressive.Settings(model=str(models.digits_qwen3()), max_completion_length=LENGTH, engine="shared")
    policy = autoregressive.build(settings, seed=0)
    examples = [Example(p, p.columns["completion"]) for p in task().train]
    loop = Sft(policy, examples, SftSettings(steps=WARM_UP_STEPS, batch_size=64, learning_rate=1e-3))
    for _ in range(WARM_UP_STEPS):
        loop.update()
    policy.save(folder)
    return folder


class Judge:
    """Exact match on the held-out prompts, of any copy of the model: its weights are copied into one sampler."""

    def __init__(self, folder: Path) -> None:
        settings = autoregressive.Settings(model=str(folder), max_completion_length=LENGTH, engine="shared")
        self.policy = autoregressive.build(settings, seed=0)
        self.prompts = task().test
        self.curve: list[tuple[int, float]] = []
        self.wall = self.cpu = 0.0

    def __call__(self, step: int, model: torch.nn.Module) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.policy.causal_lm.load_state_dict(model.state_dict())
        rollouts = self.policy.sample(self.prompts, 1, torch.Generator().manual_seed(0))
        texts = [output.text for output in rollouts.outputs]
        score = statistics.fmean(exact(texts, [p.columns["answer"] for p in self.prompts]))
        self.curve.append((step, score))
        self.wall, self.cpu = self.wall + time.perf_counter() - wall, self.cpu + time.process_time() - cpu


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """The held-out curve [(step, exact match)], the share of groups without spread per step, and seconds per step."""
    folder = warm_start()
    train: Sequence[Prompt] = task().train
    job = Job(
        str(folder), train, exact, num_prompts=8, num_generations=8, length=LENGTH, steps=options["steps"],
        learning_rate=options["learning_rate"], seed=options["seed"],
    )  # fmt: skip
    judge = Judge(folder)
    judge(0, judge.policy.causal_lm)
    run = _relgrad if arm == "relgrad" else _trl
    meter = harness.Meter()
    flat = run(job, judge, meter)
    total = meter.per_step(1)
    return {
        "curve": judge.curve,
        "frac_reward_zero_std": flat,
        "wall_s": (total["wall_s"] - judge.wall) / job.steps,
        "cpu_s": (total["cpu_s"] - judge.cpu) / job.steps,
    }


def _relgrad(job: Job, judge: Judge, meter: harness.Meter) -> list[float]:
    loop, flat = relgrad_loop(job), []
    judge.wall = judge.cpu = 0.0
    meter.start()
    while loop.step < job.steps:
        flat.append(loop.update().metrics["frac_reward_zero_std"])
        if loop.step % EVERY == 0:
            judge(loop.step, loop.policy.causal_lm)
    return flat


def _trl(job: Job, judge: Judge, meter: harness.Meter) -> list[float]:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                judge(state.global_step, kwargs["model"])

    trainer = trl_trainer(job, tuned=False, callbacks=[Watch()])
    judge.wall = judge.cpu = 0.0
    meter.start()
    trainer.train()
    return [e["frac_reward_zero_std"] for e in trainer.state.log_history if "frac_reward_zero_std" in e]


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One thread: the curves do not depend on it. The warm start is made before anything is measured."""
    say(f"warm start: {warm_start()}")
    rates, seeds, steps = (RATES[:1], 1, 60) if quick else (RATES, 5, STEPS)
    cases = [{"learning_rate": rate, "seed": seed, "steps": steps} for rate in rates for seed in range(seeds)]
    return harness.take_turns("learning", cases, threads=[1], repeats=1, say=say)


def first_at(curve: Sequence[Sequence[float]], level: float) -> int | None:
    """The first measured step at which the curve reaches `level`, or None."""
    return next((int(step) for step, score in curve if score >= level), None)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    return [table for rate in sorted({r["learning_rate"] for r in records}) for table in _of_rate(records, rate)]


def _of_rate(records: Sequence[dict[str, Any]], rate: float) -> list[Table]:
    chosen = [r for r in records if r["learning_rate"] == rate]
    summary = Table(title=f"learning rate {rate:g}: steps to a held-out exact match, seed by seed")
    for column in ("", *(f">= {level}" for level in LEVELS), "final", "mean", "groups without spread", "cpu-s / step"):
        summary.add_column(column, justify="right")
    curves = Table(title=f"learning rate {rate:g}: mean held-out exact match (lowest - highest seed)")
    for column in ("step", *ARMS, "difference of means"):
        curves.add_column(column, justify="right")
    of_arm = {arm: [r for r in chosen if r["arm"] == arm] for arm in ARMS}
    for arm, rows in of_arm.items():
        finals = [r["curve"][-1][1] for r in rows]
        summary.add_row(
            arm,
            *(json.dumps([first_at(r["curve"], level) for r in rows]).replace("null", "-") for level in LEVELS),
            ", ".join(f"{value:.3f}" for value in finals),
            f"{statistics.fmean(finals):.3f}",
            f"{statistics.fmean(statistics.fmean(r['frac_reward_zero_std']) for r in rows):.2f}",
            f"{harness.median(rows, 'cpu_s'):.3f}",
        )
    for point, (step, _) in enumerate(of_arm["relgrad"][0]["curve"]):
        values = {arm: [r["curve"][point][1] for r in rows] for arm, rows in of_arm.items()}
        means = {arm: statistics.fmean(found) for arm, found in values.items()}
        cells = [f"{means[arm]:.3f} ({min(found):.3f} - {max(found):.3f})" for arm, found in values.items()]
        curves.add_row(str(step), *cells, f"{means['relgrad'] - means['trl']:+.3f}")
    return [summary, curves]
