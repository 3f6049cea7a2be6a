"""What a run ran on, for environment.json: versions, hardware, git commit, command line. Never a secret.

Of the process environment only the variables in VARIABLES are recorded. In the command line the values of keys that
name a secret, credentials inside URLs and well-known token formats are replaced.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

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

HIDDEN = "[redacted]"
SECRET_WORDS = frozenset(
    {"apikey", "auth", "authorization", "bearer", "credential", "credentials", "passphrase", "passwd", "password"}
    | {"pwd", "secret", "secrets", "token"}
)
KEY_KINDS = {"access", "api", "private", "secret"}
KNOWN_TOKENS = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[\w-]{8,}")
URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def capture() -> dict[str, Any]:
    """Everything environment.json holds, as plain data."""
    return {
        "packages": versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": git_state(Path.cwd()),
        "command": redact(sys.argv),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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


def redact(arguments: Sequence[str]) -> list[str]:
    """A command line with secrets replaced: `key=value`, `--key value`, credentials in URLs, known token formats."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
        elif equals and is_secret(key):
            shown.append(f"{key}={HIDDEN}")
        else:
            shown.append(KNOWN_TOKENS.sub(HIDDEN, URL_CREDENTIALS.sub(HIDDEN, argument)))
        hide_next = argument.startswith("-") and not equals and is_secret(argument)
    return shown


def without_secrets(value: Any) -> Any:
    """Nested plain data (a resolved recipe, say) with the values of keys that name a secret replaced."""
    if isinstance(value, Mapping):
        return {k: HIDDEN if v is not None and is_secret(str(k)) else without_secrets(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(v) for v in value]
    return value


def is_secret(key: str) -> bool:
    """Whether a key names a secret: "judge.api_key", "--hfToken"; not "micro_batch_tokens", not "monkey"."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower().replace("-", "_").replace(".", "_").split("_")
    return bool(SECRET_WORDS & set(words)) or any(a in KEY_KINDS and b in ("key", "keys") for a, b in pairwise(words))
