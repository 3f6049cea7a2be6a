"""FS-DFM's 1.3B network with random weights on a CUDA device: sampling, and a Flow-GRPO update, as in recipes/fsdfm-1.3b.yaml.

The recipe's policy and `grpo` settings as they stand (bfloat16 weights, a float32 LoRA adapter, gradient checkpointing, the exact
KL to the frozen start), but for the weights, which are random, and the words: 50,257 made-up tokens. Prompts have 256 tokens, and
512 are written.

    rows x steps / s     Euler steps of one row, per second
    network tokens / s   tokens that went through the network to sample: rows x steps x (prompt + written)
    written tokens / s   rows x written
    of matmul speed      matrix-product FLOPs (attention too, recomputed blocks too), counted in an update of its own, per
                         second, as a share of a bfloat16 product of two 8,192 x 8,192 matrices on this device just before and after
    peak GB              torch's peak of allocated memory; openbrowser-ai quotes about 14 GB for policy and reference with LoRA
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from benchmarks import harness
from relgrad.core.types import Output, Prompt
from relgrad.policies import flow
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.build import find_recipe, resolve
from relgrad.runs.recipe import load_recipe
from relgrad.stages.grpo import policy_loss
from relgrad.training.grpo import Grpo, GrpoSettings

RECIPE = "fsdfm-1.3b"
ARMS = ("sample", "update")
MEMORY_TARGET_GB = 14.0
REPEATS = 3


class Large(NamedTuple):
    """What is measured; a test makes it smaller. `policy` and `grpo` replace settings of the recipe."""

    vocabulary: int = 50_257
    prompt: int = 256
    positions: int = 512
    rows: int = 16
    device: str = "cuda"
    policy: tuple[tuple[str, Any], ...] = (("model", "1.3b"),)
    grpo: tuple[tuple[str, Any], ...] = ()


# ---------------------------------------------------------------------- what is run


def tokenizer_folder(size: int, folder: Path) -> Path:
    """A tokenizer of words w0, w1 ... whose last entry ends a text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size - 1)}, unk_token="w0"))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def policy(job: Large) -> FlowPolicy:
    """The recipe's policy, its layers that begin at zero made random too, with its frozen start."""
    stage = resolve(load_recipe(find_recipe(RECIPE))).stages[-1]
    with tempfile.TemporaryDirectory() as folder:
        symbols = str(tokenizer_folder(job.vocabulary, Path(folder)))
        asked = {"max_completion_length": job.positions, "symbols": symbols, "device": job.device, **dict(job.policy)}
        made = flow.build(flow.Settings(**{**stage.policy.options, **asked}), seed=0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.001 if parameter.requires_grad else 0.02)
    made.freeze_reference()
    return made


def loop(job: Large, made: FlowPolicy) -> Grpo:
    """The recipe's loop, on made-up prompts and a checksum for a reward."""
    stage = resolve(load_recipe(find_recipe(RECIPE))).stages[-1]
    stage = stage.model_copy(update={"grpo": GrpoSettings(**{**stage.grpo.model_dump(), **dict(job.grpo)})})

    def reward(prompt: Prompt, outputs: Sequence[Output]) -> list[float]:
        return [zlib.crc32(str(output.ids).encode()) / 2**32 for output in outputs]

    rewards = RewardSet([NamedReward("checksum", reward)], 60)
    return Grpo(made, prompts(job), rewards, policy_loss(stage.grpo), stage.grpo, seed=0)


def prompts(job: Large) -> list[Prompt]:
    """32 prompts of exactly so many tokens."""
    draw = random.Random(0)
    return [
        Prompt("".join(f"w{draw.randrange(job.vocabulary - 1)}" for _ in range(job.prompt)), id=i) for i in range(32)
    ]


# ---------------------------------------------------------------------- measuring


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """One measurement in this process."""
    return measured(arm, Large(), options["repeats"])


