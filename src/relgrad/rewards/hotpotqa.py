"""The words that an answer shares with the expected one, as HotpotQA's official script counts them: F1, or exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.overlap import hotpotqa as overlap
from relgrad.rewards._columns import column, unscored
from relgrad.rewards._marked import after_mark


class Settings(Strict):
    """The column holds the expected answer."""

    column: str = "answer"
    score: Literal["f1", "exact"] = "f1"
    after: str | None = Field(
        None,
        min_length=1,
        description='the answer stands after the last such text ("Answer:"); null: it is all of the completion',
    )


def build(settings: Settings) -> Reward:
    """Both figures are parts of the score. A completion without the text of `after` has no answer and scores 0."""

    def hotpotqa(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "hotpotqa")
        if value is None:
            return [unscored(f"column {settings.column!r} is None")] * len(outputs)
        answers = (after_mark(output.text, settings.after) for output in outputs)
        each = [overlap(answer, str(value)) if answer is not None else None for answer in answers]
        return [_score(settings.score, one.exact, one.f1) if one else _score(settings.score, 0.0, 0.0) for one in each]

    return hotpotqa


def _score(which: str, exact: float, f1: float) -> Score:
    return Score(f1 if which == "f1" else exact, {"exact": exact, "f1": f1})
