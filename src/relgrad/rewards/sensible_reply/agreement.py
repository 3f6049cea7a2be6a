r"""How far a reward with a threshold agrees with labels by hand: the share of equal verdicts, and Cohen's κ.

    κ = (p_o - p_e) / (1 - p_e),     p_e = p(pass) q(pass) + p(fail) q(fail)

κ (Cohen 1960) is 0 for verdicts that are as often right as chance is, whatever the shares of the labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from relgrad.core.protocols import Reward
from relgrad.core.types import Output, Prompt


@dataclass(frozen=True)
class Labelled:
    """A reply with its label; `source` says where the text is from."""

    post: str
    reply: str
    source: str
    passes: bool


@dataclass(frozen=True)
class Agreement:
    """Of `count` labelled replies that were judged: equal verdicts, labels that pass, verdicts that pass, and both."""

    count: int
    equal: int
    labels: int
    verdicts: int

    @property
    def share(self) -> float:
        """Equal verdicts of all."""
        return self.equal / self.count if self.count else math.nan

    @property
    def kappa(self) -> float:
        """Cohen's κ; NaN where all labels and verdicts are the same."""
        if not self.count:
            return math.nan
        p, q = self.labels / self.count, self.verdicts / self.count
        expected = p * q + (1 - p) * (1 - q)
        return math.nan if expected == 1 else (self.share - expected) / (1 - expected)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "labelled.yaml").read_text(encoding="utf-8"))
    return content


def labelled() -> list[Labelled]:
    """The hundred replies, in the order of the file."""
    return [Labelled(**row) for row in _content()["replies"]]


def guideline() -> dict[str, str]:
    """What the labeller went by, who that was, and where the replies are from."""
    return {name: str(_content()[name]).strip() for name in ("guideline", "labelled_by", "sources")}


def verdicts_of(reward: Reward, threshold: float, rows: Sequence[Labelled]) -> list[bool | None]:
    """Whether each reply passes by the reward, which reads the post in the column `tweet`; None where it is unscored."""
    verdicts: list[bool | None] = []
    for post, own in itertools.groupby(rows, key=lambda row: row.post):
        scores = reward(Prompt(post, {"tweet": post}), [Output(row.reply) for row in own])
        verdicts += [None if math.isnan(score.value) else score.value >= threshold for score in scores]
    return verdicts


def agreement(rows: Sequence[Labelled], verdicts: Sequence[bool | None]) -> Agreement:
    """The counts, over the replies that have a verdict."""
    pairs = [(row.passes, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict is not None]
    return Agreement(
        len(pairs), sum(a == b for a, b in pairs), sum(a for a, _ in pairs), sum(bool(b) for _, b in pairs)
    )
