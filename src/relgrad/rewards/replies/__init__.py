"""What a reply to a post is worth by six measures and fifteen gates, without a trained model of engagement.

    score = gate_1 · … · gate_15 · Σ_part weight · part / Σ_part weight,     all in [0, 1]

Parts: relevance (cosine of MiniLM vectors, best in a band: a copy is not the most relevant reply), length, sentiment (like the
post's, by VADER), diversity, punctuation, engagement (words of its own, a question). Each is a trapezoid or a ramp with parameters,
so that no score jumps. Gates shut out what such a sum cannot tell from a reply: blank, copied, repeated, shuffled, foreign or
abusive text, spam, machine talk, stock phrases. It cannot tell a true reply from a false one, nor a kind one from a smooth one.

settings.py   weights, bands, gates
parts.py      the parts and gates of one post and reply
words.py      texts as words
probe.py      what a text is about to do, read off its vector
order.py      whether words stand in an order that English has
lab.py        attacks on a reward, ranked against good replies
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored
from relgrad.rewards.replies.parts import Pair, gates_of, parts_of
from relgrad.rewards.replies.probe import CLASSES, probabilities
from relgrad.rewards.replies.settings import Bands, Gates, Weights
from relgrad.rewards.replies.words import Text
from relgrad.text.embedding import embed, require_encoder

PARTS = {
    "relevance": "whether post and reply are close in meaning, and not the same",
    "length": "whether it is as long as replies are",
    "sentiment": "whether its mood is like the post's",
    "diversity": "distinct words per word, up to what is usual",
    "punctuation": "whether it has as many signs as people set",
    "engagement": "words of its own, a question, more than a sentence",
    "gate": "product of all gates; the score is the weighted sum of the parts times this",
    **{
        f"gate_{name}": f"0: shut, 1: open; looks at: {field.description}" for name, field in Gates.model_fields.items()
    },
}
"""What the parts of a score mean."""


class Settings(Strict):
    """`post_column` holds the post that is replied to."""

    post_column: str = "tweet"
    weights: Weights = Weights()
    bands: Bands = Bands()
    gates: Gates = Gates()


def build(settings: Settings) -> Reward:
    """Raises RelgradError, with the line that installs it, where the encoder or VADER is not installed."""
    score = RepliesScore(settings)

    def replies(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        post = column(prompt, settings.post_column, "replies")
        if not isinstance(post, str) or not post.strip():
            return [unscored(f"column {settings.post_column!r} has no post")] * len(outputs)
        return score([post] * len(outputs), [output.text for output in outputs])

    return replies


class RepliesScore:
    """Posts and replies in, scores out, in one batch."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        require_encoder(None)
        self.sentiment = _sentiment()
        self.weights = settings.weights.model_dump()

    def __call__(self, posts: Sequence[str], replies: Sequence[str]) -> list[Score]:
        """One score for each post and the reply beside it, with the parts as `PARTS` names them."""
        vector_ND = _vectors([*posts, *replies])
        cosine_N = (vector_ND[: len(posts)] * vector_ND[len(posts) :]).sum(-1).tolist()
        mood = {text: self._mood(text) for text in {*posts, *replies}}
        probe_NC = probabilities(vector_ND[len(posts) :]).tolist()
        return [
            self._score(
                Pair(
                    Text(post),
                    Text(reply),
                    cosine,
                    abs(mood[post] - mood[reply]),
                    dict(zip(CLASSES, class_probabilities, strict=True)),
                )
            )
            for post, reply, cosine, class_probabilities in zip(posts, replies, cosine_N, probe_NC, strict=True)
        ]

    def _mood(self, text: str) -> float:
        return float(self.sentiment.polarity_scores(text)["compound"])

    def _score(self, pair: Pair) -> Score:
        parts = parts_of(pair, self.settings.bands)
        gates = gates_of(pair, self.settings.gates)
        gate = 1.0
        for value in gates.values():
            gate *= value
        total = sum(self.weights[name] * value for name, value in parts.items()) / sum(self.weights.values())
        return Score(gate * total, {**parts, "gate": gate, **{f"gate_{name}": v for name, v in gates.items()}})


def _vectors(texts: Sequence[str]) -> Tensor:
    """[N, D], encoded in portions whose texts are at most four times as long as their shortest, so that little is padding."""
    different = sorted(set(texts), key=len)
    vectors: dict[str, Tensor] = {}
    portion: list[str] = []
    for text in different:
        if portion and len(text) > 4 * max(len(portion[0]), 40):
            vectors.update(zip(portion, embed(portion), strict=True))
            portion = []
        portion.append(text)
    vectors.update(zip(portion, embed(portion), strict=True))
    return torch.stack([vectors[text] for text in texts])


@cache
def _sentiment() -> Any:
    """VADER's analyser (Hutto and Gilbert 2014). Raises RelgradError with the line that installs it."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise RelgradError("reward 'replies' needs vaderSentiment: pip install 'relgrad[replies]'") from None
    return SentimentIntensityAnalyzer()
