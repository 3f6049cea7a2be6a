"""What is measured beside rewards: a metric makes one figure of a prompt's completions. Every evaluation measures `METRICS`.

A new one is a class below and an entry of `METRICS`; comparing, intervals, tables and pages follow. What needs a model, a judge or
columns of the task is a reward of weight 0 instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from relgrad.core.types import Output


@dataclass(frozen=True)
class Completions:
    """What one prompt was answered with.

    score_K   the weighted sum of the rewards; NaN where nothing was scored
    tokens_K  elementary choices (tokens) of each
    """

    outputs: tuple[Output, ...]
    score_K: tuple[float, ...]
    tokens_K: tuple[int, ...]


class Metric(Protocol):
    """`name` says what the figure is, as tables show it."""

    name: str

    def __call__(self, completions: Completions) -> float:
        """The figure of one prompt; NaN where there is nothing to say."""
        ...


class BestScore:
    """The best score among a prompt's completions: what the policy can do, where the mean is what it does."""

    name = "best score of a prompt"

    def __call__(self, completions: Completions) -> float:
        """NaN where nothing was scored."""
        return max((score for score in completions.score_K if not math.isnan(score)), default=math.nan)


class Different:
    """The share of different texts among a prompt's completions: it falls where a policy only becomes more certain."""

    name = "different completions"

    def __call__(self, completions: Completions) -> float:
        """Between 1 / K and 1."""
        return len({output.text for output in completions.outputs}) / len(completions.outputs)


class Length:
    """How long the completions are."""

    name = "tokens per completion"

    def __call__(self, completions: Completions) -> float:
        """The mean."""
        return sum(completions.tokens_K) / len(completions.tokens_K)


METRICS: tuple[Metric, ...] = (BestScore(), Different(), Length())
