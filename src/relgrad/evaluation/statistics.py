r"""Intervals and pass@k: how sure a held-out score is. Pure; NaN means *unscored* and is left out.

An interval is over the units that are drawn independently of each other, and speaks of nothing else:

    prompts   `bootstrap_mean`, `paired_difference`: other prompts of the same kind, this one training. Completions of a prompt are
              not independent, so every function takes one score per prompt
    families  `bootstrap_over_families`: where prompts come in families that are alike (200 forms of 6 kinds), other families
    seeds     `t_over_seeds`, `welch_over_seeds`: other trainings of the same recipe, these prompts
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


def bootstrap_over_families(
    values: Sequence[float], families: Sequence[str], *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Mean over prompts with its bootstrap interval over families: whole families are drawn, each with all its prompts.

    The ends are the expanded percentiles of Hesterberg (2015, "What Teachers Should Know About the Bootstrap"), at the level
    Phi(-sqrt(n / (n - 1)) t), which is as wide for few families n as Student's interval is. With fewer than 6 families no such
    interval covers 95 % (`enough`), and the ends are NaN. Raises ValueError unless there is one family for every value.
    """
    if len(values) != len(families):
        raise ValueError(f"bootstrap_over_families: {len(values)} values, {len(families)} families; give one of each")
    scored = [(value, family) for value, family in zip(values, families, strict=True) if not math.isnan(value)]
    by_family: dict[str, list[float]] = {}
    for value, family in scored:
        by_family.setdefault(family, []).append(value)
    mean = math.fsum(value for value, _ in scored) / len(scored) if scored else math.nan
    count = len(by_family)
    if not enough(count, confidence):
        return Interval(mean, math.nan, math.nan)
    import numpy as np
    from scipy import stats  # type: ignore[import-untyped]

    sum_F = np.array([math.fsum(own) for own in by_family.values()])
    size_F = np.array([len(own) for own in by_family.values()])
    times_RF = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES)
    mean_R = (times_RF @ sum_F) / (times_RF @ size_F)
    tail = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf((1 + confidence) / 2, count - 1))
    low, high = np.quantile(mean_R, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def enough(families: int, confidence: float = CONFIDENCE) -> bool:
    """Whether the bootstrap over so many families can cover what it should.

    Its ends never leave the range of the families' means, and all n of these lie on one side of the median with chance 2^(1 - n).
    """
    return families > 1 and 1 - 2.0 ** (1 - families) >= confidence


def t_over_seeds(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Mean over seeds (one value a seed) with Student's interval; NaN ends where fewer than two are scored."""
    scored = [value for value in values if not math.isnan(value)]
    if len(scored) < 2:
        return Interval(scored[0] if scored else math.nan, math.nan, math.nan)
    return _student(math.fsum(scored) / len(scored), _variance(scored) / len(scored), len(scored) - 1, confidence)


def welch_over_seeds(before: Sequence[float], after: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """mean(after) - mean(before) over unpaired seeds, with Welch's interval (1947); NaN ends where a side has one seed."""
    sides = [[value for value in side if not math.isnan(value)] for side in (before, after)]
    difference = math.nan
    if all(sides):
        earlier, later = (math.fsum(side) / len(side) for side in sides)
        difference = later - earlier
    if min(map(len, sides)) < 2:
        return Interval(difference, math.nan, math.nan)
    shares = [_variance(side) / len(side) for side in sides]
    if not sum(shares):
        return Interval(difference, difference, difference)
    freedom = sum(shares) ** 2 / sum(share**2 / (len(side) - 1) for share, side in zip(shares, sides, strict=True))
    return _student(difference, sum(shares), freedom, confidence)


def _student(mean: float, variance: float, freedom: float, confidence: float) -> Interval:
    """mean -+ t sqrt(variance), `variance` being that of the mean."""
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _variance(values: Sequence[float]) -> float:
    """The unbiased variance of two or more values."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def mean_over(values: Sequence[float], families: Sequence[str] = ()) -> Interval:
    """Mean over prompts with its interval: over their families, where they have any, else over prompts."""
    return bootstrap_over_families(values, families) if families else bootstrap_mean(values)


def difference_over(before: Sequence[float], after: Sequence[float], families: Sequence[str] = ()) -> Interval:
    """Mean paired difference with its interval, as `mean_over` has it. Raises ValueError when the lengths differ."""
    if not families:
        return paired_difference(before, after)
    if len(before) != len(after):
        raise ValueError(f"difference_over: {len(before)} scores before, {len(after)} after; pair them by prompt")
    return bootstrap_over_families([b - a for a, b in zip(before, after, strict=True)], families)


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
