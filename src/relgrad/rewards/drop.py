"""The words that an answer shares with the expected spans, as DROP's official script counts them: F1, or exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.overlap import drop_best
from relgrad.rewards._columns import column, unscored
from relgrad.rewards._marked import after_mark


class Settings(Strict):
    """The column holds DROP's answer (number, spans or date), a text, or a list of spans.

    `others` names a column with a list of what other people answered; the best of all counts.
    """

    column: str = "answer"
    others: str | None = Field(None, description='a column with more answers that are right ("validated_answers")')
    score: Literal["f1", "exact"] = "f1"
    after: str | None = Field(
        None,
        min_length=1,
        description='the answer stands after the last such text ("Answer:"); null: it is all of the completion',
    )
    separator: str | None = Field(None, description="what divides the spans of an answer; null: an answer is one span")


def build(settings: Settings) -> Reward:
    """Both figures are parts of the score. A completion without the text of `after` has no answer and scores 0."""

    def drop(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        values = [column(prompt, settings.column, "drop")]
        if settings.others:
            values += column(prompt, settings.others, "drop") or []
        expected = [spans for value in values if (spans := spans_of(value))]
        if not expected:
            return [unscored(f"no answer in column {settings.column!r}: {values[0]!r:.80}")] * len(outputs)
        return [_score(settings, output.text, expected) for output in outputs]

    return drop


def _score(settings: Settings, text: str, expected: Sequence[Sequence[str]]) -> Score:
    answer = after_mark(text, settings.after)
    if answer is None:
        return Score(0.0, {"exact": 0.0, "f1": 0.0})
    spans = [part.strip() for part in answer.split(settings.separator)] if settings.separator else [answer]
    best = drop_best(spans, expected)
    return Score(best.f1 if settings.score == "f1" else best.exact, {"exact": best.exact, "f1": best.f1})


def spans_of(value: Any) -> tuple[str, ...]:
    """An answer as spans: of DROP's own form the number, else the spans, else the date; () where there is none."""
    match value:
        case str(text) if text.strip():
            return (text,)
        case {"number": number} if str(number).strip():
            return (str(number),)
        case {"spans": [*spans]} if spans:
            return tuple(map(str, spans))
        case {"date": Mapping() as date} if any(date.values()):
            return (" ".join(str(date.get(part, "")) for part in ("day", "month", "year")).strip(),)
        case [*spans]:
            return tuple(map(str, spans))
        case int() | float():
            return (str(value),)
    return ()
