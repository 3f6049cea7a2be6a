"""Schedulers: known values, slopes by finite differences, digits near the end, configurations."""

from __future__ import annotations

import math

import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.laws.schedule import Scheduler

SCHEDULERS = [Scheduler(exponent=1), Scheduler(exponent=2), Scheduler(exponent=3), Scheduler("cosine")]
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@every_scheduler
def test_kappa_rises_from_0_to_1(scheduler: Scheduler) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    kappa = scheduler.kappa(t)
    assert kappa[0] == 0
    assert float(kappa[-1]) == pytest.approx(1, abs=1e-15)
    assert bool((kappa.diff() > 0).all())
    assert scheduler.left(t)[-1] == 0
    assert torch.allclose(scheduler.left(t), 1 - kappa, atol=1e-14)


@pytest.mark.parametrize(
    ("scheduler", "kappa", "slope"),
    [
        (SCHEDULERS[0], 0.5, 1.0),
        (SCHEDULERS[1], 0.25, 1.0),
        (SCHEDULERS[2], 0.125, 0.75),
        (SCHEDULERS[3], 1 - math.sqrt(0.5), math.pi / 2 * math.sqrt(0.5)),
    ],
)
def test_known_values_at_one_half(scheduler: Scheduler, kappa: float, slope: float) -> None:
    assert float(scheduler.kappa(number(0.5))) == pytest.approx(kappa)
    assert float(scheduler.slope(number(0.5))) == pytest.approx(slope)


@every_scheduler
def test_slope_is_the_derivative(scheduler: Scheduler) -> None:
    d = 1e-6
    by_difference = (scheduler.kappa(INSIDE + d) - scheduler.kappa(INSIDE - d)) / (2 * d)
    assert torch.allclose(scheduler.slope(INSIDE), by_difference, rtol=1e-7)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert bool(scheduler.slope(ends).isfinite().all())


@every_scheduler
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 64, 1000])
def test_stay_factors_multiply_to_what_is_left_and_end_in_exactly_0(scheduler: Scheduler, steps: int) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.arange(steps, dtype=dtype) / steps
        stay = scheduler.stay_factor(t, 1 / steps)
        assert stay[-1] == 0
        assert bool((stay[:-1] > 0).all())
        assert bool((stay <= 1).all())
        left = torch.cat([torch.ones(1, dtype=dtype), stay.cumprod(0)[:-1]])
        assert torch.allclose(left, scheduler.left(t), rtol=1e-3 if dtype == torch.float32 else 1e-10)


@every_scheduler
def test_what_is_left_keeps_its_digits_near_the_end(scheduler: Scheduler) -> None:
    gap = torch.tensor([1e-3, 1e-5], dtype=torch.float32)
    exact = scheduler.left(1 - gap.double())
    assert torch.allclose(scheduler.left((1 - gap.double()).float()).double(), exact, rtol=7e-3)
    t = (1 - gap).double()  # the float32 times themselves: now only the formula can lose digits
    assert torch.allclose(scheduler.left(1 - gap).double(), scheduler.left(t), rtol=1e-5)


def test_a_configuration_comes_back() -> None:
    for scheduler in SCHEDULERS:
        assert Scheduler.from_config(scheduler.to_config()) == scheduler
    apple = {"flow": {"source_distribution": "uniform", "exponent": 1.0, "scheduler_type": "polynomial"}, "model": {}}
    assert Scheduler.from_config(apple) == Scheduler("polynomial", 1.0)
    assert Scheduler.from_config({"scheduler_type": "cosine", "exponent": None}) == Scheduler("cosine")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no scheduler_type in the configuration; it has nothing"),
        ({"flow": 3}, "no scheduler_type"),
        ({"scheduler_type": "linear"}, "scheduler 'linear': allowed are polynomial, cosine"),
        ({"scheduler_type": "polynomial", "exponent": 0.5}, "exponent=0.5: must be >= 1"),
        ({"scheduler_type": "polynomial", "exponent": math.nan}, "must be >= 1"),
        ({"scheduler_type": "polynomial", "exponent": "two"}, "exponent='two': must be a number"),
    ],
)
def test_a_bad_configuration_says_what_is_wrong(config: dict, message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        Scheduler.from_config(config)
