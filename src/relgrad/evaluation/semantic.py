"""Diversity of a prompt's completions by their meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from relgrad.evaluation.answers import Answers, Embed
from relgrad.objectives.diversity import mean_distance


@dataclass(frozen=True)
class SemanticDiversity:
    """The mean of 1 - cos over the pairs of a prompt's completions; NaN for fewer than two."""

    embed: Embed
    name: str = "semantic diversity"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        """All texts are embedded at once, and only then cut into prompts: memory grows with the texts, not with their pairs."""
        vectors_ND = self.embed([text for one in answers for text in one.texts]).double()
        figures, first = [], 0
        for one in answers:
            own_KD = vectors_ND[first : first + len(one.texts)]
            first += len(one.texts)
            figures.append(float(mean_distance(1 - own_KD @ own_KD.T)) if len(own_KD) > 1 else math.nan)
        return figures
