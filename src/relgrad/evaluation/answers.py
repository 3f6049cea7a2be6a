"""What the metrics of the suite see: every prompt with its completions, and the protocol they follow.

A metric of the suite sees all prompts at once, so that models and judges work in batches, and gives one figure a prompt. The
metrics of metric.py, which every evaluation measures, see one prompt at a time and need nothing but the completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from relgrad.core.types import Prompt
from relgrad.evaluation.generations import Batch
from relgrad.evaluation.held_out import completions_of
from relgrad.evaluation.metric import Completions
from relgrad.objectives.advantages import combine

Embed = Callable[[Sequence[str]], Tensor]
"""Texts [N] to their embeddings [N, D], each of length 1."""
EmbedTokens = Callable[[Sequence[str]], list[Tensor]]
"""Texts [N] to the embeddings of their tokens, each [tokens, D] with rows of length 1."""


@dataclass(frozen=True)
class Answers:
    """One prompt and its completions. `base_nll` is -log p (nats) of all of them under the base model; NaN where it is unknown."""

    prompt: Prompt
    completions: Completions
    base_nll: float = math.nan
    base_tokens: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(output.text for output in self.completions.outputs)


class SuiteMetric(Protocol):
    """`name` says what the figure is; `lower_is_better` only colours its sign, and is None where neither is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        """One figure a prompt; NaN where there is nothing to say."""
        ...


def answers_of(batch: Batch, base: Sequence[tuple[float, int]]) -> list[Answers]:
    """The answers of a batch's prompts. `base` has (nll, tokens) of every prompt under the base model."""
    rollouts, table = batch
    totals = combine(table, rollouts.group_B).reward_B.tolist()
    answers = []
    for group, prompt in enumerate(rollouts.prompts):
        rows = (rollouts.group_B == group).nonzero()[:, 0].tolist()
        completions = completions_of(rollouts, rows, [totals[row] for row in rows])
        answers.append(Answers(prompt, completions, *base[group]))
    return answers
