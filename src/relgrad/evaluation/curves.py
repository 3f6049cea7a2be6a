"""Curves over k with bands: pass@k and the expected best of k of a contender, and what the seed of this suite made of them.

A prompt's value at k is its mean over the contender's trainings; the band is the percentile bootstrap over prompts, the same
prompts for every k, so that a band belongs to a curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from relgrad.evaluation.statistics import CONFIDENCE

DRAWS = 2000
COLLAPSE_SLOPE = 0.01
"""pass@k gained by one more sample below which a curve counts as collapsed."""


def band(values_PK: Sequence[Sequence[float]], *, seed: int = 0) -> dict[str, list[float]]:
    """{"mean", "low", "high"} over prompts for every k; NaN prompts are left out k by k, and one prompt has no band."""
    import numpy as np

    values = np.asarray(values_PK, dtype=float)
    is_number = ~np.isnan(values)
    counts = is_number.sum(0)
    filled = np.where(is_number, values, 0.0)
    mean = [float(s / c) if c else math.nan for s, c in zip(filled.sum(0), counts, strict=True)]
    prompts = len(values)
    if prompts < 2:
        return {"mean": mean, "low": [math.nan] * len(mean), "high": [math.nan] * len(mean)}
    times_RP = np.random.default_rng(seed).multinomial(prompts, [1 / prompts] * prompts, size=DRAWS)
    drawn = times_RP @ is_number.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means_RK = (times_RP @ filled) / drawn
    tail = (1 - CONFIDENCE) / 2
    low, high = (
        np.nanquantile(means_RK, [tail, 1 - tail], axis=0) if counts.all() else (np.full(len(mean), math.nan),) * 2
    )
    return {"mean": mean, "low": low.tolist(), "high": high.tolist()}


def efficiency(pass_at: Sequence[float]) -> dict[str, Any]:
    """Diversity efficiency DER@k = pass@k / (k pass@1) and the collapse point, with what is known to be wrong about them.

    `pass_at` has pass@1, pass@2, …
    """
    first = pass_at[0] if pass_at else math.nan
    ratio = [value / (k * first) if first > 0 else math.nan for k, value in enumerate(pass_at, 1)]
    slopes = [later - earlier for earlier, later in itertools.pairwise(pass_at)]
    collapse = next((k for k, slope in enumerate(slopes, 2) if slope < COLLAPSE_SLOPE), None)
    return {
        "der": ratio,
        "collapse_k": collapse,
        "caveat": (
            "DER@k is at most 1 / (k pass@1), so that a good model looks collapsed: pass@1 = .7 and pass@10 = 1 give .14. The "
            "collapse point is the first k at which one more sample adds less than .01, which a judge that passes everything "
            "reaches at k = 2. Read pass@k itself."
        ),
    }
