"""1 where the completion's last \\boxed{...} is the expected answer of MATH, 0 where it is not or there is none."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.mathematics import boxed, same
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """The column holds a solution with a box, as MATH's do, or the answer itself."""

    column: str = "solution"


def build(settings: Settings) -> Reward:
    """Answers are compared as MATH's authors do, and as numbers. The reward `math_verify` understands more of LaTeX."""

    def competition_math(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "competition_math")
        if value is None or not str(value).strip():
            return [unscored(f"no answer in column {settings.column!r}")] * len(outputs)
        inside = boxed(str(value))
        expected = str(value) if inside is None else inside
        answers = (boxed(output.text) for output in outputs)
        return [Score(float(answer is not None and same(answer, expected))) for answer in answers]

    return competition_math
