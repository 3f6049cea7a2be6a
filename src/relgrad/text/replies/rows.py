"""One reply a line, as JSON: what is read of it, and why a line is dropped. Nothing is dropped without being counted.

    tweet_id, tweet, reply                                       needed
    reply_id, tweet_author, reply_author                         texts
    tweet_likes, tweet_retweets, reply_likes, reply_retweets,
    reply_author_followers                                       counts, 0 or more
    reply_time_diff_seconds                                      seconds from the post to the reply
    topic, kind                                                  texts, of the built-in data set
    quality                                                      number, likewise

Other fields are left out, and counted. An id may be written as a number. A line without `reply_likes` has no engagement.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import write_atomic
from relgrad.core.whole_text import half_character
from relgrad.text.replies.cleaning import clean, clean_reply, filter_of, pseudonym, scrub

Row = dict[str, Any]

NEEDED = ("tweet_id", "tweet", "reply")
TEXTS = ("reply_id", "tweet_author", "reply_author", "tweet_created_at", "reply_created_at", "topic", "kind")
COUNTS = ("tweet_likes", "tweet_retweets", "reply_likes", "reply_retweets", "reply_author_followers")
NUMBERS = ("reply_time_diff_seconds", "quality")
LARGEST = 2**53
"""No count of likes, and no delay, is beyond it; a larger number, an infinity or NaN is a mistake."""
IDS = ("tweet_id", "reply_id", "tweet_author", "reply_author")
"""What points at people and posts, and is replaced by pseudonyms."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to the rows that are read.

    scrub         take links, handles, e-mail addresses and long ids out of texts, and replace ids and names by pseudonyms
    key           the key of the pseudonyms; equal keys give equal pseudonyms
    filter_words  replies with one of these words, whole, are dropped
    """

    scrub: bool = True
    key: str = ""
    filter_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A line that was not taken, and why."""

    line: int
    reason: str


@dataclass
class Reading:
    """What was read of a file: rows in its order, the lines that were dropped, and fields that are not known, with their count."""

    rows: list[Row] = field(default_factory=list)
    lines: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> dict[str, int]:
        """How many lines were dropped, by reason; the most frequent first."""
        return dict(Counter(each.reason for each in self.dropped).most_common())


class _Unfit(Exception):
    """Why a line is dropped."""


def read(path: Path, cleaning: Cleaning = Cleaning()) -> Reading:
    """All rows of a .jsonl file. Raises RelgradError where it is not there, is no UTF-8 text, or has no line that can be used."""
    if not path.is_file():
        raise RelgradError(f"no file {str(path)!r} (working directory {Path.cwd()})")
    try:
        reading = read_lines(path.read_text(encoding="utf-8-sig").split("\n"), cleaning)
    except UnicodeDecodeError as error:
        raise RelgradError(f"{path} is not UTF-8 text ({error}); convert it, for example with iconv") from None
    if not reading.rows:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in reading.reasons.items()) or "the file is empty"
        raise RelgradError(f"{path}: no line can be used: {reasons}")
    return reading


def read_lines(lines: Iterable[str], cleaning: Cleaning) -> Reading:
    """All rows of these lines; blank ones do not count."""
    reading = Reading()
    filter_words = filter_of(cleaning.filter_words)
    tweets: dict[str, str] = {}
    replies: set[tuple[str, str]] = set()
    ids: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        reading.lines += 1
        try:
            row = _checked(_object(line), reading.unknown)
            if filter_words is not None and filter_words.search(row["reply"]):
                raise _Unfit("a filter word in the reply")
            _once(row, tweets, replies, ids)
        except _Unfit as reason:
            reading.dropped.append(Dropped(number, str(reason)))
            continue
        reading.rows.append(scrubbed(row, cleaning.key) if cleaning.scrub else row)
    return reading


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unfit("not valid JSON") from None
    if not isinstance(value, dict):
        raise _Unfit("not a JSON object")
    if half_character(value):
        raise _Unfit("half a character in a text")
    return value


def _checked(value: dict[str, Any], unknown: Counter[str]) -> Row:
    """The row of a JSON object, its texts cleaned."""
    known = (*NEEDED, *TEXTS, *COUNTS, *NUMBERS)
    unknown.update(name for name in value if name not in known)
    for name in NEEDED:
        if value.get(name) is None:
            raise _Unfit(f"no {name}")
    row: Row = {"tweet_id": _text(value, "tweet_id"), "tweet": clean(_text(value, "tweet"))}
    row["reply"] = clean_reply(_text(value, "reply"))
    for name in NEEDED:
        if not row[name]:
            raise _Unfit(f"empty {name}")
    row |= {name: _text(value, name) for name in TEXTS if value.get(name) is not None}
    row |= {name: _number(value, name) for name in (*COUNTS, *NUMBERS) if value.get(name) is not None}
    row |= {name: _count(row[name], name) for name in COUNTS if name in row}
    return row


def _text(value: dict[str, Any], name: str) -> str:
    text = value[name]
    if isinstance(text, int) and not isinstance(text, bool) and name in IDS:
        return str(text)
    if not isinstance(text, str):
        raise _Unfit(f"{name} is no text")
    return text


def _number(value: dict[str, Any], name: str) -> float:
    number = value[name]
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= LARGEST:
        raise _Unfit(f"{name} is no number")
    return number


def _count(number: float, name: str) -> int:
    if number < 0:
        raise _Unfit(f"negative {name}")
    if number != int(number):
        raise _Unfit(f"{name} is no whole number")
    return int(number)


def _once(row: Row, tweets: dict[str, str], replies: set[tuple[str, str]], ids: set[str]) -> None:
    """Remembers the row. Raises _Unfit where its reply is there already, or its post's id belongs to another text."""
    if tweets.setdefault(row["tweet_id"], row["tweet"]) != row["tweet"]:
        raise _Unfit("tweet_id of another tweet")
    if row.get("reply_id", "") in ids:
        raise _Unfit("duplicate reply_id")
    if (row["tweet_id"], row["reply"]) in replies:
        raise _Unfit("duplicate reply")
    replies.add((row["tweet_id"], row["reply"]))
    if "reply_id" in row:
        ids.add(row["reply_id"])


def scrubbed(row: Row, key: str) -> Row:
    """The row without what points at people: texts scrubbed, ids and names as pseudonyms."""
    texts = {name: scrub(row[name]) for name in ("tweet", "reply")}
    return {**row, **texts, **{name: pseudonym(row[name], key) for name in IDS if name in row}}


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as lines of JSON, whole or not at all."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
