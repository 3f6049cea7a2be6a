"""(a) A whole GRPO step of a tiny Qwen3: 8 prompts of 21 tokens x 8 completions of 64 tokens, full-parameter training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from benchmarks import models, steps
from benchmarks.systems import Job
from benchmarks.tables import step_tables

TITLE = "(a) tiny Qwen3, 1.38 M parameters, 8 prompts x 21 tokens x 8 generations x 64 tokens, float32, all weights"
TARGETS = {"trl": 2.4, "trl-tuned": 2.0}
ARMS = steps.ARMS
REPEATS = 3
STEPS = 10


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    job = Job(
        model=str(models.tiny_qwen3()),
        prompts=models.word_prompts(64, 21),
        reward=models.reward,
        num_prompts=8,
        num_generations=8,
        length=64,
        steps=steps.WARM_UP + options["steps"],
        learning_rate=1e-4,
        exact_length=True,
    )
    return steps.measure(arm, job)


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    return steps.run("tiny", quick=quick, threads=threads, repeats=REPEATS, timed=STEPS, say=say)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    return step_tables(records, ARMS, steps.PHASES, TARGETS)
