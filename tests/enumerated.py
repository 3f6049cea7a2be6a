"""Exact quantities of a toy: trajectory probabilities, expected reward and flat gradients, by enumeration.

Trajectory probabilities come from `score` on the rows of `toy.enumerate`, summed in float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.core.protocols import Policy, Toy
from relgrad.core.types import Prompt, Rollouts


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def move(policy: Policy, scale: float = 0.1, seed: int = 11) -> None:
    """Add noise to every trainable parameter, so that nothing holds only because an adapter starts at zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for _, parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.add_(noise.to(parameter.device, parameter.dtype))


def flat_gradient(policy: Policy, value: Tensor) -> Tensor:
    """float64 [P]: d value / d every trainable parameter, 0 where it does not depend on one."""
    parameters = [p for _, p in policy.parameters()]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.detach().double().flatten().cpu() for part in parts])


def row_logp(policy: Policy, rollouts: Rollouts) -> Tensor:
    """float64 [B], differentiable: log-probability of every row, the sum of its decisions."""
    cells_N2 = rollouts.cells()
    logp_N = policy.score(rollouts, cells_N2).logp_N
    zeros_B = torch.zeros(rollouts.rows, dtype=torch.float64, device=logp_N.device)
    return zeros_B.index_add(0, cells_N2[:, 0].to(logp_N.device), logp_N.double())


def row_sums(rollouts: Rollouts, cell_N: Tensor, cells_N2: Tensor) -> Tensor:
    """float64 [B]: per-cell values summed by row."""
    return torch.zeros(rollouts.rows, dtype=torch.float64).index_add(0, cells_N2[:, 0], cell_N.detach().double().cpu())


def rewards_of(toy: Toy, rollouts: Rollouts) -> Tensor:
    return torch.tensor([toy.reward(output) for output in rollouts.outputs], dtype=torch.float64)


@dataclass(frozen=True)
class Enumeration:
    """Every trajectory of one prompt: its rollouts, log-probabilities (float64) and the row of every key."""

    rollouts: Rollouts
    logp_B: Tensor
    row: dict[Hashable, int]


@torch.no_grad()
def enumeration(toy: Toy, prompt: Prompt) -> Enumeration:
    rollouts = toy.enumerate(prompt)
    row = {key: i for i, key in enumerate(toy.keys(rollouts))}
    assert len(row) == rollouts.rows, f"{rollouts.rows} enumerated rows have only {len(row)} different keys"
    return Enumeration(rollouts, row_logp(toy.policy, rollouts).cpu(), row)


def close(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    worst = float((got.double() - wanted.double()).abs().max()) if got.numel() else 0.0
    assert worst <= tolerance, f"{what}: they differ by {worst:.3g} (tolerance {tolerance:g})"


def expected_reward(toy: Toy, rollouts: Sequence[Rollouts]) -> Tensor:
    """Mean reward over prompts of the given (complete) enumerations, differentiable; supports as recorded in them."""
    means = [(row_logp(toy.policy, r).exp().cpu() * rewards_of(toy, r)).sum() for r in rollouts]
    return torch.stack(means).mean()


def nudge(policy: Policy, direction: Tensor, scale: float) -> None:
    """parameters += scale * direction, for a flat direction."""
    parameters = [p for _, p in policy.parameters()]
    parts = direction.split([p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_((scale * part.reshape(parameter.shape)).to(parameter.device, parameter.dtype))
