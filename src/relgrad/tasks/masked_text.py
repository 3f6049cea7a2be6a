"""A text with holes: stretches of a corpus whose masked positions are to be filled in. Made in process, from any text.

Sample i of a split is a pure function of (seed, split, i): the same in every process, after every restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.text.corpus import BUILTIN, Windows, load_corpus
from relgrad.text.masking import Random, Stage, Strategy, mask
from relgrad.text.vocabulary import Vocabulary

HELD_OUT_SEED = 11


class Settings(Strict):
    """`text` is "builtin" (Python's own help texts) or a file; `stages` are the masks, drawn by their weights."""

    text: str = BUILTIN
    symbols: str = Field("char", description="char, byte, or a tokenizer.json")
    length: int = Field(128, ge=4, description="ids per sample")
    aligned: Literal["line", "window"] = "line"
    stages: tuple[Stage, ...] = Field((Random(),), min_length=1)
    held_out_stages: tuple[Stage, ...] = ()
    train_size: int = Field(100_000, ge=1, description="samples per epoch")
    held_out_size: int = Field(200, ge=0)
    held_out_fraction: float = Field(0.1, ge=0, lt=1, description="share of the text that is never trained on")


def load(settings: Settings, seed: int) -> Task:
    """Columns: `truth` (the text), `truth_ids`, `masked_ids`, `mask_id`, `label_ids`, `mask_ratio`, `strategy`,
    `vocabulary`.

    Held-out samples depend on the settings alone, not on `seed`: runs of several seeds are judged on the same ones.
    Raises RelgradError for a text that cannot be read or is shorter than one window.
    """
    corpus = load_corpus(settings.text, settings.symbols, settings.held_out_fraction)

    def samples(pieces: Sequence[str], stages: Sequence[Strategy], size: int, key: tuple[int, ...]) -> MaskedPrompts:
        windows = Windows(pieces, corpus.vocabulary, settings.length, settings.aligned)
        return MaskedPrompts(windows, stages, size, key)

    train = samples(corpus.train, settings.stages, settings.train_size, (seed, 0))
    held_out: Sequence[Prompt] = ()
    if settings.held_out_size and corpus.held_out:
        stages = settings.held_out_stages or settings.stages
        held_out = samples(corpus.held_out, stages, settings.held_out_size, (HELD_OUT_SEED, 1))
        held_out = [held_out[i] for i in range(settings.held_out_size)]
    return Task(f"masked-text-{settings.length}", train, held_out)


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
        return masked_prompt(ids, masked, labels, self.windows.vocabulary, index, stage)


def masked_prompt(
    ids: np.ndarray, masked: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, index: int, stage: Strategy
) -> Prompt:
    """One sample as the policy, the rewards and the judge read it."""
    columns = {
        "truth": vocabulary.decode(ids.tolist()),
        "truth_ids": ids.tolist(),
        "masked_ids": masked.tolist(),
        "mask_id": vocabulary.mask_id,
        "label_ids": labels.tolist(),
        "mask_ratio": float((masked == vocabulary.mask_id).mean()),
        "strategy": str(getattr(stage, "type", "")),
        "vocabulary": vocabulary.fingerprint,
    }
    return Prompt(vocabulary.decode(masked.tolist()), columns, index)
