"""How good a judge is: ranking (AUC), calibration (reliability, expected error), and what its score goes along with. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats  # type: ignore[import-untyped]

Array = np.ndarray


def auc(score_N: Array, right_N: Array) -> float:
    """P(score of a right one > score of a wrong one), ties counted half; NaN where one kind is missing.

    From the rank sum (Mann and Whitney 1947): AUC = (R_1 - n_1 (n_1 + 1) / 2) / (n_1 n_0).
    """
    right_N = right_N.astype(bool)
    ones, zeros = int(right_N.sum()), int((~right_N).sum())
    if not ones or not zeros:
        return float("nan")
    ranks_N = stats.rankdata(score_N)
    return float((ranks_N[right_N].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass(frozen=True)
class Bin:
    """Cases whose probability fell in one of the equally wide bins: mean probability, share that was right, how many."""

    predicted: float
    observed: float
    count: int


def reliability(probability_N: Array, right_N: Array, bins: int = 10) -> list[Bin]:
    """The reliability diagram; empty bins are left out."""
    index_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    return [
        Bin(float(probability_N[index_N == b].mean()), float(right_N[index_N == b].mean()), int((index_N == b).sum()))
        for b in range(bins)
        if (index_N == b).any()
    ]


def expected_calibration_error(table: list[Bin]) -> float:
    """Mean |predicted - observed| over the cases (Naeini et al. 2015)."""
    total = sum(b.count for b in table)
    return sum(b.count * abs(b.predicted - b.observed) for b in table) / total


def platt(logit_N: Array, target_N: Array) -> tuple[float, float]:
    """(a, b) that minimise the cross-entropy of sigmoid(a logit + b) against targets in [0, 1] (Platt 1999).

    a is kept positive: calibration may not turn a ranking around.
    """

    def loss(x: Array) -> float:
        z_N = np.exp(x[0]) * logit_N + x[1]
        return float(np.mean(np.logaddexp(0, z_N) - target_N * z_N))

    fit = optimize.minimize(loss, np.zeros(2), method="BFGS")
    return float(np.exp(fit.x[0])), float(fit.x[1])


def pearson(x_N: Array, y_N: Array) -> float:
    """Correlation; NaN where either has no spread."""
    if len(x_N) < 2 or float(np.ptp(x_N)) == 0 or float(np.ptp(y_N)) == 0:
        return float("nan")
    return float(stats.pearsonr(x_N, y_N).statistic)


def within_groups(x_GK: Array, y_GK: Array) -> list[float]:
    """Correlation inside every group (row) in which both have spread."""
    correlations = [pearson(x_K, y_K) for x_K, y_K in zip(x_GK, y_GK, strict=True)]
    return [r for r in correlations if not np.isnan(r)]
