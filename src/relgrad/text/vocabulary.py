"""Text to ids and back, with a mask, a padding and a summary id that no generator may write.

Ordinary ids are 0 .. base - 1: sorted characters, the 256 bytes, or the entries of a given tokenizer. The special ones
follow: MASK = base, PAD = base + 1, CLS = base + 2. `excluded` also names special entries inside a given tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from relgrad.core.errors import RelgradError
from relgrad.core.whole_text import half_character

FILE = "vocabulary.json"
BLANK = "█"
"""How a masked position is shown to people, and written by them."""

Kind = Literal["char", "byte", "tokenizer"]


@dataclass(frozen=True)
class Vocabulary:
    """`symbols`: the characters in id order (kind "char"); `tokenizer`: the text of a tokenizer.json (kind "tokenizer")."""

    kind: Kind
    symbols: tuple[str, ...] = ()
    tokenizer: str = ""

    # ------------------------------------------------------------------ making one

    @staticmethod
    def of_text(text: str) -> Vocabulary:
        """All characters of a text, sorted. Raises RelgradError when the text holds the sign that shows a mask."""
        _refuse_blanks(text)
        return Vocabulary("char", tuple(sorted(set(text))))

    @staticmethod
    def of(symbols: str, text: str) -> Vocabulary:
        """What a recipe's `symbols` asks for: "char" (the characters of `text`), "byte", or a tokenizer.json (or its folder)."""
        _refuse_blanks(text)
        if symbols == "char":
            return Vocabulary.of_text(text)
        if symbols == "byte":
            return Vocabulary("byte")
        path = Path(symbols) / "tokenizer.json" if Path(symbols).is_dir() else Path(symbols)
        if not path.is_file():
            raise RelgradError(f'symbols={symbols!r}: "char", "byte", or the path of a tokenizer.json or its folder')
        try:
            vocabulary = Vocabulary("tokenizer", tokenizer=path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RelgradError(f"{path}: not a tokenizer.json, which is UTF-8 text ({error})") from None
        vocabulary._library  # noqa: B018  a file that is no tokenizer is refused here
        return vocabulary

    @cached_property
    def _library(self) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.tokenizer)
        except Exception as error:
            raise RelgradError(f"not a tokenizer.json of the tokenizers library: {error}") from None

    @cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    # ------------------------------------------------------------------ ids

    @cached_property
    def base(self) -> int:
        """The number of ordinary ids."""
        if self.kind == "tokenizer":
            return 1 + max(
                self._library.get_vocab(with_added_tokens=True).values()
            )  # there may be unused ids in between
        return 256 if self.kind == "byte" else len(self.symbols)

    @property
    def mask_id(self) -> int:
        return self.base

    @property
    def pad_id(self) -> int:
        return self.base + 1

    @property
    def cls_id(self) -> int:
        return self.base + 2

    @property
    def size(self) -> int:
        """All ids, special ones included."""
        return self.base + 3

    @cached_property
    def excluded(self) -> tuple[int, ...]:
        """Ids that are never generated: the special ones, and a given tokenizer's own special entries."""
        own: Iterable[int] = ()
        if self.kind == "tokenizer":
            own = (i for i, added in self._library.get_added_tokens_decoder().items() if added.special)
        return (*sorted(own), self.mask_id, self.pad_id, self.cls_id)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """Every id that may be written, ascending."""
        return np.setdiff1d(np.arange(self.base), self.excluded)

    # ------------------------------------------------------------------ text

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `BLANK` becomes the mask. Raises RelgradError naming the characters that are not in the vocabulary."""
        ids: list[int] = []
        for number, piece in enumerate(text.split(BLANK)):
            if number:
                ids.append(self.mask_id)
            ids += self._encode(piece)
        return ids

    def _encode(self, text: str) -> list[int]:
        if wrong := half_character(text):
            raise RelgradError(f"a text has {wrong}; write the whole character. It begins {text[:40]!a}")
        if self.kind == "byte":
            return list(text.encode("utf-8"))
        if self.kind == "tokenizer":
            return list(self._library.encode(text, add_special_tokens=False).ids) if text else []
        try:
            return [self._index[c] for c in text]
        except KeyError:
            foreign = sorted(set(text) - set(self.symbols))
            shown = " ".join(f"{c!r} (U+{ord(c):04X})" for c in foreign[:8])
            at = min(text.index(c) for c in foreign)
            raise RelgradError(
                f"{len(foreign)} characters are not in the vocabulary of {self.base}: {shown}; the first at {at}, in "
                f"{text[max(0, at - 20) : at + 20]!r}. Remove them, or make the vocabulary of a text that has them"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; a mask is shown as `BLANK`, padding and the summary id as nothing."""
        if self.kind == "char":
            return "".join(self.decode_each(ids))
        pieces, run = [], list[int]()
        for i in [*ids, self.mask_id]:
            if i < self.base:
                run.append(i)
                continue
            pieces.append(self._decode(run) + (BLANK if i == self.mask_id else ""))
            run = []
        return "".join(pieces)[: -len(BLANK)]

    def decode_each(self, ids: Sequence[int]) -> Iterator[str]:
        """The text of each id of a vocabulary of characters, as `decode` has it."""
        return (self.symbols[i] if i < self.base else BLANK if i == self.mask_id else "" for i in ids)

    def _decode(self, ids: list[int]) -> str:
        if self.kind == "byte":
            return bytes(ids).decode("utf-8", errors="replace")
        return str(self._library.decode(ids, skip_special_tokens=False)) if ids else ""

    # ------------------------------------------------------------------ identity and disk

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal vocabularies, in every process."""
        return hashlib.sha256(repr((self.kind, self.symbols, self.tokenizer)).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.kind} vocabulary of {self.base} ({self.fingerprint})"

    def require(self, fingerprint: str, what: str) -> None:
        """Raise RelgradError when `what` was made with another vocabulary."""
        if fingerprint != self.fingerprint:
            raise RelgradError(
                f"{what} was made with another vocabulary ({fingerprint}) than this one: {self}. Use the same `text` and "
                "`symbols` for both"
            )

    def save(self, folder: Path) -> None:
        """Write `vocabulary.json`."""
        plain = {"kind": self.kind, "symbols": list(self.symbols), "tokenizer": self.tokenizer}
        (folder / FILE).write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Vocabulary:
        """Read `vocabulary.json`. Raises RelgradError where there is none, or not a whole one."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise RelgradError(f"{folder}: no {FILE}; give the folder of a generator, a judge or prepared data")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            kind, symbols, tokenizer = plain["kind"], plain["symbols"], plain["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise RelgradError(
                f"{path}: not a vocabulary, or cut off ({type(error).__name__}: {error}). Copy it again from where it was made"
            ) from None
        if kind not in get_args(Kind) or not isinstance(tokenizer, str) or not _characters(symbols):
            raise RelgradError(f"{path}: not a vocabulary: kind {kind!r} with symbols or a tokenizer of another form")
        return Vocabulary(kind, tuple(symbols), tokenizer)


def _characters(symbols: Any) -> bool:
    """Whether it is a list of single characters."""
    return isinstance(symbols, list) and all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols)


def _refuse_blanks(text: str) -> None:
    if BLANK in text:
        raise RelgradError(f"the text holds {BLANK!r} at {text.index(BLANK)}, which shows masked positions: replace it")
