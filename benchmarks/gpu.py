"""`python -m benchmarks.run gpu`: relgrad on the CUDA device that is there, beside transformers and TRL, in under eight minutes.

    matmul    the device's own speed in bfloat16 and float32 products of square matrices
    decode    8 prompts of 128 tokens x 8 completions of 256 tokens, bfloat16 (gpu_decode.py)
    step      a GRPO step with LoRA: 8 prompts of 128 tokens x 8 completions of 128 tokens, float32 (gpu_steps.py)
    flow      FS-DFM 1.3B: sampling, and one update with its peak memory (flow_large.py)

Decoding and steps are those of SmolLM2-135M-Instruct and of a randomly initialised network of Qwen3-0.6B's shape, whose folders are
made first (prepare). Every section is a process of its own with a time limit; one that fails, or runs out of time or memory, is
recorded with the reason. The results file is written after each of them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import flow_large, gpu_decode, gpu_device, gpu_steps, harness, models
from benchmarks.systems import Job
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.networks.causal import load as causal
from relgrad.runs import environment

PROMPT_TOKENS, STEP_TOKENS = 128, 128
TIMED_STEPS = 2
QWEN3_WORDS = 151_936
QWEN3_SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
MODELS = ("smollm2-135m", "qwen3-0.6b-shape")


class Section(NamedTuple):
    """One process: what part, of which model ("" for none), by whom, and the seconds it may take."""

    part: str
    model: str
    arm: str
    limit_s: float


DECODE_LIMITS = {"relgrad": 20, "generate": 28, "generate, static": 36, "generate_batch": 26}
STEP_LIMITS = {"relgrad": 22, "trl": 30}
SECTIONS = (
    Section("matmul", "", "bfloat16", 10),
    Section("matmul", "", "float32", 10),
    Section("prepare", MODELS[0], "weights", 18),
    Section("prepare", MODELS[1], "weights", 40),
    *(Section("decode", model, arm, limit) for model in MODELS for arm, limit in DECODE_LIMITS.items()),
    *(Section("step", model, arm, limit) for model in MODELS for arm, limit in STEP_LIMITS.items()),
    *(Section("flow", "fs-dfm-1.3b", arm, 37) for arm in flow_large.ARMS),
)

# ---------------------------------------------------------------------- inside the process of a section


def measure(part: str, options: dict[str, Any]) -> dict[str, Any]:
    """One section in this process; `options` names its model, its arm and the device."""
    arm, device, model = options["arm"], options["device"], options["model"]
    if part == "matmul":
        return matmul(arm, device)
    if part == "flow":
        return flow(arm, flow_large.Large(device=device))
    folder = causal.resolve("smollm2-135m-instruct") if model == MODELS[0] else str(qwen3_folder())
    if part == "prepare":
        return {"folder": folder}
    prompts = prompts_of(model, folder, 16)
    if part == "decode":
        return gpu_decode.measured(arm, gpu_decode.Decode(folder, prompts[:8], device))
    return gpu_steps.measured(arm, step_job(folder, prompts), device)


def matmul(dtype: str, device: str) -> dict[str, Any]:
    """The device's own speed."""
    peak = gpu_device.Peak(device)
    return {"dtype": dtype, "gemm_gflops": gpu_device.matmul_speed(device, dtype, seconds=1.0), "peak_gb": peak.gb()}


def flow(arm: str, job: flow_large.Large) -> dict[str, Any]:
    """FS-DFM's sampling or update, in tokens written per second."""
    figures = flow_large.measured(arm, job, 1)
    return figures | {"dtype": "bfloat16", "tokens_per_s": figures["written_tokens"] / figures["seconds"]}


def step_job(folder: str, prompts: Sequence[Prompt]) -> Job:
    """The GRPO step of both systems."""
    return Job(
        model=folder,
        prompts=prompts,
        reward=models.reward,
        num_prompts=8,
        num_generations=8,
        length=STEP_TOKENS,
        steps=gpu_steps.WARM_UP + TIMED_STEPS,
        learning_rate=1e-4,
        lora=True,
        exact_length=True,
    )


def prompts_of(model: str, folder: str, count: int) -> list[Prompt]:
    """Prompts of PROMPT_TOKENS tokens for one of MODELS."""
    if model == MODELS[0]:
        return models.text_prompts(folder, count, PROMPT_TOKENS)
    return models.word_prompts(count, PROMPT_TOKENS)


