"""Word validity: of the words that the completion refilled a position of, the share that is in a lexicon.

A word is a run of letters, with apostrophes inside, lower-cased; `don’t` and `don't` are one word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored
from relgrad.rewards._decisions import decisions
from relgrad.text.corpus import BUILTIN, load_text
from relgrad.text.vocabulary import Vocabulary

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
TEXT = "text"


class Settings(Strict):
    """Which words are valid, and how positions and characters belong together.

    lexicon     "text": the words of the corpus `text`; or the path of a word list, one per line
    min_count   how often a word of the corpus must occur in it
    symbols     the task's, which says what characters a position has
    skip_edges  leave out words that touch the start or the end of the completion, where a window may have cut them
    """

    lexicon: Annotated[str, NamesFiles((TEXT,))] = TEXT
    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    min_count: int = Field(1, ge=1)
    symbols: Annotated[str, NamesFiles(("char", "byte"))] = "char"
    skip_edges: bool = False

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.lexicon != TEXT and self.min_count > 1:
            raise ValueError(f"min_count={self.min_count} counts the words of a text; a word list has each word once")
        return self


def build(settings: Settings) -> Reward:
    """Scores are in [0, 1]; the part `words` is how many words were judged.

    A decision scores its word's validity (the mean, where an id reaches into several words). One outside of words
    scores the completion's own mean, which neither helps nor harms it. A completion whose refilled positions touch no
    word is unscored. Raises RelgradError for a lexicon that cannot be read or has no word.
    """
    lexicon = read_lexicon(settings)
    vocabulary = None if settings.symbols == "char" else Vocabulary.of(settings.symbols, "")

    def score(output: Output, spans: Sequence[tuple[int, int]]) -> Score:
        valid: list[bool] = []
        word_at: list[int | None] = [None] * len(output.text)
        for match in WORD.finditer(output.text):
            if settings.skip_edges and (match.start() == 0 or match.end() == len(output.text)):
                continue
            word_at[match.start() : match.end()] = [len(valid)] * len(match[0])
            valid.append(_plain(match[0]) in lexicon)
        touched = [{word for word in word_at[start:stop] if word is not None} for start, stop in spans]
        judged = set().union(*touched)
        if not judged:
            return unscored("the refilled positions touch no word")
        value = _mean(valid, judged)
        own = tuple(_mean(valid, words) if words else value for words in touched)
        return Score(value, {"words": float(len(judged))}, per_decision=own)

    def words(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        positions = decisions(prompt, outputs, "words")
        if vocabulary is not None:
            vocabulary.require(column(prompt, "vocabulary", "words"), f"prompt {prompt.id}")
        return [score(output, _spans(output, positions, vocabulary)) for output in outputs]

    return words


def read_lexicon(settings: Settings) -> frozenset[str]:
    """The valid words. Raises RelgradError for a file that cannot be read, or holds no word."""
    if settings.lexicon == TEXT:
        count = Counter(words_of(load_text(settings.text)))
        words = frozenset(word for word, times in count.items() if times >= settings.min_count)
        source = f"text={settings.text!r} has no word that occurs min_count={settings.min_count} times"
    else:
        path = Path(settings.lexicon)
        if not path.is_file():
            raise RelgradError(
                f"reward 'words': lexicon={settings.lexicon!r}: no such file (working directory {Path.cwd()}); "
                f"or use {TEXT!r}, the words of `text`"
            )
        try:
            words = frozenset(words_of(path.read_text(encoding="utf-8-sig")))
        except UnicodeDecodeError as error:
            raise RelgradError(f"reward 'words': {path} is not UTF-8 text ({error}); convert it with iconv") from None
        source = f"lexicon={settings.lexicon!r} has no word"
    if not words:
        raise RelgradError(f"reward 'words': the lexicon is empty: {source}")
    return words


def words_of(text: str) -> Iterator[str]:
    """The words of a text in order, as the lexicon has them."""
    return (_plain(match[0]) for match in WORD.finditer(text))


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


def _mean(valid: Sequence[bool], words: set[int]) -> float:
    return sum(valid[word] for word in words) / len(words)


def _spans(output: Output, positions: Sequence[int], vocabulary: Vocabulary | None) -> list[tuple[int, int]]:
    """(start, stop) in the completion's text of the characters that each position has a part in.

    Position i of a character vocabulary has character i. In general an id's characters are those that are settled by it:
    decoding the first i ids agrees with the text up to some character, decoding one more up to a later one. An id that
    settles nothing by itself (a byte of a longer character) belongs to what is settled next.
    """
    if vocabulary is None:
        if len(output.text) != len(output.ids):
            raise RelgradError(
                f"reward 'words': symbols='char', but a completion has {len(output.ids)} ids and {len(output.text)} "
                "characters; set the reward's symbols to the task's"
            )
        return [(position, position + 1) for position in positions]
    settled = [_agree(vocabulary.decode(output.ids[:i]), output.text) for i in range(len(output.ids))]
    settled.append(len(output.text))
    return [(settled[p], next((s for s in settled[p + 1 :] if s > settled[p]), settled[p])) for p in positions]


def _agree(start: str, text: str) -> int:
    """How many characters two texts have in common from the start."""
    if text.startswith(start):
        return len(start)
    return next((i for i, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), min(len(start), len(text)))
