"""The optimizer step: AdamW bit for bit, one question about finiteness, the parameter to blame, a state that goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relgrad.training.optimizer import NonFinite, Optimizer, OptimizerSettings, fuses, learning_rate

SETTINGS = OptimizerSettings(learning_rate=0.1, weight_decay=0.01, max_grad_norm=0.5)


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 2, 2)}
    return {n: torch.nn.Parameter(torch.randn(shape, generator=draw)) for n, shape in shapes.items()}


def give_gradients(named: dict[str, torch.nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def test_it_is_adamw_after_clipping_bit_for_bit():
    named, plain = parameters(), parameters()
    optimizer = Optimizer(named, SETTINGS, 5)
    adam = torch.optim.AdamW(plain.values(), lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True)
    for step in range(5):
        give_gradients(named, step)
        give_gradients(plain, step)
        before = {n: p.detach().clone() for n, p in plain.items()}
        norm = torch.nn.utils.clip_grad_norm_(plain.values(), 0.5)
        adam.step()
        figures = optimizer.step(step)
        assert all(torch.equal(named[n], plain[n]) for n in named)
        assert figures["grad_norm"] == float(norm)
        moved = torch.cat([(plain[n].detach() - old).flatten() for n, old in before.items()]).norm()
        size = torch.cat([old.flatten() for old in before.values()]).norm()
        assert figures["update/relative_norm"] == pytest.approx(float(moved / size), rel=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named_and_not_applied(bad: float):
    named = parameters()
    before = {n: p.detach().clone() for n, p in named.items()}
    give_gradients(named, 0)
    named["b"].grad[2] = bad
    with pytest.raises(NonFinite, match=r"step 4: the gradient of b is not finite \(1 of 5"):
        Optimizer(named, SETTINGS, 5).step(3)
    assert all(torch.equal(named[n], old) for n, old in before.items())


def test_a_norm_that_overflows_is_refused():
    named = parameters()
    give_gradients(named, 0)
    named["a"].grad.fill_(3e38)
    with pytest.raises(NonFinite, match="the norm of the gradients"):
        Optimizer(named, SETTINGS, 5).step(0)


def test_a_step_asks_at_most_three_numbers_however_many_parameters():
    class Asked(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            scalar = func.overloadpacket is torch.ops.aten._local_scalar_dense
            # AdamW's own step counters lie on the CPU wherever the parameters are
            self.count += scalar and args[0].dtype == torch.float32 and args[0].numel() == 1 and not self.inside_adam
            return func(*args, **(kwargs or {}))

        inside_adam = False

    named = {f"p{i}": torch.nn.Parameter(torch.ones(3)) for i in range(40)}
    optimizer = Optimizer(named, SETTINGS, 5)
    asked = Asked()
    step = optimizer._adam.step

    def plain_step() -> None:
        asked.inside_adam = True
        step()
        asked.inside_adam = False

    optimizer._adam.step = plain_step
    give_gradients(named, 0)
    with asked:
        optimizer.step(0)
    assert asked.count <= 3


def test_a_restored_state_goes_on_bit_for_bit():
    named = parameters()
    optimizer = Optimizer(named, SETTINGS, 6)
    for step in range(3):
        give_gradients(named, step)
        optimizer.step(step)
    state = optimizer.state()
    copy = {n: torch.nn.Parameter(p.detach().clone()) for n, p in named.items()}
    continued = Optimizer(copy, SETTINGS, 6)
    continued.restore(state)
    for step in range(3, 6):
        for each, one in ((named, optimizer), (copy, continued)):
            give_gradients(each, step)
            one.step(step)
    assert all(torch.equal(named[n], copy[n]) for n in named)
    assert all(torch.equal(value, optimizer.state()[key]) for key, value in continued.state().items())


def test_the_fused_step_is_for_the_devices_that_have_it():
    assert fuses(parameters().values())
    assert not fuses([torch.empty(2, device="meta")])


# ---------------------------------------------------------------------- the schedule


@pytest.mark.parametrize(
    ("kind", "options", "rates"),
    [
        ("constant", {}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", {}, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", {"min_lr": 0.2}, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", {}, [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]),
        ("cosine", {"min_lr": 0.2}, [0.5, 1.0, 1.0, 0.6 + 0.8 * 0.5**1.5, 0.6, 0.6 - 0.8 * 0.5**1.5, 0.2]),
        ("cosine", {"min_lr": 0.2, "decay_steps": 4}, [0.5, 1.0, 1.0, 0.6, 0.2, 0.2, 0.2]),
    ],
)
def test_the_schedule(kind: str, options: dict[str, Any], rates: list[float]):
    """Two steps of warm-up, then down to `min_lr` at `decay_steps`, or at the last of six (Loshchilov & Hutter 2017, eq. 5)."""
    settings = OptimizerSettings(learning_rate=1.0, lr_scheduler_type=kind, warmup_steps=2, **options)
    assert [learning_rate(settings, step, 6) for step in range(7)] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 1e-7}, "min_lr=1e-07 says how a schedule ends, and lr_scheduler_type='constant' has no end"),
        ({"decay_steps": 5}, "decay_steps=5 says how a schedule ends"),
        ({"lr_scheduler_type": "cosine", "min_lr": 0.2}, r"min_lr=0\.2 exceeds learning_rate=0\.1"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            r"is called cosine here, and lr_scheduler_kwargs\.min_lr is min_lr",
        ),
    ],
)
def test_a_schedule_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(learning_rate=0.1, **options)
