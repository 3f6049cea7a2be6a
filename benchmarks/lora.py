"""(b) A whole GRPO step of SmolLM2-135M with LoRA: 4 prompts of 256 tokens x 8 completions of 48 tokens.

TRL takes its step in four micro-batches of one group: all 32 rows at once need more than 21 GB there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from benchmarks import models, steps
from benchmarks.systems import Job
from benchmarks.tables import step_tables
from relgrad.networks.causal import load as causal

TITLE = "(b) SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 4 prompts x 256 tokens x 8 generations x 48 tokens, float32"
TARGETS = {"trl": 3.5, "trl-tuned": 3.5}
ARMS = steps.ARMS
REPEATS = 1
STEPS = 1


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    folder = causal.resolve("smollm2-135m-instruct")
    job = Job(
        model=folder,
        prompts=models.text_prompts(folder, 16, 256),
        reward=models.reward,
        num_prompts=4,
        num_generations=8,
        length=48,
        steps=steps.WARM_UP + options["steps"],
        learning_rate=1e-4,
        lora=True,
        exact_length=True,
        trl_rows=8,
    )
    return steps.measure(arm, job)


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    return steps.run("lora", quick=quick, threads=threads, repeats=REPEATS, timed=STEPS, say=say)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    return step_tables(records, ARMS, steps.PHASES, TARGETS)
