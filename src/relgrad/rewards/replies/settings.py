"""What of a reply counts how much, and the bands in which it counts whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from relgrad.core.settings import Strict


def _rising(band: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if list(band) != sorted(band):
        raise ValueError(f"a band is four numbers that do not fall: 0 up to the first, 1 from the second to the third, 0 from the "
                         f"fourth; received {list(band)}")  # fmt: skip
    return band


def _apart(ramp: tuple[float, float]) -> tuple[float, float]:
    if ramp[0] == ramp[1]:
        raise ValueError(
            f"a ramp is two different numbers: where the gate is shut and where it is open; received {list(ramp)}"
        )
    return ramp


Band = Annotated[tuple[float, float, float, float], AfterValidator(_rising)]
"""0 up to the first number, rising to 1 at the second, 1 up to the third, falling to 0 at the fourth."""
Ramp = Annotated[tuple[float, float], AfterValidator(_apart)]
"""0 at the first number and beyond, 1 at the second and beyond, straight between them; it may rise or fall."""


def within(value: float, band: tuple[float, float, float, float]) -> float:
    """The height of a band's trapezoid at a value, in [0, 1]; where two corners are one, its edge is 1."""
    low, from_, to, high = band
    if from_ <= value <= to:
        return 1.0
    if value < from_:
        return (value - low) / (from_ - low) if value > low else 0.0
    return (high - value) / (high - to) if value < high else 0.0


def ramped(value: float, ramp: tuple[float, float]) -> float:
    """The height of a ramp at a value, in [0, 1]."""
    shut, open_ = ramp
    return min(max(0.0, (value - shut) / (open_ - shut)), 1.0)


class Weights(Strict):
    """How much each part counts; they are divided by their sum."""

    relevance: float = Field(0.30, ge=0)
    length: float = Field(0.15, ge=0)
    sentiment: float = Field(0.15, ge=0)
    diversity: float = Field(0.10, ge=0)
    punctuation: float = Field(0.10, ge=0)
    engagement: float = Field(0.20, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Weights:
        if not sum(self.model_dump().values()):
            raise ValueError("all weights are 0; give a part a weight")
        return self


class Bands(Strict):
    """Where each part is whole. `sentiment` is a ramp of the distance of two sentiments, `specific` one of new content words."""

    relevance: Band = Field((0.0, 0.35, 0.75, 1.0), description="cosine of post and reply")
    length: Band = Field((5, 50, 180, 400), description="characters")
    sentiment: Ramp = Field((2.0, 0.0), description="distance of the VADER compounds of post and reply, 0 to 2")
    diversity: Band = Field((0.3, 0.75, 1.0, 1.0), description="distinct words / words")
    punctuation: Band = Field((-0.02, 0.01, 0.08, 0.2), description="share of the signs .,!? of all characters")
    specific: Ramp = Field((0.0, 5.0), description="engagement: content words that the post does not have")
    specific_share: float = Field(0.7, ge=0, le=1, description="what it counts in engagement")
    question_share: float = Field(0.2, ge=0, le=1, description="what a question counts in engagement")
    sentences_share: float = Field(0.1, ge=0, le=1, description="what two sentences or more count in engagement")

    @model_validator(mode="after")
    def _whole(self) -> Bands:
        total = self.specific_share + self.question_share + self.sentences_share
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"specific_share, question_share and sentences_share add up to {total:g}; they must add up to 1"
            )
        return self


class Gates(Strict):
    """Where each gate is shut (0) and open (1). The sum of the parts is multiplied by all of them; null leaves a gate out."""

    blank: Ramp | None = Field((1, 5), description="words")
    long: Ramp | None = Field((700, 350), description="characters")
    relevant: Ramp | None = Field((0.0, 0.08), description="cosine of post and reply")
    copied: Ramp | None = Field((0.25, 0.6), description="share of the content words that the post does not have")
    repeated: Ramp | None = Field(
        (0.5, 0.8),
        description="distinct / all: of the words in the poorest 20 in a row, or of all three words in a row, whichever is less",
    )
    language: Ramp | None = Field((0.12, 0.28), description="share of the words that are English function words")
    order: Ramp | None = Field((0.25, 0.5), description="how much likelier the words are in this order, nats per word")
    shuffled: Ramp | None = Field((0.8, 0.52), description="how sure the probe is that the words stand in no order")
    intent: Ramp | None = Field(
        (0.65, 0.43), description="how sure the probe is of promotion, machine talk or abuse, together"
    )
    abusive: Ramp | None = Field((1, 0), description="abusive words")
    spam: Ramp | None = Field(
        (1, 0), description="links, phrases of promotion, and handles and hashtags beyond the first"
    )
    machine: Ramp | None = Field((1, 0), description="tags, prefaces and words to a judge, which no person writes")
    stock: Ramp | None = Field((0, 4), description="content words beside stock phrases")
    signs: Ramp | None = Field((0.25, 0.1), description="share of the characters that are pictures")
    shouting: Ramp | None = Field((0.6, 0.3), description="share of the letters that are capitals")
