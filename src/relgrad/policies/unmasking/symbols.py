"""What a policy that unmasks writes in: ids of a text, a mask, and an id that ends a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt
from relgrad.text.answer import until_end
from relgrad.text.corpus import load_text
from relgrad.text.vocabulary import Vocabulary

ASCII = "\n" + "".join(map(chr, range(32, 127)))


class Symbols(Protocol):
    """A vocabulary or a tokenizer, as the policy uses it.

    mask_id, end_id  the ids of the mask and of the end of sequence, which fills what follows it
    end_ids          every id that ends a text, that one among them
    size             all ids; the network has at least so many embeddings
    fingerprint      equal for equal ones
    """

    @property
    def mask_id(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def end_ids(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def drawable_K(self) -> Tensor:
        """int64 [K], ascending: ids that may be written, the end among them."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, the mask's where it has █. Raises RelgradError for what cannot be read."""
        ...

    def example(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids of an example's prompt and of its answer, without ends behind it. Raises RelgradError as `encode` and `ids` do."""
        ...

    def ids(self, text: str, what: str) -> list[int]:
        """Ids of a text. Raises RelgradError naming `what` for what cannot be read, and for the sign of a mask."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, masks shown as █ and ends as nothing."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is needed to read it again."""
        ...


@dataclass(frozen=True)
class VocabularySymbols:
    """See Symbols: a vocabulary of this house, whose padding id ends a text and fills the positions behind it."""

    vocabulary: Vocabulary

    @property
    def mask_id(self) -> int:
        return self.vocabulary.mask_id

    @property
    def end_id(self) -> int:
        return self.vocabulary.pad_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        return (self.end_id,)

    @property
    def size(self) -> int:
        return self.vocabulary.size

    @property
    def fingerprint(self) -> str:
        return self.vocabulary.fingerprint

    @cached_property
    def drawable_K(self) -> Tensor:
        """Ordinary ids and the end."""
        return torch.tensor([*self.vocabulary.ordinary.tolist(), self.end_id])

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of plain text; those of a task of masked text as it gives them. Raises RelgradError for a chat."""
        masked_ids = prompt.columns.get("masked_ids")
        if masked_ids is not None:
            self.vocabulary.require(prompt.columns["vocabulary"], f"prompt {prompt.id}")
            return list(masked_ids)
        if not isinstance(prompt.content, str):
            raise RelgradError(f"prompt {prompt.id} is a chat; this vocabulary takes plain text")
        return self._encode(prompt.content, f"prompt {prompt.id}")

    def example(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the answer."""
        return self.encode(example.prompt), self.ids(example.target, f"the answer to prompt {example.prompt.id}")

    def ids(self, text: str, what: str) -> list[int]:
        """Ids of a text without masks."""
        encoded = self._encode(text, what)
        if self.mask_id in encoded:
            raise RelgradError(
                f"{what} holds █, which shows masks to people and is no character to read: {text[:60]!r}"
            )
        return encoded

    def _encode(self, text: str, what: str) -> list[int]:
        try:
            return self.vocabulary.encode(text)
        except RelgradError as error:
            raise RelgradError(f"{what}: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def save(self, folder: Path) -> None:
        self.vocabulary.save(folder)


def text_until_end(ids: Sequence[int], symbols: Symbols) -> tuple[str, tuple[int, ...], bool]:
    """(text up to the first end of sequence, its ids, whether there was an end)."""
    kept = min((until_end(ids, end_id) for end_id in symbols.end_ids), key=len)
    return symbols.decode(kept), tuple(kept), len(kept) < len(ids)


def make_symbols(symbols: str, text: str) -> VocabularySymbols:
    """What a recipe asks for: "ascii", "char" (the characters of `text`), "byte", a tokenizer.json or its folder."""
    if symbols == "ascii":
        return VocabularySymbols(Vocabulary.of_text(ASCII))
    return VocabularySymbols(Vocabulary.of(symbols, load_text(text) if symbols == "char" else ""))
