"""What a benchmark asks of the device it runs on: wait for it, its peak memory, its own matmul speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import flow_large
from benchmarks.flow_large import Peak, wait

__all__ = ["Peak", "clocked", "matmul_speed", "wait"]

SIZES = {"bfloat16": 8192, "float32": 4096}
SIZE_ON_CPU = 256


def clocked(once: Callable[[], Any], device: str) -> float:
    """Wall seconds until the device has done all of it."""

    def run() -> None:
        once()

    return flow_large.clocked(run, device)


def matmul_speed(device: str, dtype: str, seconds: float = 0.3) -> float:
    """GFLOP per second of a product of two square matrices, right now; float32 as torch multiplies it by default (no TF32)."""
    size = SIZES[dtype] if device == "cuda" else SIZE_ON_CPU
    number = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    a, b = (torch.randn(size, size, device=device, dtype=number) for _ in range(2))
    torch.mm(a, b)
    products, spent = 0, 0.0
    while spent < seconds:
        spent += clocked(lambda: [torch.mm(a, b) for _ in range(5)], device)
        products += 5
    return 2 * size**3 * products / spent / 1e9
