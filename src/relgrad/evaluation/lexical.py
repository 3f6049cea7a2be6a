"""Diversity of a prompt's completions by their words; within a prompt, since pooled over prompts it is that of the topics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from relgrad.core.errors import RelgradError
from relgrad.evaluation.answers import Answers


@dataclass(frozen=True)
class SelfBleu:
    """How much a prompt's completions repeat each other: BLEU of each against the others, in [0, 1]; lower is more diverse.

    Zhu et al. 2018 (Texygen), with sacrebleu's sentence BLEU (13a tokens, exponential smoothing, effective order). NaN for fewer
    than two completions that have text.
    """

    name: str = "self-BLEU"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        bleu = _bleu()
        return [self_bleu(one.texts, bleu) for one in answers]


def self_bleu(texts: Sequence[str], bleu: object = None) -> float:
    """See SelfBleu."""
    texts = [text for text in texts if text.strip()]
    if len(texts) < 2:
        return math.nan
    scorer = _bleu() if bleu is None else bleu
    scores = [
        scorer.sentence_score(text, [other for j, other in enumerate(texts) if j != i]).score  # type: ignore[attr-defined]
        for i, text in enumerate(texts)
    ]
    return math.fsum(scores) / len(scores) / 100


def _bleu() -> object:
    """sacrebleu's scorer. Raises RelgradError where it is not installed."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise RelgradError("self-BLEU needs sacrebleu: pip install 'relgrad[suite]'") from None
    return BLEU(effective_order=True)


@dataclass(frozen=True)
class Distinct:
    """The share of different n-grams of words among all of a prompt's completions; higher is more diverse.

    Li et al. 2016 (arXiv:1510.03055). It falls with the number and the length of the completions: compare equal numbers, and look
    at the length beside it. NaN where there is no n-gram.
    """

    n: int

    @property
    def name(self) -> str:
        return f"distinct-{self.n}"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        return [distinct(one.texts, self.n) for one in answers]


def distinct(texts: Sequence[str], n: int) -> float:
    """See Distinct."""
    grams = [
        tuple(words[start : start + n])
        for words in (text.lower().split() for text in texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else math.nan
