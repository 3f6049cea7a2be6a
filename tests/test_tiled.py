"""The tiled head against the dense formula in float64, over several tiles: values, every gradient, supports, exact KL."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relgrad.laws import tiled
from relgrad.laws.tiled import Head, Support

ROWS, SIZE, VOCABULARY, TEMPERATURE = tiled.ROWS + 37, 6, tiled.COLUMNS + 91, 0.7


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs(draw: torch.Generator, frozen: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, target, and a support that holds every target."""
    hidden = torch.randn(ROWS, SIZE, dtype=torch.float64, generator=draw).requires_grad_()
    weight = torch.randn(VOCABULARY, SIZE, dtype=torch.float64, generator=draw).requires_grad_(not frozen)
    bias = torch.randn(VOCABULARY, dtype=torch.float64, generator=draw).requires_grad_(not frozen)
    target = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    allowed = torch.rand(ROWS, VOCABULARY, generator=draw) < 0.3
    allowed[torch.arange(ROWS), target] = True
    return hidden, weight, bias, target, allowed


def dense(hidden: Tensor, weight: Tensor, bias: Tensor, allowed: Tensor | None) -> Tensor:
    """log pi [N, V] by the definition."""
    z = (hidden @ weight.T + bias) / TEMPERATURE
    return torch.log_softmax(z if allowed is None else z.masked_fill(~allowed, -torch.inf), -1)


def entropy_of(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_values_and_gradients_are_the_dense_ones(
    draw: torch.Generator, frozen: bool, truncated: bool, with_entropy: bool
) -> None:
    hidden, weight, bias, target, allowed = inputs(draw, frozen)
    slope = torch.randn(ROWS, dtype=torch.float64, generator=draw)
    slope_of_entropy = torch.randn(ROWS, dtype=torch.float64, generator=draw) * with_entropy
    wanted = [hidden] if frozen else [hidden, weight, bias]

    log_p = dense(hidden, weight, bias, allowed if truncated else None)
    chosen, entropy = log_p[torch.arange(ROWS), target], entropy_of(log_p)
    expected = torch.autograd.grad((chosen * slope + entropy * slope_of_entropy).sum(), wanted)

    support = Support.pack(allowed) if truncated else None
    logp, found_entropy = tiled.log_probs(hidden, Head(weight, bias, TEMPERATURE), target, support=support)
    total = (logp * slope).sum() + ((found_entropy * slope_of_entropy).sum() if with_entropy else 0.0)
    found = torch.autograd.grad(total, wanted)

    torch.testing.assert_close(logp, chosen)
    torch.testing.assert_close(found_entropy, entropy)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("truncated", [False, True])
def test_reference_kl_is_the_dense_one(draw: torch.Generator, truncated: bool) -> None:
    hidden, weight, bias, _, allowed = inputs(draw, frozen=False)
    other = torch.randn(ROWS, SIZE, dtype=torch.float64, generator=draw)
    log_p = dense(hidden, weight, bias, allowed if truncated else None)
    log_q = dense(other, weight, bias, allowed if truncated else None).detach()
    safe = torch.where(
        log_p == -torch.inf, torch.zeros_like(log_p), log_p - log_q.masked_fill(log_q == -torch.inf, 0.0)
    )
    kl = (log_p.exp() * safe).sum(-1)
    expected = torch.autograd.grad(kl.sum(), [hidden, weight])

    head = Head(weight, bias, TEMPERATURE)
    still = Head(weight.detach(), bias.detach(), TEMPERATURE)
    found = tiled.reference_kl(hidden, head, other, still, Support.pack(allowed) if truncated else None)
    torch.testing.assert_close(found, kl)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), [hidden, weight]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_float32_stays_close_at_a_large_vocabulary(draw: torch.Generator) -> None:
    hidden = torch.randn(64, 32, generator=draw)
    weight = torch.randn(100_003, 32, generator=draw) * 0.5
    target = torch.randint(0, 100_003, (64,), generator=draw)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)[torch.arange(64), target]
    logp, _ = tiled.log_probs(hidden, Head(weight), target)
    assert float((logp - exact).abs().max()) < 1e-5


def test_supports_pack_take_and_concatenate(draw: torch.Generator) -> None:
    allowed = torch.rand(9, 50, generator=draw) < 0.2
    rows = torch.tensor([5, 2, 5, 8])
    assert torch.equal(Support.pack(allowed).take(rows).dense(0, 4, 50), allowed[rows])
    both = Support.concatenate([Support.pack(allowed[:4]), Support.pack(allowed[4:])])
    assert torch.equal(both.dense(0, 9, 50), allowed)
    assert torch.equal(both.dense(3, 6, 50), allowed[3:6])
