"""The evaluation suite: which metrics a recipe asks for beside the rewards, and all of them measured on what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, RewardComponent, Strict
from relgrad.core.types import Prompt
from relgrad.evaluation.answers import Answers, Embed, EmbedTokens, SuiteMetric
from relgrad.evaluation.comparison import SCORE
from relgrad.evaluation.lexical import Distinct, SelfBleu
from relgrad.evaluation.metric import METRICS
from relgrad.evaluation.pairwise import PairwiseSettings
from relgrad.evaluation.passing import BestOfK, PassAtK
from relgrad.evaluation.perplexity import Perplexity
from relgrad.evaluation.references import Rouge, TokenMatch, references_in
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
    require_references(settings, [one.prompt for one in answers])
    fewest = min(len(one.texts) for one in answers)
    verdicts = None if judges.passes is None else judges.passes(answers)
    metrics = _metrics(settings, chosen_ks(settings, fewest), verdicts, judges)
    return {metric.name: metric(answers) for metric in metrics}


def _metrics(
    settings: SuiteSettings, ks: Sequence[int], verdicts: list[list[bool | None]] | None, judges: Judges
) -> list[SuiteMetric]:
    """The metrics in the order in which they are shown. `verdicts` None: there is no pass judge."""
    metrics: list[SuiteMetric] = [] if verdicts is None else [PassAtK(k, verdicts) for k in ks]
    metrics += [BestOfK(k) for k in ks]
    metrics += [SelfBleu(), Distinct(1), Distinct(2)]
    if judges.embed is not None:
        metrics.append(SemanticDiversity(judges.embed))
    if settings.references is not None:
        metrics += [Rouge(kind, settings.references) for kind in ("rouge1", "rouge2", "rougeL")]
        if judges.embed_tokens is not None:
            metrics.append(TokenMatch(judges.embed_tokens, settings.references))
    if settings.perplexity:
        metrics.append(Perplexity())
    return metrics


# ---------------------------------------------------------------------- before anything is drawn


def require_primary(settings: SuiteSettings, rewards: Sequence[str], completions: int) -> None:
    """Raise RelgradError where the primary figure is none that will be measured by rewards of these names."""
    verdicts: list[list[bool | None]] | None = None if settings.passing is None else []
    judges = Judges(None, _no_vectors, _no_token_vectors) if settings.semantic else Judges()
    suite = [metric.name for metric in _metrics(settings, chosen_ks(settings, completions), verdicts, judges)]
    names = [SCORE, *rewards, *(metric.name for metric in METRICS), *suite]
    if settings.primary not in names:
        raise RelgradError(
            f"evaluation.suite.primary={settings.primary!r} is no figure; there are {', '.join(dict.fromkeys(names))}"
        )


def _no_vectors(texts: Sequence[str]) -> Tensor:
    raise AssertionError("only the names of metrics are asked for")


def _no_token_vectors(texts: Sequence[str]) -> list[Tensor]:
    raise AssertionError("only the names of metrics are asked for")


def require_references(settings: SuiteSettings, prompts: Sequence[Prompt]) -> None:
    """Raise RelgradError where references are asked for and no prompt has one."""
    column = settings.references
    if column is not None and not any(references_in(prompt, column) for prompt in prompts):
        columns = sorted({name for prompt in prompts for name in prompt.columns})
        raise RelgradError(
            f"evaluation.suite.references: no prompt has a text in column {column!r}; there are {', '.join(columns) or 'none'}"
        )


def verdicts_of(scores: Sequence[float], threshold: float) -> list[bool | None]:
    """Scores as verdicts; an unscored one is none."""
    return [None if score != score else score >= threshold for score in scores]
