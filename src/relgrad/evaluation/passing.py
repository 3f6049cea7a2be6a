"""pass@k by a pass judge, and the expected best of k graded scores: what several completions of a prompt are worth.

The pass judge is a reward with a threshold, and is to be another than the one that was trained on: by that one pass@k would be
best of k again. With fewer scored completions than k a prompt has no figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relgrad.core.types import Output, Prompt
from relgrad.evaluation.answers import Answers
from relgrad.evaluation.statistics import expected_max, pass_at_k

Verdicts = Callable[[Prompt, Sequence[Output]], list[bool | None]]
"""Whether each output of a prompt passes; None where that could not be judged."""


@dataclass(frozen=True)
class PassAtK:
    """The unbiased pass@k of every prompt (Chen et al. 2021, arXiv:2107.03374)."""

    k: int
    verdicts: Sequence[Sequence[bool | None]]

    @property
    def name(self) -> str:
        return f"pass@{self.k}"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        return [passes_at(one, self.k) for one in self.verdicts]


def passes_at(verdicts: Sequence[bool | None], k: int) -> float:
    """pass@k of one prompt; NaN with fewer than k judged completions."""
    judged = [verdict for verdict in verdicts if verdict is not None]
    return pass_at_k(len(judged), sum(judged), k) if len(judged) >= k else math.nan


@dataclass(frozen=True)
class BestOfK:
    """The expected best score of k completions: sum_i R_(i) C(i-1, k-1) / C(n, k)."""

    k: int

    @property
    def name(self) -> str:
        return f"best of {self.k}"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        return [best_of(one.completions.score_K, self.k) for one in answers]


def best_of(scores: Sequence[float], k: int) -> float:
    """The expected best of k; NaN with fewer than k scored completions."""
    scored = [score for score in scores if not math.isnan(score)]
    return expected_max(scored, k) if len(scored) >= k else math.nan
