"""A text with holes: stretches of a corpus whose masked positions are to be filled in. Made in process, from any text.

Sample i of a split is a pure function of (seed, split, i): the same in every process, after every restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._masked_prompt import masked_prompt
from relgrad.tasks._mixes import with_mixes
from relgrad.text.corpus import BUILTIN, Windows, load_corpus
from relgrad.text.masking import Random, Stage, Strategy, in_words, mask

HELD_OUT_SEED = 11


class Settings(Strict):
    """`text` is "builtin" (Python's own help texts) or a file; `stages` are the masks, drawn by their weights, or a mix's name."""

    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    symbols: Annotated[str, NamesFiles(("char", "byte"))] = Field("char", description="char, byte, or a tokenizer.json")
    length: int = Field(128, ge=4, description="ids per sample")
    aligned: Literal["line", "window"] = "line"
    stages: tuple[Stage, ...] = Field((Random(),), min_length=1)
    held_out_stages: tuple[Stage, ...] = Field((), description="masks of the samples to judge by; empty: `stages`")
    train_size: int = Field(100_000, ge=1, description="samples per epoch")
    held_out_size: int = Field(200, ge=0, description="samples to validate by")
    test_size: int | None = Field(
        None,
        ge=0,
        description="samples to test by, from every other block of the text held out; 0: none, and all of it is to validate by; "
        "null: as many as to validate by, where the text held out is long enough to be cut in two",
    )
    held_out_fraction: float = Field(0.1, ge=0, lt=1, description="share of the text that is never trained on")

    @model_validator(mode="before")
    @classmethod
    def _mixes(cls, settings: Any) -> Any:
        return with_mixes(settings)


def load(settings: Settings, seed: int) -> Task:
    """Columns: `truth` (the text), `truth_ids`, `masked_ids`, `mask_id`, `label_ids`, `mask_ratio`, `strategy`,
    `width` (ids of a sample with its padding), `vocabulary`.

    Samples to judge by depend on the settings alone, not on `seed`: runs of several seeds are judged on the same ones. Those to
    validate and those to test by are of different blocks of the text. Raises RelgradError for a text that cannot be read, or
    one (or its held-out part) that is shorter than one window.
    """
    corpus = load_corpus(settings.text, settings.symbols, settings.held_out_fraction)
    windows = partial(Windows, vocabulary=corpus.vocabulary, length=settings.length, aligned=settings.aligned)
    train = MaskedPrompts(windows(corpus.train), settings.stages, settings.train_size, (seed, 0))
    test_size = settings.held_out_size if settings.test_size is None else settings.test_size
    if settings.test_size and not corpus.held_out:
        raise RelgradError(
            f"test_size={settings.test_size}, but no text is held out: raise held_out_fraction, give a longer text, or set "
            "test_size to 0"
        )
    facts = {"Masks": in_words(settings.stages)}
    if not corpus.held_out or not settings.held_out_size + test_size:
        return Task(f"masked-text-{settings.length}", train, (), facts=facts)
    halves = _halves(corpus.held_out, windows, settings.test_size) if test_size else [windows(corpus.held_out)]
    stages = settings.held_out_stages or settings.stages
    sizes = (settings.held_out_size, test_size)
    validation, *test = (
        list(MaskedPrompts(half, stages, size, (HELD_OUT_SEED, number)))
        for number, (half, size) in enumerate(zip(halves, sizes, strict=False), 1)
    )
    return Task(f"masked-text-{settings.length}", train, validation, test[0] if test else None, facts=facts)


def _halves(blocks: Sequence[str], windows: Callable[[Sequence[str]], Windows], test_size: int | None) -> list[Windows]:
    """Every other block to validate by and to test by; where they are too short for that, all of them to validate by.

    Raises RelgradError in place of the latter where a test part of a certain size is wanted.
    """
    try:
        return [windows(blocks[::2]), windows(blocks[1::2])]
    except RelgradError as error:
        if test_size is not None:
            raise RelgradError(
                f"test_size={test_size}: the text held out cannot be cut in two parts ({error}). Or raise held_out_fraction, or "
                "set test_size to 0"
            ) from None
    return [windows(blocks)]


class MaskedPrompts(Sequence[Prompt]):
    """`size` samples, each made when it is asked for."""

    def __init__(self, windows: Windows, stages: Sequence[Strategy], size: int, key: tuple[int, ...]) -> None:
        self.windows, self.stages, self.size, self.key = windows, tuple(stages), size, key

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        index %= self.size
        rng = np.random.default_rng([*self.key, index])
        ids = self.windows.draw(rng)
        masked, labels, stage = mask(ids, self.stages, self.windows.vocabulary, rng)
        return masked_prompt(ids, masked, labels, self.windows.vocabulary, index, stage.name, self.windows.length)
