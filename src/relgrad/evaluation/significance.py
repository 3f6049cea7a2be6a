r"""Tests and effect sizes of paired differences. Pure; NaN means *unscored* and is left out.

sign_flip   two-sided p of "the differences are as often one way as the other": their signs are exchanged, all 2^n ways where these
            are few, else 9,999 at random (scipy)
holm        p-values adjusted for their number, step down (Holm 1979)
d_z         mean / standard deviation of the differences (Cohen 1988, of paired data)
cliffs_delta   P(a < b) - P(a > b) over all pairs of two samples (Cliff 1993): how far two distributions lie apart, pairs ignored
crossed     interval of a mean difference over seeds *and* prompts: both are drawn with replacement
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from relgrad.evaluation.statistics import CONFIDENCE, RESAMPLES, Interval


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """The p-value; 1 where all differences are 0, NaN where fewer than two are scored."""
    import numpy as np
    from scipy.stats import permutation_test  # type: ignore[import-untyped]

    scored = np.asarray([value for value in differences if not math.isnan(value)])
    if len(scored) < 2:
        return math.nan
    if not scored.any():
        return 1.0
    result = permutation_test(
        (scored,),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(scored)),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given; NaN stays NaN and does not count."""
    ordered = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p))
        adjusted[index] = highest
    return adjusted


def d_z(differences: Sequence[float]) -> float:
    """NaN for fewer than two scored differences, and where they are all equal."""
    scored = [value for value in differences if not math.isnan(value)]
    if len(scored) < 2:
        return math.nan
    mean = math.fsum(scored) / len(scored)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in scored) / (len(scored) - 1))
    return mean / deviation if deviation else math.nan


def cliffs_delta(before: Sequence[float], after: Sequence[float]) -> float:
    """In [-1, 1], positive where `after` is the higher; NaN where a side has no value."""
    import numpy as np

    a, b = (np.asarray([value for value in side if not math.isnan(value)]) for side in (before, after))
    if not len(a) or not len(b):
        return math.nan
    ordered = np.sort(a)
    below, above = np.searchsorted(ordered, b, "left").sum(), (len(a) - np.searchsorted(ordered, b, "right")).sum()
    return float(below - above) / (len(a) * len(b))


def crossed(
    differences_SP: Sequence[Sequence[float]], same_prompts: bool, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """The mean difference with its percentile interval over seeds and prompts.

    differences_SP  of every seed the differences prompt by prompt
    same_prompts    whether all seeds were asked the same: then the same prompts are drawn for all (crossed), else each seed's own
                    (nested)

    Of a single seed only prompts are drawn. With two or three seeds the interval is too narrow, since they are all that is drawn
    from: Student's over seeds beside it is the honest one. Raises ValueError where same prompts differ in number.
    """
    import numpy as np

    rows = [np.asarray(one, dtype=float) for one in differences_SP]
    scored = np.concatenate(rows) if rows else np.zeros(0)
    if same_prompts and len({len(one) for one in rows}) > 1:
        raise ValueError("crossed: the seeds have other numbers of prompts; they were not asked the same")
    values = scored[~np.isnan(scored)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    seed_RS = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    sums, counts = np.zeros(RESAMPLES), np.zeros(RESAMPLES)

    def times(prompts: int) -> Any:
        return rng.multinomial(prompts, [1 / prompts] * prompts, size=RESAMPLES)

    times_RP = times(len(rows[0]))
    for number, row in enumerate(rows):
        drawn_R = (seed_RS == number).sum(1)
        own_RP = times_RP if same_prompts else times(len(row))
        is_number = ~np.isnan(row)
        sums += drawn_R * (own_RP @ np.where(is_number, row, 0.0))
        counts += drawn_R * (own_RP @ is_number.astype(float))
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    per_seed = [float(np.nanmean(row)) for row in rows if not np.isnan(row).all()]
    return Interval(math.fsum(per_seed) / len(per_seed), float(low), float(high))
