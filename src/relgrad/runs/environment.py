"""What a run ran on, for environment.json: versions, hardware, git commit, command line. Never a secret.

Of the process environment only the variables in VARIABLES are recorded, and of the command line what core/secrets.py lets through.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from relgrad.core.secrets import command_line

PACKAGES = ("relgrad", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "gguf", "datasets")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "LOCAL_RANK",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "RANK",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
    "WANDB_MODE",
    "WORLD_SIZE",
)


def capture() -> dict[str, Any]:
    """Everything environment.json holds, as plain data."""
    return {
        "packages": versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": git_state(Path.cwd()),
        "command": command_line(sys.argv),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are left out."""
    version_of = {}
    for name in packages:
        try:
            version_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return version_of


def hardware() -> dict[str, Any]:
    """CPU with the cores this process may use and torch's threads, memory, GPUs: each as a person would write it."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": f"{cpu_model()}, {cores()} cores, {torch.get_num_threads()} threads",
        "memory": gib(psutil.virtual_memory().total),
        "gpus": [f"{gpu.name}, {gib(gpu.total_memory)}" for gpu in gpus],
    }


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gib(size: float) -> str:
    """Bytes as "23.4 GiB"."""
    return f"{size / 2**30:.1f} GiB"


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the repository around `folder`; None where there is none, no commit yet, or no git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
