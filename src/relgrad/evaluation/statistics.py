r"""Intervals and pass@k: how sure a held-out score is. Pure; NaN means *unscored* and is left out.

The unit of resampling is the prompt: completions of one prompt are not independent of each other, prompts are. So every
function that gives an interval takes one score per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
RESAMPLES = 9999


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; NaN where there is too little data to say."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval; False where the interval is unknown."""
        return value < self.low or value > self.high


def bootstrap_mean(values: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Mean over prompts with its bootstrap interval, bias-corrected and accelerated (BCa; Efron 1987).

    The same values and seed give the same interval. Equal values give an interval of width 0; one value gives an
    unknown interval (NaN ends), none gives NaN throughout.
    """
    scored = [v for v in values if not math.isnan(v)]
    if len(scored) < 2:
        return Interval(scored[0] if scored else math.nan, math.nan, math.nan)
    mean = math.fsum(scored) / len(scored)
    if min(scored) == max(scored):
        return Interval(mean, mean, mean)
    import numpy as np
    from scipy.stats import bootstrap  # type: ignore[import-untyped]

    result = bootstrap(
        (np.asarray(scored),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(scored)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Mean of after - before over the same prompts, with its bootstrap interval.

    Pairing removes the spread between easy and hard prompts, which two separate intervals both carry. A prompt that is
    NaN on either side is left out. Raises ValueError when the lengths differ: then the prompts are not the same.
    """
    if len(before) != len(after):
        raise ValueError(f"paired_difference: {len(before)} scores before, {len(after)} after; pair them by prompt")
    return bootstrap_mean([b - a for a, b in zip(before, after, strict=True)], confidence=confidence, seed=seed)


def pass_at_k(samples: int, passes: int, k: int) -> float:
    """Unbiased probability that one of k samples passes, from n samples with c passes: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv:2107.03374). Raises ValueError unless 0 <= passes <= samples and 1 <= k <= samples.
    """
    if not (0 <= passes <= samples and 1 <= k <= samples):
        raise ValueError(f"pass_at_k: n={samples}, c={passes}, k={k}; need 0 <= c <= n and 1 <= k <= n")
    return 1 - math.comb(samples - passes, k) / math.comb(samples, k)


def expected_max(scores: Sequence[float], k: int) -> float:
    """Unbiased expected best of k samples, from n graded scores: sum_i R_(i) C(i-1, k-1) / C(n, k), R_(i) ascending.

    For scores of 0 and 1 this is pass@k; k = 1 is the mean. Unscored (NaN) samples are left out. Raises ValueError
    unless 1 <= k <= the number of scored samples.
    """
    ordered = sorted(s for s in scores if not math.isnan(s))
    if not 1 <= k <= len(ordered):
        raise ValueError(f"expected_max: k={k} of {len(ordered)} scored samples; need 1 <= k <= n")
    total = math.comb(len(ordered), k)
    return math.fsum(score * (math.comb(i, k - 1) / total) for i, score in enumerate(ordered))
