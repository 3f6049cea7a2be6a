"""What the rules of diagnose look at: the records so far, windows of them, and the recipe. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any, Literal

from relgrad.core.registry import short

Severity = Literal["error", "warning", "note"]

RECENT = 5  # steps whose median speaks for "now": one odd batch is not a state
WINDOW = 20  # steps compared at the start and at the end: means of 20 noisy batches are steady enough to compare
SIGNIFICANT = 2.0  # standard errors between the two windows: the usual 95 % line

PARITY_FLOAT32 = 1e-3  # nats: float32 kernels of different shape disagree by 1e-6 to 1e-4
PARITY_HALF = 0.1  # nats: bfloat16 keeps 8 bits, logits of size 10 are off by 0.04


@dataclass(frozen=True)
class Warning_:
    """One named warning: `evidence` is what was measured, `advice` what to change, `step` where it was seen."""

    name: str
    severity: Severity
    evidence: str
    advice: str
    step: int


@dataclass(frozen=True)
class Change:
    """Means of the first and the last WINDOW values and the standard error of their difference (Welch)."""

    before: float
    after: float
    error: float

    @property
    def rose(self) -> bool:
        return self.after - self.before > SIGNIFICANT * self.error

    @property
    def fell(self) -> bool:
        return self.before - self.after > SIGNIFICANT * self.error


@dataclass(frozen=True)
class History:
    """The records so far and the recipe, as the rules read them."""

    records: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The last recorded step, 0 before the first."""
        return int(self.records[-1].get("step", 0)) if self.records else 0

    @property
    def grpo(self) -> Mapping[str, Any]:
        return self.recipe.get("grpo") or {}

    @property
    def rewarded(self) -> bool:
        """Whether the steps are rewarded: otherwise the stage learns from targets."""
        return any("reward" in record for record in self.records[-WINDOW:])

    def first(self, key: str, count: int) -> list[float]:
        """The finite values of `key` in the first `count` records."""
        return finite(self.records[:count], key)

    def last(self, key: str, count: int) -> list[float]:
        """The finite values of `key` in the last `count` records."""
        return finite(self.records[-count:], key)

    def now(self, key: str) -> float | None:
        """Median of the last RECENT values; None unless all of them are there."""
        values = self.last(key, RECENT)
        return median(values) if len(values) == RECENT else None

    def change(self, key: str) -> Change | None:
        """`key` in the first and the last WINDOW records; None until there are two whole windows that do not overlap."""
        first, last = self.first(key, WINDOW), self.last(key, WINDOW)
        if len(self.records) < 2 * WINDOW or min(len(first), len(last)) < WINDOW:
            return None
        return Change(fmean(first), fmean(last), math.sqrt((variance(first) + variance(last)) / WINDOW))

    def warn(self, name: str, severity: Severity, evidence: str, advice: str) -> Warning_:
        return Warning_(name, severity, evidence, advice, self.step)


def policy_dtype(recipe: Mapping[str, Any]) -> str:
    """The dtype the policy section names; float32 where it names none."""
    return str((recipe.get("policy") or {}).get("dtype") or "float32").removeprefix("torch.")


def parity_tolerance(recipe: Mapping[str, Any]) -> float:
    """Nats that fresh and recorded log-probabilities may differ by, for the policy's dtype."""
    return PARITY_FLOAT32 if policy_dtype(recipe) in ("float32", "float64") else PARITY_HALF


def monitors(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the recipe's rewards of weight 0, as they are logged: a reward without a name is called after its kind."""
    rewards = [r for r in recipe.get("rewards") or () if isinstance(r, Mapping) and r.get("weight") == 0]
    return [str(r.get("name") or short(str(r.get("kind")))) for r in rewards]


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation; 0 for fewer than three pairs or where one side is constant."""
    if len(pairs) < 3:
        return 0.0
    mean_x, mean_y = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    xx = sum((x - mean_x) ** 2 for x, _ in pairs)
    yy = sum((y - mean_y) ** 2 for _, y in pairs)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else 0.0


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def finite(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(r[key]) for r in records if is_finite(r.get(key))]
