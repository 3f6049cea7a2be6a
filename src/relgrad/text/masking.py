"""Which positions of a text are hidden: random, sticky, span and line masks, mixed as stages.

A mask gives (masked ids, label ids): the label is the true id where the model is asked for it and IGNORE elsewhere. With
`bert`, a chosen position becomes the mask with probability .8, a random ordinary id with .1, and stays with .1 (Devlin et
al. 2019, arXiv:1810.04805); all three are asked for in supervised training, only masks are decisions of a policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.text.vocabulary import Vocabulary

IGNORE = -100


class Strategy(Strict):
    """What all masks share: `weight` is the share of the samples that get this mask, among its stages."""

    weight: float = Field(1.0, gt=0)
    bert: bool = Field(False, description="80 % mask, 10 % a random id, 10 % unchanged")

    @property
    def name(self) -> str:
        """The `type` of a built-in mask, or the class's name."""
        return type(self).__name__.lower()

    def choose(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        """bool, shape of `ids`: the hidden positions."""
        raise NotImplementedError


class Random(Strategy):
    """Independent positions; the ratio is uniform between `min_masked_ratio` and `max_masked_ratio`."""

    type: Literal["random"] = "random"
    min_masked_ratio: float = Field(0.0, ge=0, le=1)
    max_masked_ratio: float = Field(0.3, gt=0, le=1)

    @model_validator(mode="after")
    def _legal(self) -> Random:
        if self.min_masked_ratio > self.max_masked_ratio:
            raise ValueError(
                f"min_masked_ratio={self.min_masked_ratio} exceeds max_masked_ratio={self.max_masked_ratio}"
            )
        return self

    def choose(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        return rng.random(len(ids)) < rng.uniform(self.min_masked_ratio, self.max_masked_ratio)


class Sticky(Strategy):
    """Masks that cluster: in rounds, a position is hidden with `p2_probability` next to a hidden one, else `p1_probability`."""

    type: Literal["sticky"] = "sticky"
    target_masked_ratio: float = Field(0.4, gt=0, le=1)
    p1_probability: float = Field(0.1, ge=0.001, le=1)
    p2_probability: float = Field(0.5, ge=0.001, le=1)

    def choose(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        hidden = np.zeros(len(ids), dtype=bool)
        target = int(np.ceil(self.target_masked_ratio * len(ids)))
        while hidden.sum() < target:
            beside = np.zeros(len(ids), dtype=bool)
            beside[1:] |= hidden[:-1]
            beside[:-1] |= hidden[1:]
            hidden |= rng.random(len(ids)) < np.where(beside, self.p2_probability, self.p1_probability)
        too_many = np.flatnonzero(hidden)
        hidden[rng.permutation(too_many)[: len(too_many) - target]] = False
        return hidden


class Span(Strategy):
    """`spans_count` stretches between sorted random cuts."""

    type: Literal["span"] = "span"
    spans_count: int = Field(5, ge=1)

    def choose(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        hidden = np.zeros(len(ids), dtype=bool)
        cuts = np.sort(rng.integers(0, len(ids) + 1, size=2 * self.spans_count))
        for first, last in zip(cuts[::2], cuts[1::2], strict=True):
            hidden[first:last] = True
        return hidden


class Line(Strategy):
    """Whole lines, a share of them uniform between `min_ratio` and `max_ratio` (at least one)."""

    type: Literal["line"] = "line"
    min_ratio: float = Field(0.1, ge=0, le=1)
    max_ratio: float = Field(0.4, gt=0, le=1)

    @model_validator(mode="after")
    def _legal(self) -> Line:
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio={self.min_ratio} exceeds max_ratio={self.max_ratio}")
        return self

    def choose(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
        ends = np.array(["\n" in vocabulary.decode([i]) for i in ids.tolist()], dtype=bool)
        number = np.concatenate([[0], np.cumsum(ends)[:-1]]) if len(ids) else np.zeros(0, dtype=int)
        lines = np.unique(number[~ends]) if (~ends).any() else np.unique(number)
        share = rng.uniform(self.min_ratio, self.max_ratio)
        chosen = rng.permutation(lines)[: max(1, round(share * len(lines)))]
        return np.isin(number, chosen) & ~ends


def in_words(stages: Sequence[Strategy]) -> str:
    """Masks for people: "random (min_masked_ratio 0.1, max_masked_ratio 0.4)", several with their shares of the samples."""
    total = sum(stage.weight for stage in stages)
    words = []
    for stage in stages:
        values = stage.model_dump(exclude={"type", "weight", "bert"})
        share = f"{stage.weight / total:.0%} " if len(stages) > 1 else ""
        swapped = ", a tenth swapped" if stage.bert else ""
        name = stage.model_dump().get("type", type(stage).__name__)
        words.append(f"{share}{name} ({', '.join(f'{key} {value:g}' for key, value in values.items())}{swapped})")
    return "; ".join(words)


Stage = Annotated[Random | Sticky | Span | Line, Field(discriminator="type")]
"""One mask with its settings, as a recipe writes it: {type: random, max_masked_ratio: 0.3}."""


def mask(
    ids: np.ndarray, stages: Sequence[Strategy], vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Strategy]:
    """(masked ids, label ids, the stage drawn). At least one position is hidden."""
    weight = np.array([s.weight for s in stages])
    stage = stages[int(rng.choice(len(stages), p=weight / weight.sum()))]
    can_be_hidden = ~np.isin(ids, vocabulary.excluded)  # what cannot be written cannot be asked for
    if not can_be_hidden.any():
        raise RelgradError(
            f"a sample of special entries only: {vocabulary.decode(ids.tolist())[:60]!r}; clean the text"
        )
    hidden = stage.choose(ids, vocabulary, rng) & can_be_hidden
    if not hidden.any():
        hidden[rng.choice(np.flatnonzero(can_be_hidden))] = True
    masked = np.where(hidden, vocabulary.mask_id, ids)
    if stage.bert:
        chosen = np.flatnonzero(hidden)
        fate = rng.random(len(chosen))
        fate[rng.integers(len(chosen))] = 0.0  # one of them is a mask in any case, so that there is a decision
        masked[chosen[fate >= 0.9]] = ids[chosen[fate >= 0.9]]
        swapped = chosen[(fate >= 0.8) & (fate < 0.9)]
        masked[swapped] = rng.choice(vocabulary.ordinary, size=len(swapped))
    return masked, np.where(hidden, ids, IGNORE), stage
