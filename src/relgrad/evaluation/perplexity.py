"""How surprising a prompt's completions are to the base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from relgrad.evaluation.answers import Answers


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean -log p per token of a prompt's completions, given the prompt, under the base model at temperature 1.

    Low is no virtue: dull and repeated text is the least surprising. NaN where it was not measured.
    """

    name: str = "perplexity under the base model"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        return [
            math.exp(min(one.base_nll / one.base_tokens, 700.0)) if one.base_tokens else math.nan for one in answers
        ]
