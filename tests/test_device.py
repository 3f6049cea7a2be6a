"""The device choice: what "auto" is, and what is said of a device that is not there."""

from __future__ import annotations

import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.weights import device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("rank", "name", "expected"),
    [
        (None, "auto", "cuda:0"),
        ("1", "auto", "cuda:1"),
        ("1", "cuda", "cuda:1"),
        ("1", "cuda:0", "cuda:0"),
        ("1", "cpu", "cpu"),
    ],
)
def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, rank: str | None, name: str, expected: str):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device.choose(name) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RelgradError, match=r"no GPU number 2\. This machine has: cpu, cuda:0 to cuda:1"):
        device.choose("auto")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu():
    assert device.choose("auto") == torch.device("cpu")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps", "gpu", ""])
def test_what_is_not_there_is_named(name: str):
    with pytest.raises(RelgradError, match=f"device='{name}'.*This machine has: cpu, no CUDA GPU. Set device to auto"):
        device.choose(name)
