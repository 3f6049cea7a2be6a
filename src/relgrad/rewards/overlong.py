"""Soft overlong punishment: completions near the length limit lose gradually instead of being cut off unawares.

With |y| tokens, limit L and cache C (DAPO, arXiv:2503.14476, eq. 13):

    R(y) = 0                       where |y| <= L - C
           ((L - C) - |y|) / C     where L - C < |y| <= L
           -1                      where |y| > L
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import unscored


class Settings(Strict):
    """Both lengths are in tokens."""

    max_completion_length: int = Field(ge=1, description="L")
    soft_punish_cache: int = Field(ge=0, description="C; 0 punishes only what is longer than L")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.soft_punish_cache > self.max_completion_length:
            raise ValueError(
                f"soft_punish_cache={self.soft_punish_cache} must not exceed "
                f"max_completion_length={self.max_completion_length}"
            )
        return self


def punishment(tokens: int, limit: int, cache: int) -> float:
    """R(y) of the formula above, in [-1, 0]."""
    if tokens <= limit - cache:
        return 0.0
    return (limit - cache - tokens) / cache if tokens <= limit else -1.0


def build(settings: Settings) -> Reward:
    """Counts token ids; text without token ids (a policy that has none) is unscored."""

    def overlong(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        return [
            unscored("the output has text but no token ids to count")
            if output.text and not output.ids
            else Score(punishment(len(output.ids), settings.max_completion_length, settings.soft_punish_cache))
            for output in outputs
        ]

    return overlong
