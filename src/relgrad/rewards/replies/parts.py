"""The six parts of the reward and its gates, each of one post and one reply, in [0, 1] and continuous in what is measured.

Beside the texts they see the cosine of their vectors and the distance of their sentiments, which __init__.py computes in batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from relgrad.rewards.replies.order import order_model
from relgrad.rewards.replies.settings import Bands, Gates, ramped, within
from relgrad.rewards.replies.words import HANDLE, HASHTAG, LINK, Text, function_words, patterns

WINDOW = 20
"""Words in a row among which repetition is counted, so that a long text is no more repetitive than a short one."""


class Pair(NamedTuple):
    """A post and a reply to it, the cosine of their vectors, the distance of their sentiments (0 to 2), and what the probe says of
    the reply: the probability of every class.
    """

    post: Text
    reply: Text
    cosine: float
    distance: float
    probe: Mapping[str, float]


def parts_of(pair: Pair, bands: Bands) -> dict[str, float]:
    """The parts by name; the names are those of the weights."""
    reply = pair.reply
    text = reply.raw.strip()
    signs = sum(text.count(sign) for sign in ".,!?")
    return {
        "relevance": within(pair.cosine, bands.relevance),
        "length": within(len(text), bands.length),
        "sentiment": ramped(pair.distance, bands.sentiment),
        "diversity": within(_distinct(reply.words), bands.diversity),
        "punctuation": within(signs / max(len(text), 1), bands.punctuation) if text else 0.0,
        "engagement": _engagement(pair, bands),
    }


def _engagement(pair: Pair, bands: Bands) -> float:
    """What a reply adds that others can take up: words of its own, a question, more than one sentence."""
    new = set(pair.reply.content) - set(pair.post.content)
    return (
        bands.specific_share * ramped(len(new), bands.specific)
        + bands.question_share * ("?" in pair.reply.plain)
        + bands.sentences_share * (len(pair.reply.sentences) > 1)
    )


def measured(pair: Pair) -> Mapping[str, float]:
    """What each gate looks at, by its name."""
    post, reply = pair.post, pair.reply
    raw = reply.raw
    content = reply.content
    old = set(post.content)
    letters = [sign for sign in raw if sign.isalpha()]
    return {
        "blank": len(reply.words),
        "long": len(raw),
        "relevant": pair.cosine,
        "copied": sum(word not in old for word in content) / max(len(content), 1) if content else 1.0,
        "repeated": _distinct_pieces(reply.words),
        "language": sum(word in function_words() for word in reply.words) / max(len(reply.words), 1),
        "order": order_model().order(reply.plain),
        "shuffled": pair.probe["shuffled"],
        "intent": pair.probe["promotion"] + pair.probe["machine"] + pair.probe["abuse"],
        "abusive": _abuse(raw),
        "spam": len(LINK.findall(raw)) + _count("promotion", raw) + max(len(HANDLE.findall(raw)) - 1, 0)
        + max(len(HASHTAG.findall(raw)) - 1, 0),
        "machine": _count("machine", raw),
        "stock": len(set(Text(patterns("stock").sub(" ", reply.plain)).content)),
        "signs": reply.emoji / max(len(raw), 1),
        "shouting": sum(sign.isupper() for sign in letters) / max(len(letters), 1),
    }  # fmt: skip


def gates_of(pair: Pair, gates: Gates) -> dict[str, float]:
    """The gates by name; those left out are open."""
    values = measured(pair)
    ramps: Mapping[str, tuple[float, float] | None] = dict(gates)
    return {
        name: 1.0 if ramps[name] is None else ramped(value, ramps[name] or (0, 1)) for name, value in values.items()
    }


def _abuse(text: str) -> int:
    """Words of abuse; those that may also describe something count in sentences that speak to somebody."""
    spoken = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if _count("you", part)]
    return _count("abuse", text) + sum(_count("abuse_of_you", part) for part in spoken)


def _count(name: str, text: str) -> int:
    return len(patterns(name).findall(text.replace("’", "'")))


def _distinct(words: Sequence[object]) -> float:
    """Distinct items per item; 0 for none."""
    return len(set(words)) / len(words) if words else 0.0


def _distinct_pieces(words: Sequence[str]) -> float:
    """The lowest share of distinct words among `WINDOW` in a row (of all where there are fewer), or that of distinct trigrams."""
    starts = range(max(len(words) - WINDOW, 0) + 1)
    poorest = min(_distinct(words[start : start + WINDOW]) for start in starts)
    return min(poorest, _distinct(list(zip(words, words[1:], words[2:], strict=False)))) if len(words) > 2 else poorest
