"""Answers of a few words, by the words that they share with the expected ones.

hotpotqa  the official script's exact match and F1 (Yang et al. 2018, https://github.com/hotpotqa/hotpot)
drop      the official script's exact match and F1 over sets of spans (Dua et al. 2019,
          https://github.com/allenai/allennlp-reading-comprehension, drop_eval.py)
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import optimize  # type: ignore[import-untyped]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ALL_OR_NOTHING = ("yes", "no", "noanswer")


@dataclass(frozen=True)
class Overlap:
    """Exact match (0 or 1) and F1, both in [0, 1]."""

    exact: float
    f1: float


# ---------------------------------------------------------------------- HotpotQA


def plain(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def hotpotqa(answer: str, expected: str) -> Overlap:
    """F1 of the words that both have; a yes, no or noanswer on one side shares nothing with anything else."""
    a, b = plain(answer), plain(expected)
    exact = float(a == b)
    if a != b and (a in ALL_OR_NOTHING or b in ALL_OR_NOTHING):
        return Overlap(0.0, 0.0)
    answer_words, right = a.split(), b.split()
    shared = sum((Counter(answer_words) & Counter(right)).values())
    if not shared:
        return Overlap(exact, 0.0)
    return Overlap(exact, _f1(shared / len(answer_words), shared / len(right)))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ---------------------------------------------------------------------- DROP


def drop(answer: Sequence[str], expected: Sequence[str]) -> Overlap:
    """Spans against spans: exact where both are the same, F1 by the assignment that is best on the whole.

    F1 is over all spans of the longer side, and rounded to two digits, as the official script has it.
    """
    answer_spans, right = [_normal(span) for span in answer], [_normal(span) for span in expected]
    exact = float(set(answer_spans) == set(right) and len(answer_spans) == len(right))
    return Overlap(
        exact,
        round(float(numpy.mean(_aligned([set(s.split()) for s in answer_spans], [set(s.split()) for s in right]))), 2),
    )


def drop_best(answer: Sequence[str], alternatives: Sequence[Sequence[str]]) -> Overlap:
    """The best exact match and the best F1 over what several people answered; empty answers do not count."""
    each = [drop(answer, expected) for expected in alternatives if expected and expected[0].strip()]
    return Overlap(max((one.exact for one in each), default=0.0), max((one.f1 for one in each), default=0.0))


def _normal(span: str) -> str:
    """Word by word (hyphens divide words): lower case, no punctuation but in numbers, numbers as floats, no articles."""
    words = (_normal_word(word) for word in re.split(" |-", span.lower()))
    return " ".join(word for word in words if word)


def _normal_word(word: str) -> str:
    word = word if _is_number(word) else word.translate(PUNCTUATION)
    word = str(float(word)) if _is_number(word) else word
    return " ".join(ARTICLES.sub(" ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _aligned(answer_spans: list[set[str]], right: list[set[str]]) -> numpy.ndarray:
    """F1 of every expected span with the span it is assigned to, [max(spans)]; 0 for those without a partner."""
    scores = numpy.zeros((len(right), len(answer_spans)))
    for row, expected in enumerate(right):
        for column, span in enumerate(answer_spans):
            if _numbers_agree(expected, span):
                scores[row, column] = _bag_f1(span, expected)
    best = numpy.zeros(max(len(right), len(answer_spans), 1))
    rows, columns = optimize.linear_sum_assignment(-scores)
    best[rows] = scores[rows, columns]
    return best


def _numbers_agree(expected: set[str], span: set[str]) -> bool:
    """Spans with numbers share nothing unless they share a number."""
    numbers = {word for word in expected if _is_number(word)}
    return not numbers or bool(numbers & span)


def _bag_f1(span: set[str], expected: set[str]) -> float:
    shared = len(span & expected)
    return _f1(shared / len(span) if span else 1.0, shared / len(expected) if expected else 1.0)
