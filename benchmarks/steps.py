"""Times whole GRPO steps (sample, score, backward, optimizer) of one Job in one system; benchmarks a and b are Jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.harness import Meter, count_flops, matmul_share, matmul_speed, peak_mb, resident_mb, take_turns
from benchmarks.systems import Job, relgrad_loop, trl_trainer
from relgrad.core import allocator

ARMS = ("relgrad", "trl", "trl-tuned")
PHASES = ("sample", "score", "backward", "optimizer", "rest")
KEEPS_MEMORY = ("relgrad", "trl-tuned")
"""relgrad raises glibc's thresholds when a run starts (core/allocator.py); TRL as shipped does not, tuned it does."""
WARM_UP = 1
"""Steps before the clock starts; in the first of them the FLOPs are counted."""


def measure(arm: str, job: Job) -> dict[str, Any]:
    """Seconds per step (median machine speed measured before and after), phases, FLOPs per step, peak memory."""
    if arm in KEEPS_MEMORY:
        allocator.keep_freed_memory()
    meter, timed = Meter(), job.steps - WARM_UP
    before = matmul_speed()
    meter.wrap(torch.autograd, "backward", "backward")
    run = _relgrad if arm == "relgrad" else _trl
    result = run(job, meter, tuned=arm == "trl-tuned")
    after = matmul_speed()
    speed = {key: (before[key] + after[key]) / 2 for key in before}
    found = result | speed | {"peak_mb": peak_mb(), "torch_threads": torch.get_num_threads(), "timed_steps": timed}
    found["matmul_share"] = matmul_share(found, found["torch_threads"])
    return found


def _relgrad(job: Job, meter: Meter, *, tuned: bool) -> dict[str, Any]:
    loop = relgrad_loop(job)
    meter.wrap(loop.policy, "sample", "sample")
    meter.wrap(loop.policy, "score", "score")
    meter.wrap(loop.optimizer, "step", "optimizer")
    built = resident_mb()
    with count_flops() as flops:
        record = loop.update()
    for _ in range(WARM_UP - 1):
        loop.update()
    meter.start()
    for _ in range(job.steps - WARM_UP):
        record = loop.update()
    tokens = record.metrics["completions/total_tokens"]
    skipped = record.metrics["frac_reward_zero_std"]
    return _checked(job, tokens, skipped) | meter.per_step(job.steps - WARM_UP) | _more(flops, built)


def _trl(job: Job, meter: Meter, *, tuned: bool) -> dict[str, Any]:
    from transformers import TrainerCallback

    found: dict[str, Any] = {}
    flops = count_flops()

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            meter.wrap(trainer.optimizer, "step", "optimizer")
            meter.wrap(trainer.accelerator, "clip_grad_norm_", "optimizer")

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                flops.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                flops.__exit__(None, None, None)
            if state.global_step == WARM_UP:
                meter.start()
            if state.global_step == job.steps:
                found.update(meter.per_step(job.steps - WARM_UP))

    trainer = trl_trainer(job, tuned=tuned, callbacks=[Clock()])
    meter.wrap(trainer, "_generate_single_turn", "sample")
    meter.wrap(trainer, "_compute_loss", "score")
    built = resident_mb()
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry][-1]
    tokens = last["completions/mean_length"] * job.num_prompts * job.num_generations
    return _checked(job, tokens, last["frac_reward_zero_std"]) | found | _more(flops, built)


def _more(flops: Any, built: float) -> dict[str, Any]:
    return {"gflop": flops.get_total_flops() / 1e9, "built_mb": built}


def _checked(job: Job, tokens: float, flat_groups: float) -> dict[str, Any]:
    """Both systems must have done the same work: every completion of full length, no group skipped."""
    expected = job.num_prompts * job.num_generations * job.length
    if round(tokens) != expected or flat_groups:
        raise AssertionError(f"{tokens} completion tokens (expected {expected}), share of groups skipped {flat_groups}")
    return {"completion_tokens": expected}


def run(
    module: str, *, quick: bool, threads: Sequence[int], repeats: int, timed: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All arms of a steps benchmark in turn; `--quick` takes two steps once."""
    cases = [{"steps": min(2, timed) if quick else timed}]
    return take_turns(module, cases, threads=threads, repeats=1 if quick else repeats, say=say)
