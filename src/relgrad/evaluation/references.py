"""Likeness to reference texts, where the prompts have any. Of several references the nearest counts; of completions, their mean.

References say how people answered, not how one should: a good answer of another kind is unlike all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.evaluation.answers import Answers, EmbedTokens


def references_of(answers: Answers, column: str) -> list[str]:
    """The references of a prompt: the text, or texts, in a column; none where it has no such column, or nothing in it."""
    return references_in(answers.prompt, column)


def references_in(prompt: Prompt, column: str) -> list[str]:
    """The texts, or the text, in a column of a prompt; none where there is no such column, or nothing in it."""
    value = prompt.columns.get(column)
    texts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return [text for text in texts if isinstance(text, str) and text.strip()]


@dataclass(frozen=True)
class Rouge:
    """ROUGE F1 (Lin 2004) by rouge-score with its stemmer: `kind` is rouge1, rouge2 or rougeL."""

    kind: str
    column: str

    @property
    def name(self) -> str:
        return f"ROUGE-{self.kind.removeprefix('rouge')}"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        score = rouge(self.kind)
        return [_mean_of_nearest(one.texts, references_of(one, self.column), score) for one in answers]


def rouge(kind: str) -> Callable[[str, str], float]:
    """(text, reference) to F1. Raises RelgradError where rouge-score is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError:
        raise RelgradError("ROUGE needs rouge-score: pip install 'relgrad[suite]'") from None
    scorer = RougeScorer([kind], use_stemmer=True)
    return lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure)


def _mean_of_nearest(texts: Sequence[str], references: Sequence[str], score: Callable[[str, str], float]) -> float:
    if not references:
        return math.nan
    return math.fsum(max(score(text, reference) for reference in references) for text in texts) / len(texts)


@dataclass(frozen=True)
class TokenMatch:
    """F1 of greedily matched token embeddings, as BERTScore (Zhang et al. 2020, arXiv:1904.09675) has it.

    With the suite's encoder, without weights by frequency and without rescaling: compare such figures with each other, not with
    those of other encoders in the literature.
    """

    embed_tokens: EmbedTokens
    column: str
    name: str = "BERTScore F1 (suite's encoder)"

    def __call__(self, answers: Sequence[Answers]) -> list[float]:
        texts = [one.texts for one in answers]
        references = [references_of(one, self.column) for one in answers]
        different = list(dict.fromkeys(text for group in (*texts, *references) for text in group))
        vectors = dict(zip(different, self.embed_tokens(different), strict=True))

        def score(text: str, reference: str) -> float:
            return matched(vectors[text], vectors[reference])

        return [_mean_of_nearest(own, refs, score) for own, refs in zip(texts, references, strict=True)]


def matched(text_TD: Tensor, reference_RD: Tensor) -> float:
    """F1 of the mean best cosine of the text's tokens (precision) and of the reference's (recall); 0 where one has no token."""
    if not len(text_TD) or not len(reference_RD):
        return 0.0
    cosine_TR = text_TD @ reference_RD.T
    precision, recall = float(cosine_TR.amax(1).mean()), float(cosine_TR.amax(0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
