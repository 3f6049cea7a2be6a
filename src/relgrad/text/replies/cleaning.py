"""What a platform leaves in texts: entities, stretched words, leading mentions; and, where asked, what points at people.

Digits are never shortened ("1,000,000" stays), and a filter word matches whole words only ("ser" does not match "user").
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence

LINK = re.compile(r"(?:https?://|www\.)\S+|\b(?:t\.co|bit\.ly)/\S+", re.IGNORECASE)
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
HANDLE = re.compile(r"(?<![\w@])@\w{2,}")
LONG_ID = re.compile(r"(?<![\w.,])\d{12,}(?![\w.,]\d|\w)")
"""A number of twelve digits or more is an account's or a post's id; the amounts that people write have commas or are shorter."""
LEADING_MENTIONS = re.compile(r"^(?:@\w+(?:\s+|$))+")
STRETCHED_LETTERS = re.compile(r"([^\W\d_])\1{3,}")
STRETCHED_SIGNS = re.compile(r"([!?.])\1{3,}")
SPACES = re.compile(r"\s+")

PLACEHOLDERS = {"link": "[link]", "email": "[email]", "handle": "@user", "id": "[id]"}
"""What stands in place of what was scrubbed."""


def clean(text: str) -> str:
    """Entities read, spaces single, four or more equal letters cut to two, four or more equal end signs to three."""
    text = SPACES.sub(" ", html.unescape(text)).strip()
    return STRETCHED_SIGNS.sub(r"\1\1\1", STRETCHED_LETTERS.sub(r"\1\1", text))


def clean_reply(text: str) -> str:
    """`clean`, without the handles that a platform puts in front of a reply."""
    return LEADING_MENTIONS.sub("", clean(text))


def scrub(text: str) -> str:
    """The text without links, e-mail addresses, handles and long ids; placeholders stand in their places."""
    for pattern, name in ((LINK, "link"), (EMAIL, "email"), (HANDLE, "handle"), (LONG_ID, "id")):
        text = pattern.sub(PLACEHOLDERS[name], text)
    return text


def pseudonym(value: str, key: str) -> str:
    """An id or a name as 16 hex digits that nobody can turn back without the key: BLAKE2b keyed with it."""
    return hashlib.blake2b(value.encode(), key=key.encode()[:64], digest_size=8).hexdigest()


def filter_of(words: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the words, whole and in any case; None for no words."""
    if not words:
        return None
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
