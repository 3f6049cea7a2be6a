"""A text as words: which of them carry meaning, and which classes they have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")
LINK = re.compile(r"(?:https?://|www\.)\S+|\b(?:t\.co|bit\.ly)/\S+|\[link\]", re.IGNORECASE)
HANDLE = re.compile(r"(?<![\w@])@\w+")
HASHTAG = re.compile(r"(?<!\w)#\w+")


@cache
def lists() -> dict[str, list[str]]:
    """The lists of words and patterns in lists.yaml, line by line."""
    content: dict[str, str] = yaml.safe_load((Path(__file__).parent / "lists.yaml").read_text(encoding="utf-8"))
    return {name: lines.strip().splitlines() for name, lines in content.items()}


@cache
def function_words() -> frozenset[str]:
    """English words that hold sentences together and mean little by themselves."""
    return frozenset(word for line in lists()["function_words"] for word in line.split())


@cache
def patterns(name: str) -> re.Pattern[str]:
    """The patterns of a list as one, in any case; groups and words as the list writes them."""
    return re.compile("|".join(f"(?:{line})" for line in lists()[name]), re.IGNORECASE)


def stem(word: str) -> str:
    """The word without a plural or verb ending, roughly: enough to see that `trees` is `tree` again."""
    for ending in ("'s", "ing", "ies", "ed", "es", "s", "er", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


@dataclass(frozen=True)
class Text:
    """A text and what is read of it once."""

    raw: str

    @cached_property
    def plain(self) -> str:
        """Without links, handles and hashtags; typographic apostrophes made plain."""
        text = self.raw.replace("’", "'")
        for pattern in (LINK, HANDLE, HASHTAG):
            text = pattern.sub(" ", text)
        return text.strip()

    @cached_property
    def words(self) -> Sequence[str]:
        """The words of the plain text in lower case."""
        return [match[0].lower() for match in WORD.finditer(self.plain)]

    @cached_property
    def content(self) -> Sequence[str]:
        """The words that carry meaning, as stems."""
        return [stem(word) for word in self.words if word not in function_words() and len(word) > 1]

    @cached_property
    def sentences(self) -> Sequence[str]:
        """The sentences, in lower case."""
        return [part.strip().lower() for part in SENTENCE_END.split(self.plain) if WORD.search(part)]

    @cached_property
    def emoji(self) -> int:
        """How many signs are pictures."""
        return sum(unicodedata.category(sign) in ("So", "Sk") for sign in self.raw)