def measured(arm: str, job: Large, repeats: int) -> dict[str, Any]:
    """Seconds, FLOPs and peak memory of one sampling of `rows` rows, or of one whole update."""
    made = policy(job)
    once, rows, trained = work(arm, job, made)
    with harness.count_flops() as flops:
        once()
    before, peak = matmul_speed(job.device), Peak(job.device)
    seconds = statistics.median(clocked(once, job.device) for _ in range(repeats))
    peak_gb = peak.gb()
    speed = (before + matmul_speed(job.device)) / 2
    steps, gflop = made.settings.sampling_steps, flops.get_total_flops() / 1e9
    return {
        "seconds": seconds,
        "peak_gb": peak_gb,
        "rows": rows,
        "steps": steps,
        "trained_steps": trained,
        "network_tokens": rows * steps * (job.prompt + job.positions),
        "written_tokens": rows * job.positions,
        "gflop": gflop,
        "gemm_gflops": speed,
        "matmul_share": gflop / seconds / speed,
        "device": torch.cuda.get_device_name() if job.device == "cuda" else job.device,
    }


def work(arm: str, job: Large, made: FlowPolicy) -> tuple[Callable[[], None], int, int]:
    """(what is timed, its rows, its trained steps)."""
    if arm == "sample":
        asked = prompts(job)[: job.rows]
        return lambda: _nothing(made.sample(asked, 1, torch.Generator().manual_seed(0))), job.rows, 0
    grpo = loop(job, made)
    rows = grpo.settings.num_prompts * grpo.settings.num_generations
    each = made.settings.train_steps or made.settings.branch_steps or made.settings.sampling_steps
    return lambda: _nothing(grpo.update()), rows, rows * each


def _nothing(result: object) -> None:
    """A call for what it does."""


def clocked(once: Callable[[], None], device: str) -> float:
    """Wall seconds until the device has done all of it."""
    wait(device)
    started = time.perf_counter()
    once()
    wait(device)
    return time.perf_counter() - started


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Peak:
    """The most memory allocated on the device since this was made; on a CPU, by the process."""

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            harness.reset_peak()

    def gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else harness.peak_mb() / 1e3


def matmul_speed(device: str, size: int = 8192, seconds: float = 1.0) -> float:
    """GFLOP per second of a bfloat16 product of two square matrices, right now."""
    size = size if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    products, spent = 0, 0.0
    while spent < seconds:
        spent += clocked(lambda: _nothing([torch.mm(a, b) for _ in range(10)]), device)
        products += 10
    return 2 * size**3 * products / spent / 1e9


def run(*, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Both arms, each in a process of its own."""
    found = []
    for arm in ARMS:
        found.append(harness.measure_apart("flow_large", arm, 1, {"repeats": 1 if quick else REPEATS}))
        say(f"1.3B {arm}: {found[-1]['seconds']:.3f} s, {found[-1]['peak_gb']:.1f} GB")
    return found


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """One row per arm."""
    made = Table(
        title=f"FS-DFM 1.3B, bfloat16 and LoRA, on {records[0]['device']} (target: at most {MEMORY_TARGET_GB:g} GB)"
    )
    head = ("", "rows", "steps", "trained", "s", "rows x steps / s", "network tokens / s", "written tokens / s")
    for column in (*head, "TFLOP", "of matmul speed", "peak GB"):
        made.add_column(column, justify="right")
    for r in records:
        met = "met" if r["peak_gb"] <= MEMORY_TARGET_GB else "missed"
        per_second = (r["rows"] * r["steps"], r["network_tokens"], r["written_tokens"])
        made.add_row(
            r["arm"],
            *(str(r[key]) for key in ("rows", "steps", "trained_steps")),
            f"{r['seconds']:.3f}",
            *(f"{count / r['seconds']:,.1f}" for count in per_second),
            f"{r['gflop'] / 1e3:.2f}",
            f"{r['matmul_share']:.0%}",
            f"{r['peak_gb']:.1f} {met}",
        )
    return made
