"""What the machine has, and how fast it runs a network of a given shape: measured on one layer of that shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch.nn import functional

from relgrad.core.errors import RelgradError
from relgrad.estimates.transformer import Transformer

CUDA_ITSELF = 0.6e9
"""Bytes that CUDA and its libraries take of a GPU for every process."""
LEAST, MOST = 3, 50
"""How often a layer is run at least and at most."""
BUDGET = 0.5
"""Seconds that measuring one speed may take."""
POSITIONS = 8192
"""The most positions that are run: beyond them the speed hardly changes."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: all, those that can be had now, and those that libraries take before a network is built."""

    device: str
    total: float
    free: float
    libraries: float


def memory(device: torch.device) -> Memory:
    """Of the device that a policy will be on."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(torch.cuda.get_device_name(device), total, free, CUDA_ITSELF)
    machine = psutil.virtual_memory()
    here = float(psutil.Process().memory_info().rss)
    return Memory("memory of this machine", machine.total, machine.available + here, here)


def speed(network: Transformer, positions: float, device: torch.device, dtype: torch.dtype, *, learning: bool) -> float:
    """Operations per second in a layer of this shape, forward (and, `learning`, backward), at so many positions at once.

    Raises RelgradError where even one layer does not fit.
    """
    count = max(1, min(round(positions), POSITIONS))
    try:
        run = _layer(network, count, device, dtype, learning)
        seconds = _timed(run, device)
    except RuntimeError as error:
        raise RelgradError(
            f"one layer of this network cannot be tried on {device} ({str(error).splitlines()[0]})"
        ) from None
    once = 2.0 * count * network.layer_weights
    return once * (3 if learning else 1) / seconds


def _layer(
    network: Transformer, count: int, device: torch.device, dtype: torch.dtype, learning: bool
) -> Callable[[], None]:
    """A call of one layer: its matrices, a norm and an activation, on numbers that mean nothing."""
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(*shape, generator=draw)).to(device, dtype).requires_grad_(learning)

    weights = {name: numbers(outputs, inputs) for name, (inputs, outputs) in network.matrices.items()}
    by_width = {inputs: numbers(count, inputs) for inputs, _ in network.matrices.values()}

    def run() -> None:
        with torch.set_grad_enabled(learning):
            total = torch.zeros((), device=device)
            for name, (inputs, _) in network.matrices.items():
                x = functional.layer_norm(by_width[inputs], (inputs,))
                total = total + functional.gelu(functional.linear(x, weights[name])).float().sum()
            if learning:
                total.backward()
                for tensor in (*weights.values(), *by_width.values()):
                    tensor.grad = None

    return run


def _timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call: the median of several, after two that do not count."""
    run()
    run()
    took, began = list[float](), time.perf_counter()
    while len(took) < LEAST or (len(took) < MOST and time.perf_counter() - began < BUDGET):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - started)
    return sorted(took)[len(took) // 2]
