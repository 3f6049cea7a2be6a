r"""A control for sharpening: the untrained start, cooled until it is as far from itself as the trained policy went.

Training by reward makes a policy more certain, and more certain texts often score better. So does the start at a lower temperature,
without any training. Let D be the exact KL to the start, in nats per decision over a policy's own texts (held_out.py measures the
trained policy's with the same function). The control is the start at the temperature tau with

    D(start at tau) = D(trained policy),        tau between LOWEST and 1 of the policy's own temperature,

found by bisection of log tau: D falls as tau rises, and is 0 at the policy's own temperature. Every step of it writes the
evaluation's texts anew, from the same random numbers, and scores none. What training gains beyond it is more than sharpness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from relgrad.core.protocols import Policy, Rewards, Tempered
from relgrad.core.randomness import Draws
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Prompt
from relgrad.evaluation.held_out import Evaluation, as_judged, compare, compare_rewards, evaluate, spread_and_distance

LOWEST = 0.05
"""The lowest temperature, as a share of the policy's own."""
STEPS = 12
"""Of bisection, at most: the temperature is then known to 0.1 %."""
TOLERANCE = 0.02
"""Bisection ends where the KL is so near to what it should be, relative to it."""


class TemperedPolicy(Policy, Tempered, Protocol):
    """A policy whose law has a temperature."""


@dataclass(frozen=True)
class Cooled:
    """The start at a lower temperature.

    temperature  the one that was found
    reached      False where the start is not as far from itself even at the lowest temperature, which this is then
    evaluation   its score, and as `kl` how far from itself it is
    """

    temperature: float
    reached: bool
    evaluation: Evaluation

    def to_record(self, step: int, start: Evaluation, trained: Evaluation) -> dict[str, Any]:
        """The record of cooled.json: as a line of evaluations.jsonl, differences being to the start as it was, and beyond that

        temperature, reached  see above
        trained_kl            how far the trained policy is from the start
        trained_differences   the trained policy's score and rewards minus these, paired by prompt: [difference, low, high]
        """
        beyond = {"score": compare(self.evaluation, trained), **compare_rewards(self.evaluation, trained)}
        return {
            **self.evaluation.to_record(step, "cooled start", start),
            "temperature": self.temperature,
            "reached": self.reached,
            "trained_kl": trained.kl,
            "trained_differences": {name: list(interval) for name, interval in beyond.items()},
        }


def cooled_start(
    policy: TemperedPolicy,
    kl: float,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    *,
    num_generations: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Cooled:
    """The start of `policy` at the temperature at which it is `kl` away from itself, judged.

    `progress(done, total)` counts the passes over all prompts. Raises RelgradError as `evaluate` and `Tempered.start_at` do.
    """
    passes, total = 0, STEPS + 2

    def distance(temperature: float) -> float:
        nonlocal passes
        passes += 1
        if progress is not None:
            progress(passes, total)
        with policy.start_at(temperature):
            return distance_to_start(policy, prompts, num_generations=num_generations, seed=seed, ranks=ranks)

    temperature, reached = temperature_at(kl, policy.temperature, distance)
    with policy.start_at(temperature):
        evaluation = evaluate(
            policy, prompts, rewards, num_generations=num_generations, seed=seed, divergence=True, ranks=ranks
        )
    if progress is not None:
        progress(total, total)
    return Cooled(temperature, reached, evaluation)


def temperature_at(kl: float, own: float, distance: Callable[[float], float]) -> tuple[float, bool]:
    """(the temperature at which `distance` is `kl`, True), or (the lowest, False) where it is less even there.

    `distance` falls with the temperature, to 0 at `own`.
    """
    low, high = own * LOWEST, own
    if distance(low) < kl:
        return low, False
    middle = math.sqrt(low * high)
    for _ in range(STEPS):
        away = distance(middle)
        if abs(away - kl) <= TOLERANCE * kl:
            break
        low, high = (middle, high) if away > kl else (low, middle)
        middle = math.sqrt(low * high)
    return middle, True


def distance_to_start(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    num_generations: int,
    seed: int,
    batch_prompts: int = 16,
    ranks: Ranks = ALONE,
) -> float:
    """Exact KL to the reference in nats per decision, over texts that `policy` writes now; what `evaluate` measures, unscored."""
    draws, share = Draws.of(torch.Generator().manual_seed(seed), len(prompts)), ranks.share(len(prompts))
    measured = torch.zeros(3, dtype=torch.float64)

    def own() -> None:
        for first in range(share.start, share.stop, batch_prompts):
            count = min(batch_prompts, share.stop - first)
            rollouts = policy.sample(prompts[first : first + count], num_generations, draws.part(first, count))
            measured.add_(spread_and_distance(policy, rollouts))

    with torch.no_grad(), as_judged(policy):
        ranks.together(own)
    ranks.sum(measured)
    return float(measured[0] / measured[2])
