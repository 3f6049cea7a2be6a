r"""Comparing evaluations: every figure, paired by prompt, trainings of several seeds taken as one contender.

What an interval is over:

    both sides of several seeds   seeds: Student's over the differences seed by seed where the seeds are the same, else Welch's
    one side of a single seed     families, or prompts: the differences prompt by prompt, a prompt's figure being its mean over
                                  the trainings that were asked it. Nothing is known of other seeds then

Tasks may hold out other prompts for every seed: then the prompts of one seed are paired with each other alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from relgrad.core.errors import RelgradError
from relgrad.evaluation.held_out import Evaluation, mean
from relgrad.evaluation.statistics import Interval, difference_over, mean_over, t_over_seeds, welch_over_seeds

SCORE = "score"
"""The name of the weighted sum of all rewards."""
Kind = Literal["score", "reward", "metric"]
"""What a figure is."""
PromptIds = tuple[tuple[int, str], ...]
"""The prompts of an evaluation: their ids and texts."""


@dataclass(frozen=True)
class Training:
    """One policy that was evaluated, and where it comes from: a run folder, a recipe, an adapter."""

    source: str
    seed: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Contender:
    """What is compared, under the name `label`: trainings of one recipe, each of another seed; often just one."""

    label: str
    trainings: tuple[Training, ...]

    @property
    def seeds(self) -> frozenset[int]:
        """The seeds of its trainings."""
        return frozenset(training.seed for training in self.trainings)


@dataclass(frozen=True)
class Estimate:
    """An interval, and how many units of which kind it is over: 3 "seeds", 6 "families", 128 "prompts".

    trainings  how many of the contender's trainings it is of
    """

    interval: Interval
    over: str
    units: int
    trainings: int

    def to_record(self) -> dict[str, Any]:
        """As plain data."""
        return {**self.interval._asdict(), "over": self.over, "units": self.units, "trainings": self.trainings}


@dataclass(frozen=True)
class Figure:
    """One figure of all contenders: their means, and their differences to the first (whose own is None)."""

    name: str
    kind: Kind
    means: tuple[Estimate, ...]
    differences: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Comparison:
    """All figures of all contenders. A difference is a contender's figure minus that of the first contender.

    mirrored  a difference is the first contender's figure minus that of the other
    """

    contenders: tuple[Contender, ...]
    figures: tuple[Figure, ...]
    mirrored: bool = False

    def to_record(self) -> dict[str, Any]:
        """As plain data: what tables and pages are made of."""
        return {
            "mirrored": self.mirrored,
            "contenders": [
                {"label": one.label, "trainings": [_training_record(training) for training in one.trainings]}
                for one in self.contenders
            ],
            "figures": [
                {
                    "name": figure.name,
                    "kind": figure.kind,
                    "means": [estimate.to_record() for estimate in figure.means],
                    "differences": [None if one is None else one.to_record() for one in figure.differences],
                }
                for figure in self.figures
            ],
        }


def _training_record(training: Training) -> dict[str, Any]:
    evaluation = training.evaluation
    return {
        "source": training.source,
        "seed": training.seed,
        "ids": list(evaluation.ids),
        "families": list(evaluation.families),
        "per_prompt": {name: list(per_prompt(evaluation, name)) for name in figures_of(evaluation)},
    }


def compare_all(contenders: Sequence[Contender], *, mirrored: bool = False) -> Comparison:
    """Every figure that the evaluations have, of every contender, and its difference to that of the first.

    Raises RelgradError where two of them were asked no prompt in common, or judged by other rewards.
    """
    first = contenders[0].trainings[0]
    for contender in contenders:
        for training in contender.trainings:
            _require_same_figures(first, training)
    figures = []
    for name, kind in figures_of(first.evaluation).items():
        means = tuple(_mean(one, name) for one in contenders)
        differences = [
            None if i == 0 else difference(contenders[0], one, name, mirrored) for i, one in enumerate(contenders)
        ]
        figures.append(Figure(name, kind, means, tuple(differences)))
    return Comparison(tuple(contenders), tuple(figures), mirrored)


def figures_of(evaluation: Evaluation) -> dict[str, Kind]:
    """The names of an evaluation's figures, with their kinds, in the order in which they are shown."""
    kinds: dict[str, Kind] = {SCORE: "score"}
    kinds |= dict.fromkeys(evaluation.per_prompt_rewards, "reward")
    return kinds | dict.fromkeys(evaluation.per_prompt_metrics, "metric")


