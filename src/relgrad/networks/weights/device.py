"""On which device a model runs, and in what arithmetic: the name a recipe gives, or the one that is there."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from relgrad.core.errors import RelgradError


def choose(name: str) -> torch.device:
    """The device of a name that torch knows ("cpu", "cuda", "cuda:1"), or of "auto".

    "auto" is this process's GPU (torchrun puts its number into LOCAL_RANK; 0 without torchrun), or the CPU where there is no GPU.
    "cuda" is this process's GPU too. Raises RelgradError for a device that does not exist or is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not gpus:
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError:
        raise RelgradError(f"device={name!r}: torch knows no such device. {_devices(gpus)}") from None
    if device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if number >= gpus:
            raise RelgradError(f"device={name!r}: there is no GPU number {number}. {_devices(gpus)}")
        return torch.device("cuda", number)
    accelerator = torch.accelerator.current_accelerator()
    if device.type != "cpu" and (accelerator is None or accelerator.type != device.type):
        raise RelgradError(f"device={name!r}: there is no such device. {_devices(gpus)}")
    return device


def mixed(device: torch.device, arithmetic: torch.dtype) -> AbstractContextManager[Any]:
    """Inside, matrix products and attention compute in bfloat16 where `arithmetic` is that, whatever the weights are kept in.

    Norms and sums stay float32, and weights are updated as they are kept (Micikevicius et al. 2018, arXiv:1710.03740; bfloat16 has
    float32's range, so that no loss is scaled). Otherwise nothing changes.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16) if arithmetic == torch.bfloat16 else nullcontext()


def _devices(gpus: int) -> str:
    """What a message says of the devices of this machine."""
    cuda = "no CUDA GPU" if not gpus else "cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
    return f"This machine has: cpu, {cuda}. Set device to auto, or to one of these"
