"""1 where the completion matches a pattern, 0 where it does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score


class Settings(Strict):
    """`full`: the whole completion matches; `partial`: some part does. Flags are written inline: `(?is)...`.

    A pattern that backtracks without end holds the interpreter, and only `isolate: process` ends it at the time-out.
    """

    pattern: str
    match: Literal["full", "partial"] = "full"

    @field_validator("pattern")
    @classmethod
    def _legal(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


def build(settings: Settings) -> Reward:
    """The pattern is applied to the completion's text as it is, white space included."""
    pattern = re.compile(settings.pattern)
    matches = pattern.fullmatch if settings.match == "full" else pattern.search

    def regex(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        return [Score(float(matches(output.text) is not None)) for output in outputs]

    return regex
