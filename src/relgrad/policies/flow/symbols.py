"""What a flow policy writes in: a vocabulary's ordinary ids, an end of sequence and, where the source is the mask, a mask.

    char, byte    ordinary ids 0 .. base - 1, end = base                                        mask = base + 1
    tokenizer     its entries; the end is its own end-of-text entry, or base where it has none  mask = the next id

This is the layout of FS-DFM's files: GPT-2's 50,257 entries end in <|endoftext|>, and a mask is one row more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.networks.causal import load as causal
from relgrad.text.answer import until_end
from relgrad.text.corpus import load_text
from relgrad.text.vocabulary import Vocabulary

ASCII = "\n" + "".join(map(chr, range(32, 127)))


@dataclass(frozen=True)
class Symbols:
    """A vocabulary, the id that ends a text, and whether there is a mask."""

    vocabulary: Vocabulary
    end_id: int
    masked: bool

    @property
    def tokens(self) -> int:
        """Ids without the mask."""
        return max(self.vocabulary.base, self.end_id + 1)

    @property
    def mask_id(self) -> int | None:
        return self.tokens if self.masked else None

    @property
    def size(self) -> int:
        """Rows of the embedding: all ids, the mask included."""
        return self.tokens + self.masked

    @cached_property
    def drawable_K(self) -> Tensor:
        """int64 [K], ascending: ids that may be written: ordinary ones but a tokenizer's special entries, and the end."""
        special = set(self.vocabulary.excluded)
        return torch.tensor([i for i in range(self.tokens) if i == self.end_id or i not in special])

    @property
    def source_K(self) -> Tensor:
        """The ids over which the source is uniform: all that may be written, or the mask alone."""
        return self.drawable_K if self.mask_id is None else torch.tensor([self.mask_id])

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt. Raises RelgradError for a chat, foreign characters or the sign of a mask."""
        if not isinstance(prompt.content, str):
            raise RelgradError(f"prompt {prompt.id} is a chat; a flow policy takes plain text")
        return self.ids(prompt.content, f"prompt {prompt.id}")

    def ids(self, text: str, what: str) -> list[int]:
        """Ids of a text. Raises RelgradError naming `what` where a character is not in the vocabulary."""
        try:
            encoded = self.vocabulary.encode(text)
        except RelgradError as error:
            raise RelgradError(f"{what}: {error}") from None
        if any(i >= self.vocabulary.base for i in encoded):
            raise RelgradError(
                f"{what} holds █, which shows masks to people and is no character to read: {text[:60]!r}"
            )
        return encoded

    def text(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...], bool]:
        """(text up to the end of sequence, its ids, whether there was an end)."""
        kept = until_end(ids, self.end_id)
        return self.vocabulary.decode(kept), tuple(kept), len(kept) < len(ids)


def make_symbols(symbols: str, text: str, end_token: str | None, *, masked: bool) -> Symbols:
    """What a recipe asks for: "ascii", "char" (the characters of `text`), "byte", a tokenizer.json, its folder, or a hub name.

    Raises RelgradError for what is none of these, and for a tokenizer whose end of text is not clear.
    """
    if symbols == "ascii":
        vocabulary = Vocabulary.of_text(ASCII)
    elif symbols in ("char", "byte") or Path(symbols).exists():
        vocabulary = Vocabulary.of(symbols, load_text(text) if symbols == "char" else "")
    else:
        loaded = causal.load_tokenizer(symbols)
        vocabulary = Vocabulary("tokenizer", tokenizer=loaded.backend_tokenizer.to_str())
    return Symbols(vocabulary, _end_id(vocabulary, end_token), masked)


def _end_id(vocabulary: Vocabulary, end_token: str | None) -> int:
    if vocabulary.kind != "tokenizer":
        if end_token is not None:
            raise RelgradError(f"end_token={end_token!r} is for tokenizers; {vocabulary} has an id of its own for it")
        return vocabulary.base
    special = {vocabulary.decode([i]): i for i in vocabulary.excluded if i < vocabulary.base}
    if end_token is None and len(special) <= 1:
        return next(iter(special.values()), vocabulary.base)
    if end_token in special:
        return special[end_token]
    raise RelgradError(
        f"end_token={end_token!r}: which of the tokenizer's special entries ends a text? It has {', '.join(special) or 'none'}"
    )
