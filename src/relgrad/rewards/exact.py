"""1 where the completion is the expected text, 0 where it is not; or the share of characters that are right."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """Both texts are compared after `strip` (outer white space) and `casefold`."""

    column: str = "answer"
    strip: bool = True
    casefold: bool = False
    per_character: bool = False


def build(settings: Settings) -> Reward:
    """With `per_character`, the score of a completion c for the answer a is #{i: c_i = a_i} / max(|c|, |a|).

    So a completion that is right but runs on loses too; two empty texts score 1. A row whose answer is None is
    unscored.
    """

    def clean(text: str) -> str:
        text = text.strip() if settings.strip else text
        return text.casefold() if settings.casefold else text

    def exact(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "exact")
        if value is None:
            return [unscored(f"column {settings.column!r} is None")] * len(outputs)
        answer = clean(str(value))
        score = share_right if settings.per_character else _equal
        return [Score(score(clean(output.text), answer)) for output in outputs]

    return exact


def share_right(text: str, answer: str) -> float:
    """The share of positions, of the longer text, at which both have the same character; 1 for two empty texts."""
    longest = max(len(text), len(answer))
    return sum(a == b for a, b in zip(text, answer, strict=False)) / longest if longest else 1.0


def _equal(text: str, answer: str) -> float:
    return float(text == answer)
