"""1 where the completion's mathematical answer equals the expected one, as math-verify judges it (LaTeX or numbers).

`\\frac{1}{2}`, `0.5` and `\\boxed{1/2}` are the same answer. https://github.com/huggingface/Math-Verify
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """The column holds the expected answer, in LaTeX (`$...$`) or plain."""

    column: str = "answer"


def build(settings: Settings) -> Reward:
    """A row whose expected answer cannot be parsed is unscored; a completion without a readable answer scores 0.

    math-verify's own time-outs are off, which take what they interrupt for a wrong answer and need the main thread; the reward
    time-out stands in for them.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise RelgradError("reward math_verify needs math-verify; pip install 'relgrad[math]'") from None
    for name in ("parser", "grader"):
        logging.getLogger(f"math_verify.{name}").setLevel(
            logging.ERROR
        )  # it warns at every call that time-outs are off

    def math_verify(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        value = column(prompt, settings.column, "math_verify")
        gold = parse(str(value), parsing_timeout=None) if value is not None else []
        if not gold:
            return [unscored(f"math-verify cannot parse column {settings.column!r}: {value!r}")] * len(outputs)
        answers = [parse(output.text, parsing_timeout=None) for output in outputs]
        return [Score(float(verify(gold, answer, timeout_seconds=None))) for answer in answers]

    return math_verify