def qwen3_folder(words: int = QWEN3_WORDS, shape: Mapping[str, Any] = QWEN3_SHAPE, name: str = MODELS[1]) -> Path:
    """A random network of Qwen3's architecture with so many vocabulary entries; written once, whole or not at all."""
    folder = causal.cache_dir() / "benchmarks" / name
    if not folder.is_dir():
        unfinished = folder.with_name(f"{name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        vocabulary = [f"w{i}" for i in range(words - len(models.SPECIAL))]
        models.qwen3(unfinished.name, vocabulary, **shape).rename(folder)
    return folder


# ---------------------------------------------------------------------- in the parent


def main() -> None:
    """Measure relgrad on the CUDA device, beside transformers and TRL; under eight minutes."""
    console = Console(width=170)
    try:
        if not torch.cuda.is_available():
            raise RelgradError(
                f"the benchmark gpu measures a CUDA device, and torch {torch.__version__} sees none: run it on a machine with an "
                "NVIDIA GPU and a torch built for CUDA; the other benchmarks run on a CPU"
            )
        about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        file = harness.RESULTS / f"{datetime.datetime.now():%Y-%m-%d-%H%M}-gpu.json"
        records = run(SECTIONS, "cuda", file, about, console.log)
        for table in tables(records):
            console.print(table)
        console.print(f"figures: {file}")
    except RelgradError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from None


def run(
    sections: Sequence[Section], device: str, file: Path, about: Mapping[str, Any], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One record a section, in order; `file` is written after each."""
    file.parent.mkdir(exist_ok=True)
    began = datetime.datetime.now().isoformat(timespec="seconds")
    head = environment.capture() | {"packages": environment.versions(harness.PACKAGES), "date": began, **about}
    records: list[dict[str, Any]] = []
    for section in sections:
        records.append(apart(section, device))
        file.write_text(json.dumps({"benchmark": "gpu", **head, "records": records}, indent=1) + "\n", encoding="utf-8")
        said = records[-1].get("reason", "done")
        say(f"{section.part} {section.model} {section.arm}, {records[-1]['took_s']:.0f} s: {said}")
    return records


def apart(section: Section, device: str) -> dict[str, Any]:
    """A section's figures from a process of its own, or the `reason` why there are none."""
    options = {"model": section.model, "arm": section.arm, "device": device}
    command = [sys.executable, "-m", "benchmarks.run", "child", "gpu", section.part, json.dumps(options)]
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    variables = {"CUDA_VISIBLE_DEVICES": first_gpu, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"PYTHONWARNINGS": "ignore"}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        # a session of its own, so that what the process has started ends with it
        process = subprocess.Popen(
            command, cwd=harness.ROOT, env=os.environ | variables, stdout=out, stderr=errors, start_new_session=True
        )
        try:
            process.wait(section.limit_s)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        errors.seek(0)
        figures = outcome(out.read(), errors.read(), process.returncode, section.limit_s if not ended else None)
    return {"part": section.part, **options, "took_s": time.perf_counter() - began, **figures}


def outcome(out: str, errors: str, code: int, limit_s: float | None) -> dict[str, Any]:
    """The figures a section printed, or the `reason` for having none; `limit_s` is its limit where it ran out of it."""
    lines = [line for line in out.splitlines() if line.startswith(harness.MARK)]
    if lines:
        figures: dict[str, Any] = json.loads(lines[-1][len(harness.MARK) :])
        return figures
    last = ([line.strip() for line in errors.splitlines() if line.strip()] or ["no message"])[-1]
    if limit_s is not None:
        return {"reason": f"out of time: not done after {limit_s:g} s (last message: {last[:200]})"}
    if "OutOfMemoryError" in errors:
        return {"reason": f"out of memory: {last[:400]}"}
    return {"reason": f"exit {code}: {last[:400]}", "stderr": errors[-4000:]}


def tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One row a section; where there are no figures, why."""
    table = Table(title=f"one {records[0]['device']} device; peak memory as torch allocates it")
    for column in ("", "model", "", "numbers", "s", "tokens / s", "TFLOP / s", "of matmul speed", "peak GB"):
        table.add_column(column, justify="right")
    table.add_column("why not", overflow="fold")
    for record in records:
        table.add_row(record["part"], record["model"], record["arm"], *cells(record), record.get("reason", ""))
    return [table]


def cells(record: Mapping[str, Any]) -> list[str]:
    """The figures of one row; a dash where there are none."""
    speed = record.get("gemm_gflops") if record["part"] == "matmul" else None
    if "gflop" in record:
        speed = record["gflop"] / record["seconds"]
    target = ""
    if record["part"] == "flow" and "peak_gb" in record:
        target = " met" if record["peak_gb"] <= flow_large.MEMORY_TARGET_GB else " missed"
    return [
        record.get("dtype", "-"),
        f"{record['seconds']:.3f}" if "seconds" in record else "-",
        f"{record['tokens_per_s']:,.0f}" if "tokens_per_s" in record else "-",
        f"{speed / 1e3:.2f}" if speed is not None else "-",
        f"{record['matmul_share']:.1%}" if "matmul_share" in record else "-",
        f"{record['peak_gb']:.2f}{target}" if "peak_gb" in record else "-",
    ]
