"""Whole GRPO steps (sample, reward, score, backward, optimizer) on one device, of relgrad and of TRL: one Job, float32, LoRA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import harness, systems
from benchmarks.gpu_device import Peak, clocked, matmul_speed, wait
from benchmarks.systems import Job
from relgrad.core.errors import RelgradError

ARMS = ("relgrad", "trl")
WARM_UP = 1
"""Steps before the clock starts; in the first of them the FLOPs are counted."""


def measured(arm: str, job: Job, device: str) -> dict[str, Any]:
    """Seconds and FLOPs per step, completion tokens per second, peak memory. Raises RelgradError where other work was done."""
    before, peak = matmul_speed(device, "float32"), Peak(device)
    figures = (_relgrad if arm == "relgrad" else _trl)(job, device)
    peak_gb = peak.gb()
    expected = job.num_prompts * job.num_generations * job.length
    if round(figures["tokens"]) != expected:
        raise RelgradError(
            f"{arm} trained on {figures['tokens']} tokens instead of {expected}: nothing can be compared"
        )
    speed = (before + matmul_speed(device, "float32")) / 2
    return figures | {
        "tokens_per_s": expected / figures["seconds"],
        "dtype": "float32",
        "gemm_gflops": speed,
        "matmul_share": figures["gflop"] / figures["seconds"] / speed,
        "peak_gb": peak_gb,
    }


def _relgrad(job: Job, device: str) -> dict[str, Any]:
    loop = systems.relgrad_loop(job)
    if loop.policy.device.type != device:
        raise RelgradError(
            f"relgrad's loop runs on {loop.policy.device.type!r}, not on {device!r}: it takes CUDA where there is a CUDA device"
        )
    with harness.count_flops() as flops:
        record = loop.update()
    timed = job.steps - WARM_UP
    seconds = clocked(lambda: [loop.update() for _ in range(timed)], device) / timed
    tokens = record.metrics["completions/total_tokens"]
    return {"seconds": seconds, "tokens": tokens, "gflop": flops.get_total_flops() / 1e9}


def _trl(job: Job, device: str) -> dict[str, Any]:
    from transformers import TrainerCallback

    flops, moment = harness.count_flops(), {}

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                flops.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                flops.__exit__(None, None, None)
            wait(device)
            moment[state.global_step] = time.perf_counter()

    with trl_on(device):
        trainer = systems.trl_trainer(job, tuned=False, callbacks=[Clock()])
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry][-1]
    return {
        "seconds": (moment[job.steps] - moment[WARM_UP]) / (job.steps - WARM_UP),
        "tokens": last["completions/mean_length"] * job.num_prompts * job.num_generations,
        "gflop": flops.get_total_flops() / 1e9,
    }


@contextmanager
def trl_on(device: str) -> Iterator[None]:
    """`systems.trl_trainer` as it stands, which trains on a CPU, builds a trainer for this device inside."""
    trl = systems.import_trl()
    as_shipped = trl.GRPOConfig

    def on_device(**settings: Any) -> Any:
        return as_shipped(**{**settings, "use_cpu": device == "cpu"})

    trl.GRPOConfig = on_device
    try:
        yield
    finally:
        trl.GRPOConfig = as_shipped
