"""A text to go on with: a prompt is a stretch of a corpus, and its target what follows there, up to a word's end.

Prompts of the text that is held out are never trained on (text/corpus.py); every other block of it is for the test.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.text.corpus import BUILTIN, load_text, split

BREAK = re.compile(r"\s+")


class Settings(Strict):
    """`text` is "builtin" (Python's own help texts) or a file; lengths are in characters, without the word that they would cut."""

    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    prompt_length: int = Field(80, ge=1, description="characters of a prompt, at most")
    length: int = Field(160, ge=1, description="characters to be written, at most")
    letters: float = Field(
        0.0, ge=0, le=1, description="least share of letters and blanks, which leaves code and tables out"
    )
    held_out_size: int = Field(200, ge=0, description="prompts to validate by, and as many to test by")
    held_out_fraction: float = Field(0.1, gt=0, lt=1, description="share of the text that is never trained on")


def load(settings: Settings, seed: int) -> Task:
    """Columns: `completion`. The prompts follow from the settings alone.

    Raises RelgradError for a text that cannot be read, or is shorter than one prompt and its continuation.
    """
    train, held_out = split(load_text(settings.text), settings.held_out_fraction)
    ids = itertools.count()
    parts = [
        _prompts(pieces, settings, most, ids)
        for pieces, most in (
            (train, None),
            (held_out[::2], settings.held_out_size),
            (held_out[1::2], settings.held_out_size),
        )
    ]
    if not parts[0]:
        raise RelgradError(
            f"task continuation: {settings.text!r} has no stretch of {settings.prompt_length} + {settings.length} characters to "
            "train on: lower prompt_length or length, or take a longer text"
        )
    learned, validation, test = parts
    return Task("continuation", learned, validation, test or None)


def _prompts(pieces: Sequence[str], settings: Settings, most: int | None, ids: Iterator[int]) -> list[Prompt]:
    """Stretches one after the other, spread over the pieces where not all are taken."""
    pairs = [pair for piece in pieces for pair in _stretches(piece, settings)]
    if most is not None and len(pairs) > most:
        pairs = [pairs[number * len(pairs) // most] for number in range(most)]
    return [Prompt(prompt, id=next(ids), columns={"completion": rest}) for prompt, rest in pairs]


def _stretches(piece: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """(prompt, what follows), runs of blanks and line ends made one blank; what is left at the end of the piece is dropped."""
    words = BREAK.split(piece.strip())
    while words:
        prompt, words = _first_words(words, settings.prompt_length)
        rest, words = _first_words(words, settings.length)
        if not prompt or not rest:  # a word that is longer than a stretch
            words = words[1:]
        elif words and all(_letters(part) >= settings.letters for part in (prompt, rest)):
            yield prompt, f" {rest}"


def _letters(text: str) -> float:
    """The share of letters and blanks."""
    return sum(character.isalpha() or character == " " for character in text) / len(text)


def _first_words(words: list[str], most: int) -> tuple[str, list[str]]:
    """(as many of the words as have `most` characters with a blank between them, those that are left)."""
    size = -1
    for number, word in enumerate(words):
        size += 1 + len(word)
        if size > most:
            return " ".join(words[:number]), words[number:]
    return " ".join(words), []
