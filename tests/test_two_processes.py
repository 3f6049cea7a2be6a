"""Several processes: what they tell each other, and that two of them compute what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import forked
import two_processes
from relgrad.core.ranks import ALONE, Ranks

LIMIT = 1e-6
"""Of the gradient's norm. Log-probabilities and their slopes are float32, equal in both; weights and sums are float64."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradients of one process, gradients of two)."""
    file = tmp_path_factory.mktemp("two") / "gradients.safetensors"
    for process in forked.ranks(2, "python", two_processes.__file__, file):
        assert process.returncode == 0, process.stderr
    return two_processes.gradients(ALONE), load_file(file)


NAMES = [f"{name}/{which}" for name in two_processes.CASES for which in ("fresh", "moved")]
NAMES += [f"supervised-{name}" for name in two_processes.SUPERVISED]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_the_gradient_of_one(both: tuple[dict[str, Tensor], dict[str, Tensor]], name: str):
    alone, two = both[0][name], both[1][name]
    assert float(alone.norm()) > 1e-6, "no gradient to compare"
    assert float((alone - two).norm() / alone.norm()) <= LIMIT


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_neighbours_and_nobody_has_more_than_one_extra(count: int, size: int):
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_ones_own():
    value = torch.tensor([1.0, 2.0])
    assert ALONE.first
    assert ALONE.gather("x") == ["x"]
    assert ALONE.same("x") == "x"
    assert ALONE.sum(value) is value
    with pytest.raises(ZeroDivisionError):
        ALONE.together(lambda: 1 / 0)


TALK = """
import sys, torch
from relgrad.core import ranks
from relgrad.core.errors import RelgradError
met = ranks.start()
assert met.gather(("rank", met.rank)) == [("rank", r) for r in range(met.size)]
assert met.same(met.rank + 10) == 10
assert met.numbers(met.rank, 0.5) == [(r, 0.5) for r in range(met.size)]
assert met.collect(lambda: met.rank * 2) == [r * 2 for r in range(met.size)]
assert met.sum(torch.tensor([1.0, met.rank])).tolist() == [met.size, sum(range(met.size))]
weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
weights[0].grad = torch.full((2,), 1.0 + met.rank)
if met.rank == 1:
    weights[1].grad = torch.ones(2)
met.add_gradients(weights)
assert weights[0].grad.tolist() == [6.0, 6.0]
assert weights[1].grad.tolist() == [1.0, 1.0]
assert weights[2].grad is None
def work():
    if met.rank == 1:
        raise ValueError("the well is dry")
try:
    met.together(work)
except ValueError:
    assert met.rank == 1
except RelgradError as error:
    assert met.rank != 1
    assert str(error) == "process 2 of 3: ValueError: the well is dry"
else:
    raise AssertionError("nothing was raised")
met.wait()
if met.rank == 2:
    sys.exit(0)
try:
    met.gather("is anybody there?")
except ranks.Lost as error:
    print("lost:", error)
"""


def test_what_three_processes_tell_each_other(tmp_path: Path):
    """In interpreters of their own, which must also end well when another one is gone."""
    script = tmp_path / "talk.py"
    script.write_text(TALK)
    command = [sys.executable, script]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for place in forked.places(3)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert outputs == [*[("lost: another process of this job ended\n", "")] * 2, ("", "")]