def per_prompt(evaluation: Evaluation, name: str) -> tuple[float, ...]:
    """One figure of every prompt; NaN where it is unscored."""
    if name == SCORE:
        return evaluation.per_prompt
    rewards = evaluation.per_prompt_rewards
    return rewards[name] if name in rewards else evaluation.per_prompt_metrics[name]


def prompts_of(evaluation: Evaluation) -> PromptIds:
    """The prompts of an evaluation."""
    return tuple((id, sample["prompt"]) for id, sample in zip(evaluation.ids, evaluation.samples, strict=True))


def _mean(contender: Contender, name: str) -> Estimate:
    """The mean over seeds where there are several, else over families or prompts."""
    by_seed = [per_prompt(training.evaluation, name) for training in contender.trainings]
    if len(by_seed) > 1:
        return Estimate(t_over_seeds([mean(values) for values in by_seed]), "seeds", len(by_seed), len(by_seed))
    evaluation = contender.trainings[0].evaluation
    return Estimate(
        mean_over(by_seed[0], evaluation.families), evaluation.over, _units(by_seed[0], evaluation), trainings=1
    )


def difference(first: Contender, other: Contender, name: str, mirrored: bool = False) -> Estimate:
    """other - first, or first - other where `mirrored`. Raises RelgradError where they share no prompts and one has one seed."""
    before, after = (other, first) if mirrored else (first, other)
    if min(len(before.trainings), len(after.trainings)) > 1:
        return _over_seeds(before, after, name)
    single = min(before, after, key=lambda one: len(one.trainings)).trainings[0].evaluation
    prompts = prompts_of(single)
    earlier, later = (
        [per_prompt(t.evaluation, name) for t in one.trainings if prompts_of(t.evaluation) == prompts]
        for one in (before, after)
    )
    if not earlier or not later:
        raise RelgradError(
            f"compare: {before.label} and {after.label} were asked other prompts; evaluate both on the same ones, or several "
            "seeds of both"
        )
    mean_before, mean_after = ([mean(of_prompt) for of_prompt in zip(*side, strict=True)] for side in (earlier, later))
    differences = [b - a for a, b in zip(mean_before, mean_after, strict=True)]
    interval = difference_over(mean_before, mean_after, single.families)
    return Estimate(interval, single.over, _units(differences, single), max(len(earlier), len(later)))


def _over_seeds(before: Contender, after: Contender, name: str) -> Estimate:
    """The difference of two contenders of several seeds each; seed by seed where seeds and prompts are the same."""
    earlier, later = ({t.seed: t.evaluation for t in one.trainings} for one in (before, after))
    count = min(len(earlier), len(later))
    paired = before.seeds == after.seeds and all(prompts_of(earlier[s]) == prompts_of(later[s]) for s in earlier)
    if not paired:
        means = [[mean(per_prompt(one, name)) for one in side.values()] for side in (earlier, later)]
        return Estimate(welch_over_seeds(*means), "seeds", count, count)
    differences = [
        mean([b - a for a, b in zip(per_prompt(earlier[s], name), per_prompt(later[s], name), strict=True)])
        for s in sorted(earlier)
    ]
    return Estimate(t_over_seeds(differences), "seeds", count, count)


def _units(values: Sequence[float], evaluation: Evaluation) -> int:
    """How many prompts, or families of them, have a value."""
    units: Sequence[Any] = evaluation.families or evaluation.ids
    return len({unit for unit, value in zip(units, values, strict=True) if not math.isnan(value)})


def _require_same_figures(first: Training, other: Training) -> None:
    """Raise RelgradError unless both were judged by the same rewards."""
    if differing := figures_of(first.evaluation).keys() ^ figures_of(other.evaluation).keys():
        raise RelgradError(
            f"compare: {other.source} and {first.source} were judged by different rewards: only one of them has "
            f"{', '.join(sorted(differing))}; evaluate both by the same rewards"
        )
