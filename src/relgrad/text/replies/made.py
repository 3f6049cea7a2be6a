"""The built-in data set: posts and replies put together from sentences of our own, with engagement drawn for them.

A post is one or two sentences on a matter (a worn chain, a late train) of a topic, with choices and slots filled at random. Replies
take up the matter (a tip, a question, a story, a doubt), or are poor: stock phrases, the post's own words, another topic,
self-promotion. Each has a quality in [0, 1]: its kind's, with noise. Likes of a reply to post p are drawn from a negative binomial
(a Poisson whose rate has a gamma factor of shape 3) with mean

    μ = √(likes of p) · exp(-1.9 + 2.2 quality + 0.35 ln(followers / 900) - 0.30 ln(delay / 5400 s))

so they go along with quality, followers, the post's reach and being early, and mostly with chance. docs/replies-data.md says what
these rows can show and what they cannot.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import yaml

from relgrad.core.randomness import derived
from relgrad.text.replies.near import THRESHOLD, Piece, pieces_of, similarity

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
SIZE = 2400
TRIES = 40
"""How often a post that is nearly the same as an earlier one is drawn anew."""

QUALITY = {
    "tip": 0.8, "story": 0.75, "ask": 0.65, "doubt": 0.6, "generic": 0.2, "echo": 0.15, "off_topic": 0.1, "promo": 0.05,
}  # fmt: skip
"""Kinds of replies and their mean quality; a second sentence adds 0.1."""
CHANCE = {
    "tip": 0.2, "story": 0.2, "ask": 0.18, "doubt": 0.12, "generic": 0.12, "echo": 0.06, "off_topic": 0.07, "promo": 0.05,
}  # fmt: skip
GOOD = ("tip", "story", "ask", "doubt")


class Matter(NamedTuple):
    """What posts and replies are about: its topic, its name, and sentences by their role (say, more, tip, ask, story, doubt)."""

    topic: str
    name: str
    sentences: Mapping[str, Sequence[str]]


@cache
def matters() -> tuple[Matter, ...]:
    """All matters, in the order of the files."""
    found = []
    for file in ("topics_1.yaml", "topics_2.yaml"):
        content = yaml.safe_load((Path(__file__).parent / file).read_text(encoding="utf-8"))
        for topic, own in content.items():
            for name, roles in own.items():
                sentences = {role: tuple(lines.strip().splitlines()) for role, lines in roles.items()}
                found.append(Matter(topic, name, sentences))
    return tuple(found)


@cache
def slots() -> Mapping[str, Sequence[str]]:
    """What each slot may be filled with."""
    content: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "slots.yaml").read_text(encoding="utf-8"))
    return content


def filled(sentence: str, draw: Random) -> str:
    """The sentence with its choices made and its slots filled."""
    sentence = CHOICE.sub(lambda match: draw.choice(match[1].split("|")), sentence)
    return SLOT.sub(lambda match: draw.choice(slots()[match[1]]), sentence)


def rows(size: int = SIZE, seed: int = 0) -> list[dict[str, Any]]:
    """All replies to `size` posts, row by row as rows.py has them, and `topic`, `kind` and `quality`. The same for the same seed.

    The first posts of a larger set are those of a smaller one.
    """
    earlier: dict[str, list[frozenset[Piece]]] = defaultdict(list)
    made = []
    for number in range(size):
        matter = matters()[number % len(matters())]
        draw = Random(f"{seed}/replies/{number}")
        post = _new_post(matter, draw, earlier[f"{matter.topic}/{matter.name}"])
        made += _rows_of(number, post, matter, draw, np.random.default_rng(derived(seed, "replies", number)))
    return made


def _new_post(matter: Matter, draw: Random, earlier: list[frozenset[Piece]]) -> str:
    """A post that is not nearly the same as an earlier one on its matter, as far as that can be found by trying."""
    for _ in range(TRIES):
        post = _post(matter, draw)
        pieces = pieces_of(post)
        if all(similarity(pieces, other) < THRESHOLD for other in earlier):
            break
    earlier.append(pieces)
    return post


def _post(matter: Matter, draw: Random) -> str:
    parts = [filled(draw.choice(matter.sentences["say"]), draw)]
    if draw.random() < 0.75:
        parts.append(filled(draw.choice(matter.sentences["more"]), draw))
    return draw.choice(slots()["opener"]) + " ".join(parts) + draw.choice(slots()["closer"])


def _reply(kind: str, post: str, matter: Matter, draw: Random) -> tuple[str, float]:
    """(text, quality before noise)."""
    if kind == "generic":
        return draw.choice(slots()["generic"]), QUALITY[kind]
    if kind == "echo":
        return re.split(r"(?<=[.!?]) ", post)[0], QUALITY[kind]
    if kind == "off_topic":
        other = draw.choice([m for m in matters() if m.topic != matter.topic])
        return filled(draw.choice(other.sentences["story"]), draw), QUALITY[kind]
    if kind == "promo":
        return f"{draw.choice(slots()['generic'])} {draw.choice(slots()['promo'])}", QUALITY[kind]
    text = draw.choice(slots()["agree"]) + filled(draw.choice(matter.sentences[kind]), draw)
    if kind != "ask" and draw.random() < 0.2:
        return f"{text} {filled(draw.choice(matter.sentences['ask']), draw)}", QUALITY[kind] + 0.1
    return text, QUALITY[kind]


def _rows_of(number: int, post: str, matter: Matter, draw: Random, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The rows of one post: two replies or more, no two of which are nearly the same."""
    reach = _between(100, math.exp(rng.normal(math.log(400), 0.7)), 2000)
    posted = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=173 * number)
    head = {
        "tweet_id": f"post-{number}",
        "tweet": post,
        "tweet_author": f"writer-{draw.randrange(400)}",
        "tweet_likes": round(reach),
        "tweet_retweets": int(rng.binomial(round(reach), 0.12)),
        "tweet_created_at": posted.isoformat(),
    }
    replies = list[tuple[str, str, float]]()
    earlier = list[frozenset[Piece]]()
    draws_left = draw.randint(3, 7)
    while draws_left > 0 or len(replies) < 2:
        draws_left -= 1
        (kind,) = draw.choices(list(CHANCE), list(CHANCE.values()))
        text, quality = _reply(kind, post, matter, draw)
        pieces = pieces_of(text)
        if all(similarity(pieces, other) < THRESHOLD for other in earlier):
            earlier.append(pieces)
            replies.append((text, kind, quality))
    return [
        {**head, "reply_id": f"post-{number}-{n}", "reply": text, **_engagement(reach, quality, posted, draw, rng),
         "topic": matter.topic, "kind": kind}
        for n, (text, kind, quality) in enumerate(replies)
    ]  # fmt: skip


def _engagement(
    reach: float, quality: float, posted: datetime.datetime, draw: Random, rng: np.random.Generator
) -> dict[str, Any]:
    """Who replied when, and what the reply got for it; the formula stands at the head of the file."""
    quality = _between(0.0, quality + rng.normal(0, 0.08), 1.0)
    followers = _between(200, math.exp(rng.normal(math.log(900), 1.0)), 20_000)
    delay = _between(300, math.exp(rng.normal(math.log(5400), 1.2)), 604_800)
    mean = math.sqrt(reach) * math.exp(
        -1.9 + 2.2 * quality + 0.35 * math.log(followers / 900) - 0.30 * math.log(delay / 5400)
    )
    likes = int(rng.poisson(mean * rng.gamma(3.0, 1 / 3)))
    return {
        "reply_author": f"reader-{draw.randrange(3000)}",
        "reply_author_followers": round(followers),
        "reply_likes": likes,
        "reply_retweets": int(rng.binomial(likes, 0.08)),
        "reply_created_at": (posted + datetime.timedelta(seconds=delay)).isoformat(),
        "reply_time_diff_seconds": round(delay, 1),
        "quality": round(quality, 3),
    }


def _between(low: float, value: float, high: float) -> float:
    return min(max(low, float(value)), high)
