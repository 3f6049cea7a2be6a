"""Whether a text is a sensible reply to a post: a judge to evaluate by, which shares nothing with the reward `replies`.

Six checks, each passed or not; the score is 1 where all are, else 0, so that a threshold of .5 makes it a pass judge. It reads no
vector, sentiment or list of the reward: `whole` and `plain` look at signs, `own` at words, `about` at a naive Bayes model of what
the built-in data are about (matter.py). Labels by hand that it is held against are in labelled.yaml: agreement.py.

matter.py      whether two texts are about the same matter
agreement.py   agreement of a reward with a threshold and labels by hand
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored
from relgrad.rewards.sensible_reply.matter import matter_model, words_of

ENDS = re.compile(r"[.!?…][\"'”’)]*$")
MARKS = re.compile(r"https?:|www\.|\S@\S|(?<!\w)[@#]\w|[<>{}\[\]*_|~^\\]|\n\s*\n")
WORDLESS = re.compile(r"[^\x00-\x7f‘’“”–—…£€é]")
TASK = re.compile(
    r"\b(?:tweets?|twitter|repl(?:y|ies)|responses?|chatbot|assistant|language model|an ai|ai designed|prompt|grammar|emotion:|"
    r"dear|sincerely|hope this message|hi everyone)\b",
    re.IGNORECASE,
)
SELLING = re.compile(
    r"\b(?:follow (?:me|us)|subscribe|newsletter|link in bio|dm me|my (?:profile|course|channel|page|shop)|half price|discount|"
    r"giveaway|sign up|click)\b",
    re.IGNORECASE,
)
LITTLE = frozenset((Path(__file__).parent / "little.txt").read_text(encoding="utf-8").split())
"""Words that add nothing by themselves, those of stock phrases among them."""

PARTS = {
    "whole": "sentences that end, of a length that people write",
    "plain": "no links, handles, hashtags, markup, and few pictures",
    "untasked": "no talk about tweets, replies or assistants",
    "unsold": "no advertising",
    "own": "words that the post does not have",
    "about": "about the matter of the post, by a model of the built-in data or by words in common",
}
"""What the parts of a score mean."""


class Settings(Strict):
    """`post_column` holds the post that is replied to."""

    post_column: str = "tweet"
    words: tuple[int, int] = Field((5, 60), description="fewest and most words of a whole reply")
    own: int = Field(3, ge=0, description="words with a meaning that the post must not have")
    alike: float = Field(
        0.4, ge=0, le=1, description="how likely post and reply are about one matter of the built-in data"
    )
    common: int = Field(3, ge=1, description="or: words with a meaning that they have in common")


def build(settings: Settings) -> Reward:
    """1 for a sensible reply, else 0; the parts are the checks."""

    def sensible_reply(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        post = column(prompt, settings.post_column, "sensible_reply")
        if not isinstance(post, str) or not post.strip():
            return [unscored(f"column {settings.post_column!r} has no post")] * len(outputs)
        return [_score(checks(post, output.text, settings)) for output in outputs]

    return sensible_reply


def _score(passed: dict[str, bool]) -> Score:
    return Score(float(all(passed.values())), {name: float(value) for name, value in passed.items()})


def checks(post: str, reply: str, settings: Settings) -> dict[str, bool]:
    """Every check of a reply, by name."""
    text = reply.strip()
    own = meaning(text) - meaning(post)
    pictures = len(WORDLESS.findall(text))
    closed = WORDLESS.sub("", text).strip()
    fewest, most = settings.words
    return {
        "whole": fewest <= len(text.split()) <= most and bool(ENDS.search(closed)),
        "plain": not MARKS.search(text) and pictures <= 2 and text[:1] not in "\"'“",
        "untasked": not TASK.search(text),
        "unsold": not SELLING.search(text),
        "own": len(own) >= settings.own,
        "about": matter_model().alike(post, text) >= settings.alike
        or len(meaning(text) & meaning(post)) >= settings.common,
    }


def meaning(text: str) -> set[str]:
    """The words of a text that mean something by themselves."""
    return {word for word in words_of(text) if word not in LITTLE and len(word) > 2}
