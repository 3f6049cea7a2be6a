"""A text to learn from and, apart from it, a text to judge by.

The text is cut into blocks of about BLOCK characters at paragraph ends (line ends where there are none), and a fixed
share of the blocks, spread over the whole text, is held out. No window reaches from one part into the other, so nothing
that is held out is ever seen in training. The built-in corpus is the help text every Python carries, with repeated
paragraphs removed: many of its topics quote each other, and a paragraph in both parts would be no held-out text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relgrad.core.errors import RelgradError
from relgrad.text.vocabulary import Vocabulary

BUILTIN = "builtin"
BLOCK = 4096
SPLIT_SEED = 7
"""The split belongs to the text and not to a run: the same blocks are held out whatever the run's seed."""


@dataclass(frozen=True)
class Corpus:
    """Contiguous pieces of text to train on and to hold out, and the vocabulary of the whole text."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    vocabulary: Vocabulary


def load_corpus(text: str, symbols: str = "char", held_out_fraction: float = 0.1) -> Corpus:
    """The corpus of a recipe's `text` ("builtin", or the path of a UTF-8 text file). Raises RelgradError."""
    whole = load_text(text)
    train, held_out = split(whole, held_out_fraction)
    return Corpus(train, held_out, Vocabulary.of(symbols, whole))


def load_text(text: str) -> str:
    """The text itself. Raises RelgradError for a file that is missing, empty or not UTF-8."""
    if text == BUILTIN:
        return builtin()
    path = Path(text)
    if not path.is_file():
        raise RelgradError(f"text={text!r}: no such file (working directory {Path.cwd()}); or use {BUILTIN!r}")
    try:
        whole = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise RelgradError(
            f"{path}, line {line}: not UTF-8 text ({error}); convert it, for example with iconv"
        ) from None
    if not whole.strip():
        raise RelgradError(f"{path}: no text in it ({len(whole)} characters)")
    return whole


def builtin() -> str:
    """pydoc's help topics, every paragraph once."""
    from pydoc_data.topics import topics

    used: set[str] = set()
    kept = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in used:
                used.add(words)
                kept.append(paragraph)
    return "\n\n".join(kept)


def split(text: str, held_out_fraction: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(train blocks, held-out blocks); neighbouring training blocks are joined again."""
    blocks = cut(text)
    count = round(len(blocks) * held_out_fraction) or int(held_out_fraction > 0 and len(blocks) > 1)
    chosen = set(np.random.default_rng(SPLIT_SEED).permutation(len(blocks))[:count].tolist())
    train: list[str] = []
    joined = False
    for i, block in enumerate(blocks):
        if i in chosen:
            joined = False
            continue
        if joined:
            train[-1] += block
        else:
            train.append(block)
        joined = True
    return tuple(train), tuple(blocks[i] for i in sorted(chosen))


def cut(text: str) -> list[str]:
    """Blocks of about BLOCK characters (a tenth of the text, where it is short), ending at a paragraph or line end."""
    size = min(BLOCK, max(len(text) // 10, 1))
    blocks, start = [], 0
    while start < len(text):
        stop = start + size
        if stop < len(text):
            for end in ("\n\n", "\n", " "):
                end_at = text.find(end, stop, stop + size // 2 + 1)
                if end_at >= 0:
                    stop = end_at + len(end)
                    break
        blocks.append(text[start:stop])
        start = stop
    return blocks


class Windows:
    """Stretches of encoded text to draw from: `length` ids, or whole lines that fit in as many.

    aligned   "window": any stretch of exactly `length` ids; "line": whole lines from the start of a random line that is
              not blank, as many as fit (a longer line is cut)
    """

    def __init__(self, pieces: Sequence[str], vocabulary: Vocabulary, length: int, aligned: str) -> None:
        self.length, self.aligned, self.vocabulary = length, aligned, vocabulary
        self.pieces = [np.array(vocabulary.encode(p), dtype=np.int32) for p in pieces]
        if aligned == "line":
            self.starts, self.stops = self._lines(pieces)
        else:
            room = [max(len(p) - length + 1, 0) for p in self.pieces]
            self.starts = np.array([(i, 0) for i in range(len(room))]).reshape(-1, 2)
            self.stops = np.cumsum(room)
        if len(self.stops) == 0 or int(self.stops[-1]) == 0:
            longest = max((len(p) for p in self.pieces), default=0)
            raise RelgradError(
                f"the corpus is shorter than one window: its longest stretch has {longest} ids, length={length}. "
                "Lower task.length or give a longer text"
            )

    def _lines(self, pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Per line that is not blank: (piece, first id), and how many ids of whole lines follow from there."""
        starts, lengths = [], []
        for number, piece in enumerate(pieces):
            lines = piece.splitlines(keepends=True)
            sizes = [len(self.vocabulary.encode(line)) for line in lines]
            if sum(sizes) != len(self.pieces[number]):  # a tokenizer may merge across line ends: encode line by line
                self.pieces[number] = np.array([i for line in lines for i in self.vocabulary.encode(line)], np.int32)
            first = 0
            for k, line in enumerate(lines):
                if line.strip():
                    total, after = 0, k
                    while after < len(lines) and total + sizes[after] <= self.length:
                        total, after = total + sizes[after], after + 1
                    starts.append((number, first))
                    lengths.append(total or min(sizes[k], self.length))
                first += sizes[k]
        self.sizes = np.array(lengths)
        return np.array(starts).reshape(-1, 2), np.arange(1, len(starts) + 1)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One stretch of ids."""
        place = int(rng.integers(int(self.stops[-1])))
        index = int(np.searchsorted(self.stops, place, side="right"))
        piece, first = self.starts[index]
        if self.aligned == "line":
            return self.pieces[piece][first : first + self.sizes[index]]
        first = place - (int(self.stops[index - 1]) if index else 0)
        return self.pieces[piece][first : first + self.length]
