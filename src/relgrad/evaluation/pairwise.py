"""A language model asked, in both orders, which of two completions is better: the question, the verdict, the rate. Pure.

A judge that prefers whatever stands first says A twice, and the two orders cancel to one half. An answer that says neither A, B nor
TIE excludes its prompt, and is counted: scored as a tie it would pull every rate to one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from relgrad.core.settings import Component, Strict
from relgrad.core.types import Message
from relgrad.evaluation.significance import sign_flip
from relgrad.evaluation.statistics import bootstrap_mean

Verdict = Literal["A", "B", "TIE"]
INSTRUCTION = "Which of the two answers to the text is better? Say one word: A, B or TIE."


class PairwiseSettings(Strict):
    """The `pairwise` section of a suite: who judges, how many prompts, and what is asked."""

    backend: Component = Field(description="a language model: a back end's section, for example `kind: endpoint`")
    prompts: int = Field(100, ge=1, description="how many prompts are judged, the first ones")
    max_tokens: int = Field(8, ge=1, description="tokens that the judge may write")
    instruction: str = INSTRUCTION


def question(instruction: str, prompt: str, first: str, second: str) -> tuple[Message, ...]:
    """What the judge is asked."""
    text = f"{instruction}\n\n[Text]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n[Verdict]"
    return ({"role": "user", "content": text},)


def verdict(text: str) -> Verdict | None:
    """What an answer says: its first word, without what stands around it; None where that is no verdict."""
    words = text.split()
    word = words[0].strip("[](){}*_`\"'.,:;!#").upper() if words else ""
    return {"A": "A", "B": "B", "TIE": "TIE"}.get(word)  # type: ignore[return-value]


def preference(forward: Verdict | None, backward: Verdict | None) -> float:
    """How far the second of two is preferred, 0 to 1, of the verdicts with it as B and as A; NaN where one of them is none."""
    if forward is None or backward is None:
        return math.nan
    return ({"A": 0.0, "TIE": 0.5, "B": 1.0}[forward] + {"A": 1.0, "TIE": 0.5, "B": 0.0}[backward]) / 2


def summary(preferences: Sequence[Sequence[float]], failed: int) -> dict[str, Any]:
    """The rate at which the second is preferred, with its interval over prompts and the p-value of one half, and what was excluded.

    `preferences` has one prompt's pairs, of one training each, in a row: a prompt counts by their mean. `unparsed`, `failed` and
    `decided` are of pairs; `failed` ones had no answer at all, and are NaN among the preferences too.
    """
    pairs = [value for row in preferences for value in row]
    judged = [value for value in pairs if not math.isnan(value)]
    rows = ([value for value in row if not math.isnan(value)] for row in preferences)
    means = [math.fsum(row) / len(row) for row in rows if row]
    interval = bootstrap_mean(means)
    return {
        "rate": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p": sign_flip([value - 0.5 for value in means]),
        "prompts": len(means),
        "unparsed": len(pairs) - len(judged) - failed,
        "failed": failed,
        "decided": sum(value in (0.0, 1.0) for value in judged) / len(judged) if judged else math.nan,
    }
