"""What the rules of diagnose look at: the records so far, windows of them, the evaluations, and the recipe. Imports no torch.

Thresholds in nats are per token. A decision may be more than one: a step of a flow writes many tokens at once. `per_token` divides
by how many, which the records tell.
"""

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
MOST = 0.6  # share of groups: above it more than half of the sampling is spent on what they have in common
SIGNIFICANT = 2.0  # standard errors between the two windows: the usual 95 % line

PARITY_FLOAT32 = 1e-3  # nats per token: float32 kernels of different shape disagree by 1e-6 to 1e-4
PARITY_HALF = 0.1  # nats per token: bfloat16 keeps 8 bits, logits of size 10 are off by 0.04


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
    """Means of the first and the last `window` values and the standard error of their difference (Welch)."""

    before: float
    after: float
    error: float
    window: int

    @property
    def rose(self) -> bool:
        return self.after - self.before > SIGNIFICANT * self.error

    @property
    def fell(self) -> bool:
        return self.before - self.after > SIGNIFICANT * self.error

    @property
    def largest_rise(self) -> float:
        """The largest rise that the values do not speak against."""
        return self.after - self.before + SIGNIFICANT * self.error

    @property
    def largest_fall(self) -> float:
        """The largest fall that the values do not speak against."""
        return self.before - self.after + SIGNIFICANT * self.error


@dataclass(frozen=True)
class Gain:
    """What the last evaluation of a part of the task says of the way from the start: a mean paired difference, 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class History:
    """The records so far, the evaluations so far and the recipe, as the rules read them."""

    records: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]] = ()

    @property
    def step(self) -> int:
        """The last recorded step, 0 before the first."""
        return int(self.records[-1].get("step", 0)) if self.records else 0

    @property
    def grpo(self) -> Mapping[str, Any]:
        return self.recipe.get("grpo") or {}

    @property
    def reuse(self) -> int:
        """Optimizer steps per generation batch: figures of the batch are in every so many records only."""
        return int(self.grpo.get("num_iterations") or 1) * int(self.grpo.get("steps_per_generation") or 1)

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate still rises; 0 where no section of the recipe says so."""
        sections = [section for section in self.recipe.values() if isinstance(section, Mapping)]
        return max((int(section.get("warmup_steps") or 0) for section in sections), default=0)

    @property
    def rewarded(self) -> bool:
        """Whether the steps are rewarded: otherwise the stage learns from targets."""
        return any("reward" in record for record in self.records[-WINDOW * self.reuse :])

    @property
    def tokens_per_decision(self) -> float:
        """How many tokens one decision writes; 1 where the records do not tell. Never below 1."""
        tokens, decisions = (self.last(f"completions/mean_{what}", WINDOW) for what in ("length", "decisions"))
        if not tokens or not decisions or median(decisions) <= 0:
            return 1.0
        return max(1.0, median(tokens) / median(decisions))

    def per_token(self, nats: float) -> float:
        """Nats per decision as nats per token."""
        return nats / self.tokens_per_decision

    def first(self, key: str, count: int) -> list[float]:
        """The first `count` finite values of `key`, as far as they are in the first records."""
        return finite(self.records[: count * self.reuse], key)[:count]

    def last(self, key: str, count: int) -> list[float]:
        """The last `count` finite values of `key`, as far as they are in the last records."""
        return finite(self.records[-count * self.reuse :], key)[-count:]

    def steps(self, key: str, count: int) -> list[int]:
        """The steps that the values of `last` belong to."""
        return [int(r.get("step", 0)) for r in self.records[-count * self.reuse :] if is_finite(r.get(key))][-count:]

    def now(self, key: str) -> float | None:
        """Median of the last RECENT values; None unless all of them are there."""
        values = self.last(key, RECENT)
        return median(values) if len(values) == RECENT else None

    def change(self, key: str, longest: int = WINDOW) -> Change | None:
        """`key` in the first and the last values, as many as do not overlap: at least WINDOW, or None; at most `longest`."""
        window = min(len(self.records) // (2 * self.reuse), longest)
        first, last = self.first(key, window), self.last(key, window)
        if window < WINDOW or min(len(first), len(last)) < window:
            return None
        return Change(fmean(first), fmean(last), math.sqrt((variance(first) + variance(last)) / window), window)

    def gain(self, reward: str | None = None) -> Gain | None:
        """What the last evaluation that is compared with the start says of the score, or of one reward; None without one."""
        for record in reversed(self.evaluations):
            keys = ("difference", "difference_low", "difference_high")
            values = [record.get(key) for key in keys]
            if reward is not None:
                values = list((record.get("reward_differences") or {}).get(reward) or ())
            if len(values) == 3 and all(is_finite(value) for value in values):
                return Gain(*(float(value) for value in values))
        return None

    @property
    def well_rewarded(self) -> bool:
        """Whether the reward is more than half of what the rewards' weights allow. Rewards are taken to lie in [0, 1]."""
        reward = self.now("reward")
        weights = [float(r.get("weight", 1)) for r in self.recipe.get("rewards") or () if isinstance(r, Mapping)]
        best = sum(weight for weight in weights if weight > 0) or 1.0
        return reward is None or reward > best / 2

    @property
    def solved(self) -> bool:
        """Whether most groups are all at the batch's best reward, and are not all stuck at the same partial credit."""
        at_best = self.now("frac_groups_all_max")
        return at_best is not None and at_best >= MOST and self.well_rewarded

    def warn(self, name: str, severity: Severity, evidence: str, advice: str) -> Warning_:
        return Warning_(name, severity, evidence, advice, self.step)


def policy_dtype(recipe: Mapping[str, Any]) -> str:
    """The dtype the policy section names; float32 where it names none."""
    return str((recipe.get("policy") or {}).get("dtype") or "float32").removeprefix("torch.")


def parity_tolerance(recipe: Mapping[str, Any]) -> float:
    """Nats per token that fresh and recorded log-probabilities may differ by, for the policy's dtype."""
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
