"""How far a completion is from the others of its prompt: the mean distance, so that the group's mean is its diversity D.

As a reward beside others it makes GRPO polychromic. With `scale_rewards: none` and weight 2 K / (K - 2) lambda, K being the
completions per prompt, the centred reward is exactly lambda 2 (dbar_i - D_-i), the credit of the gradient of lambda D
(objectives/diversity.py). Two completions are equally far from each other: K = 2 teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.objectives.diversity import mean_to_others
from relgrad.rewards._columns import unscored
from relgrad.text.distance import Kind, distances_of


class Settings(Strict):
    """`n` is of the n-grams of words; `encoder` of embeddings."""

    distance: Kind = "ngram"
    n: int = Field(2, ge=1, description="words of an n-gram")
    encoder: Annotated[str | None, NamesFiles()] = Field(
        None, description="folder of the encoder of embeddings; null: all-MiniLM-L6-v2"
    )


def build(settings: Settings) -> Reward:
    """A prompt with a single completion has no distances: it is unscored."""
    distances = distances_of(settings.distance, settings.n, settings.encoder)

    def diversity(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        if len(outputs) < 2:
            return [unscored("the only completion of its prompt")] * len(outputs)
        return [Score(value) for value in mean_to_others(distances([output.text for output in outputs])).tolist()]

    return diversity
