"""The evaluation suite: which metrics a recipe asks for beside the rewards, and all of them measured on what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, RewardComponent, Strict
from relgrad.evaluation.answers import Answers, Embed, EmbedTokens, SuiteMetric
from relgrad.evaluation.lexical import Distinct, SelfBleu
from relgrad.evaluation.pairwise import PairwiseSettings
from relgrad.evaluation.passing import BestOfK, PassAtK
from relgrad.evaluation.perplexity import Perplexity
from relgrad.evaluation.references import Rouge, TokenMatch, references_of
from relgrad.evaluation.semantic import SemanticDiversity

USUAL_KS = (1, 5, 10)


class PassJudge(RewardComponent):
    """A completion passes where this reward gives it at least `threshold`."""

    threshold: float = 0.5


class SuiteSettings(Strict):
    """A recipe's `evaluation.suite` section: what `relgrad compare` measures beside rewards."""

    ks: tuple[int, ...] = Field(
        (), description="k of pass@k and of best of k; none: those of 1, 5, 10 that there are completions for"
    )
    passing: PassJudge | None = Field(None, description="the pass judge: a reward's section, with a `threshold`")
    references: str | None = Field(None, description="column with the reference text, or texts")
    semantic: bool = Field(
        True, description="diversity by sentence embeddings, and BERTScore where there are references"
    )
    perplexity: bool = Field(
        False, description="under the untrained policy of the recipe; one more model pass over all texts"
    )
    encoder: Annotated[str | None, NamesFiles()] = Field(
        None, description="folder of the encoder of embeddings; null: all-MiniLM-L6-v2"
    )
    pairwise: PairwiseSettings | None = Field(None, description="a language model that compares completions in pairs")
    primary: str = Field("score", description="the figure that is tested alone, named before looking")

    @field_validator("ks")
    @classmethod
    def _counted(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in ks):
            raise ValueError(f"k is at least 1; received {', '.join(map(str, ks))}")
        return tuple(sorted(set(ks)))


@dataclass(frozen=True)
class Judges:
    """What the suite is given to judge by.

    passes        whether each output of a prompt passes; None: no pass judge
    embed, embed_tokens  the encoder; None where no figure needs it
    """

    passes: Callable[[Sequence[Answers]], list[list[bool | None]]] | None = None
    embed: Embed | None = None
    embed_tokens: EmbedTokens | None = None


def chosen_ks(settings: SuiteSettings, completions: int) -> tuple[int, ...]:
    """The k that are measured. Raises RelgradError for one that is larger than the number of completions."""
    if too_large := [k for k in settings.ks if k > completions]:
        raise RelgradError(
            f"evaluation.suite.ks: k={too_large[0]} of {completions} completions a prompt: the best of k needs at least k. Raise "
            "evaluation.num_generations, or leave this k out"
        )
    return settings.ks or tuple(k for k in USUAL_KS if k <= completions)


def measure(answers: Sequence[Answers], settings: SuiteSettings, judges: Judges) -> dict[str, list[float]]:
    """Every metric of the suite, a figure a prompt, by name, in the order in which they are shown."""
    fewest = min(len(one.texts) for one in answers)
    ks = chosen_ks(settings, fewest)
    metrics: list[SuiteMetric] = []
    if judges.passes is not None:
        verdicts = judges.passes(answers)
        metrics += [PassAtK(k, verdicts) for k in ks]
    metrics += [BestOfK(k) for k in ks]
    metrics += [SelfBleu(), Distinct(1), Distinct(2)]
    if judges.embed is not None:
        metrics.append(SemanticDiversity(judges.embed))
    if settings.references is not None:
        metrics += _of_references(answers, settings.references, judges)
    if settings.perplexity:
        metrics.append(Perplexity())
    return {metric.name: metric(answers) for metric in metrics}


def _of_references(answers: Sequence[Answers], column: str, judges: Judges) -> list[SuiteMetric]:
    """Raises RelgradError where no prompt has a reference."""
    if not any(references_of(one, column) for one in answers):
        columns = sorted({name for one in answers for name in one.prompt.columns})
        raise RelgradError(
            f"evaluation.suite.references: no prompt has a text in column {column!r}; there are {', '.join(columns) or 'none'}"
        )
    metrics: list[SuiteMetric] = [Rouge(kind, column) for kind in ("rouge1", "rouge2", "rougeL")]
    if judges.embed_tokens is not None:
        metrics.append(TokenMatch(judges.embed_tokens, column))
    return metrics


def verdicts_of(scores: Sequence[float], threshold: float) -> list[bool | None]:
    """Scores as verdicts; an unscored one is none."""
    return [None if score != score else score >= threshold for score in scores]
