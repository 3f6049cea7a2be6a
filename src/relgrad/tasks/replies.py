"""Posts to reply to: the built-in data set, or a folder that `relgrad split` filled. See text/replies.

Training is in two phases on different posts. In the first, `sft`, every reply is a row with its text in `completion`; in the
second, `grpo`, every post is one row. Validation and test have one row a post. No post is in two parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._rows import Wording, asker, content_of
from relgrad.text.replies import made
from relgrad.text.replies.rows import Cleaning, Row, read
from relgrad.text.replies.splitting import FILES, PARTS, shares_of, split

OF_REPLY = ("reply", "reply_likes", "reply_author_followers", "reply_time_diff_seconds", "quality")
"""What the column `replies` has of each reply, as far as it is known."""
TEMPLATE = "Generate an engaging Twitter reply to this tweet:\n\n{tweet}\n\nReply:"


class Settings(Wording):
    """Which posts, and which phase of training."""

    path: Annotated[Path | None, NamesFiles(within=tuple(FILES.values()))] = Field(
        None, description="a folder of `relgrad split`; null: the built-in data set"
    )
    phase: Literal["sft", "grpo"] = "grpo"
    size: int = Field(made.SIZE, ge=40, description="posts of the built-in data set, over all parts")
    data_seed: int = Field(0, ge=0, description="seed of the built-in data set and of its split")
    template: str | None = Field(TEMPLATE, description="the user's message, with {tweet} and other columns")
    chat: bool = True

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.path is not None and (self.size != made.SIZE or self.data_seed):
            raise ValueError(f"path={str(self.path)!r} has its own posts; drop size and data_seed")
        if self.template is None:
            raise ValueError("template is null; a post becomes a prompt by a template such as '{tweet}'")
        return self


def load(settings: Settings, seed: int) -> Task:
    """Columns: those of the row (`tweet`, `topic`, likes …), `completion`, `references`, all replies to the post, and `replies`,
    the same with their likes and what goes with them.

    Where a row stands for a post, it is that of its most liked reply. The parts do not depend on `seed`. Raises RelgradError
    for a folder without the four files, with a line that cannot be used, or with a post in two of them.
    """
    parts = built_in(settings.size, settings.data_seed) if settings.path is None else _read(settings.path)
    own = parts["phase1" if settings.phase == "sft" else "phase2"]
    if not own:
        raise RelgradError(f"task replies: {settings.path} has no rows to train on in phase {settings.phase!r}")
    train = _prompts(own if settings.phase == "sft" else _by_post(own), own, settings)
    validation, test = (_prompts(_by_post(parts[part]), parts[part], settings) for part in ("validation", "test"))
    facts = {"Posts": f"{len({row['tweet_id'] for part in parts.values() for row in part}):,}"}
    return Task(f"replies-{settings.phase}", train, validation, test, ask=asker(settings), facts=facts)


@lru_cache(maxsize=2)
def built_in(size: int, seed: int) -> Mapping[str, Sequence[Row]]:
    """The built-in data set by part: 45 % of the rows for each phase, 5 % to validate and 5 % to test by."""
    return split(made.rows(size, seed), shares_of(0.5, 0.05, 0.05), seed).parts


def _read(folder: Path) -> dict[str, Sequence[Row]]:
    parts: dict[str, Sequence[Row]] = {}
    homes: dict[str, str] = {}
    for part in PARTS:
        path = folder / FILES[part]
        if not path.is_file():
            raise RelgradError(f"task replies: no file {str(path)!r}; `relgrad split FILE --out {folder}` makes it")
        parts[part] = []
        if path.stat().st_size:
            reading = read(path, Cleaning(scrub=False))
            if reading.dropped:
                first = reading.dropped[0]
                raise RelgradError(f"{path}, line {first.line}: {first.reason}; split the source again")
            parts[part] = reading.rows
        for row in parts[part]:
            if (home := homes.setdefault(row["tweet_id"], part)) != part:
                raise RelgradError(f"{folder}: post {row['tweet_id']} is in {FILES[home]} and in {FILES[part]}")
    return parts


def _by_post(rows: Sequence[Row]) -> list[Row]:
    """The most liked reply of every post, the first of equal ones; in the order of the posts."""
    best: dict[str, Row] = {}
    for row in rows:
        other = best.get(row["tweet_id"])
        if other is None or row.get("reply_likes", 0) > other.get("reply_likes", 0):
            best[row["tweet_id"]] = row
    return list(best.values())


def _prompts(rows: Sequence[Row], all_rows: Sequence[Row], settings: Settings) -> list[Prompt]:
    replies: dict[str, list[Row]] = {}
    for row in all_rows:
        replies.setdefault(row["tweet_id"], []).append({name: row[name] for name in OF_REPLY if name in row})
    names = list(dict.fromkeys(name for row in rows for name in row))
    prompts = []
    for row in rows:
        whole = {name: row.get(name) for name in names}
        own = replies[row["tweet_id"]]
        columns = {**whole, "completion": row["reply"], "references": [reply["reply"] for reply in own], "replies": own}
        try:
            content = content_of(columns, settings, None)
        except ValueError as error:
            raise RelgradError(f"task replies: {error}") from None
        prompts.append(Prompt(content, columns, _id(row)))
    return prompts


def _id(row: Row) -> int:
    """A number that belongs to the post and the reply, whatever else is in the data."""
    digest = hashlib.blake2b(f"{row['tweet_id']}\n{row['reply']}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
