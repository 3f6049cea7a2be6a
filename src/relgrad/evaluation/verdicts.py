"""Tests of a comparison's differences: p-values with Holm's adjustment, effect sizes, intervals over seeds and prompts.

The unit of a test is the prompt: its difference is the mean over the seeds of both sides. One figure is *primary*, named before
looking: its differences are adjusted for the number of contenders alone. All other figures are one family with all their
contenders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relgrad.evaluation.comparison import Comparison, Contender, per_prompt, prompts_of
from relgrad.evaluation.held_out import mean
from relgrad.evaluation.significance import cliffs_delta, crossed, d_z, holm, sign_flip
from relgrad.evaluation.statistics import Interval


@dataclass(frozen=True)
class Verdict:
    """What the tests say of one difference.

    p, p_holm     of the sign-flip permutation over prompts, as it is and adjusted in its family
    interval      of the mean difference, seeds and prompts drawn; NaN ends where the prompts are not paired
    units         prompts with a difference
    """

    p: float
    p_holm: float
    d_z: float
    cliffs_delta: float
    interval: Interval
    units: int

    def to_record(self) -> dict[str, Any]:
        """As plain data."""
        low, high = self.interval.low, self.interval.high
        return {
            "p": self.p, "p_holm": self.p_holm, "d_z": self.d_z, "cliffs_delta": self.cliffs_delta,
            "crossed_low": low, "crossed_high": high, "units": self.units,
        }  # fmt: skip


def verdicts(comparison: Comparison, primary: str) -> dict[str, list[Verdict | None]]:
    """Of every figure, one verdict per contender; None for the first, which all are compared with."""
    first, *others = comparison.contenders
    raw: dict[str, list[Verdict]] = {
        figure.name: [_raw(first, one, figure.name, comparison.mirrored) for one in others]
        for figure in comparison.figures
    }
    adjusted: dict[tuple[str, int], float] = {}
    for family in ([name for name in raw if name == primary], [name for name in raw if name != primary]):
        places = [(name, number) for name in family for number in range(len(others))]
        values = holm([raw[name][number].p for name, number in places])
        adjusted |= dict(zip(places, values, strict=True))
    return {
        name: [None, *(_with_holm(one, adjusted[name, number]) for number, one in enumerate(row))]
        for name, row in raw.items()
    }


def _with_holm(verdict: Verdict, p_holm: float) -> Verdict:
    return Verdict(**{**vars(verdict), "p_holm": p_holm})


def _raw(first: Contender, other: Contender, name: str, mirrored: bool) -> Verdict:
    before, after = (other, first) if mirrored else (first, other)
    by_prompt_before, by_prompt_after = _by_prompt(before, name), _by_prompt(after, name)
    shared = [key for key in by_prompt_before if key in by_prompt_after]
    earlier, later = [mean(by_prompt_before[key]) for key in shared], [mean(by_prompt_after[key]) for key in shared]
    differences = [b - a for a, b in zip(earlier, later, strict=True)]
    return Verdict(
        p=sign_flip(differences),
        p_holm=math.nan,
        d_z=d_z(differences),
        cliffs_delta=cliffs_delta(earlier, later),
        interval=_crossed(before, after, name),
        units=sum(not math.isnan(value) for value in differences),
    )


def _by_prompt(contender: Contender, name: str) -> dict[Any, list[float]]:
    """Every prompt's values over the contender's trainings that were asked it."""
    values: dict[Any, list[float]] = {}
    for training in contender.trainings:
        for key, value in zip(prompts_of(training.evaluation), per_prompt(training.evaluation, name), strict=True):
            values.setdefault(key, []).append(value)
    return values


def _crossed(before: Contender, after: Contender, name: str) -> Interval:
    """Over seeds and prompts where both sides have the same seeds; with other seeds the first side's mean stands for all."""
    earlier, later = ({t.seed: t.evaluation for t in one.trainings} for one in (before, after))
    seeds = sorted(earlier.keys() & later.keys())
    if (
        not seeds
        or earlier.keys() != later.keys()
        or any(prompts_of(earlier[s]) != prompts_of(later[s]) for s in seeds)
    ):
        return Interval(math.nan, math.nan, math.nan)
    rows: Sequence[Sequence[float]] = [
        [b - a for a, b in zip(per_prompt(earlier[s], name), per_prompt(later[s], name), strict=True)] for s in seeds
    ]
    same = all(prompts_of(earlier[s]) == prompts_of(earlier[seeds[0]]) for s in seeds)
    return crossed(rows, same)
