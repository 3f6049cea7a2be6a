"""1 where the completion's number is GSM8K's, 0 where it is another one or there is none."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.mathematics import boxed
from relgrad.environments.benchmarks.numbers import equal, gsm8k_answer
from relgrad.rewards._columns import column, unscored

TOLERANCE = Decimal("1e-6")


class Settings(Strict):
    """The column holds a solution that ends in `#### 72`, or the number."""

    column: str = "answer"
    only_marked: bool = Field(False, description="as the authors score: a number counts only after `####`")


def build(settings: Settings) -> Reward:
    """A completion's answer is the number right behind a `####`, the first there is; without a mark the one in its last
    \\boxed{...}; else its last number.
    """

    def gsm8k(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "gsm8k")
        expected = gsm8k_answer(str(value)) if value is not None else None
        if expected is None:
            return [unscored(f"no number in column {settings.column!r}: {value!r}")] * len(outputs)
        answers = (_answer(output.text, settings.only_marked) for output in outputs)
        return [Score(float(answer is not None and equal(answer, expected, TOLERANCE))) for answer in answers]

    return gsm8k


def _answer(text: str, only_marked: bool) -> Decimal | None:
    inside = None if only_marked or "####" in text else boxed(text)
    return gsm8k_answer(text if inside is None else inside, only_marked)
