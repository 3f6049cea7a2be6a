r"""Whether two texts are about the same matter: a naive Bayes model of the matters of the built-in data.

    P(m | text) ∝ Π_words p(w | m),     alike(post, reply) = Σ_m P(m | post) · P(m | reply)

p(w | m) is the share of word w among the words of a matter's sentences, with .05 added to every count; words that no sentence has
are left out. Without such a word a text says nothing: P is even, and alike is 1 / matters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from random import Random

from relgrad.text.replies import made

WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
ADDED = 0.05
FILLS = 6
"""How often every sentence is filled, so that most of its choices are seen."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without numbers; a plural or verb `s` at the end is left out."""
    words = (match[0].replace("’", "'") for match in WORD.finditer(text.lower()))
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


class MatterModel:
    """Log shares of words by matter."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        """`texts` has the sentences of every matter."""
        counts = [Counter(word for text in own for word in words_of(text)) for own in texts]
        vocabulary = set().union(*counts)
        self.log_share = {
            word: [math.log((own[word] + ADDED) / (own.total() + ADDED * len(vocabulary))) for own in counts]
            for word in vocabulary
        }
        self.matters = len(texts)

    def posterior(self, text: str) -> list[float]:
        """P(m | text) of every matter."""
        logs = [0.0] * self.matters
        for word in set(words_of(text)):
            for number, value in enumerate(self.log_share.get(word, ())):
                logs[number] += value
        highest = max(logs)
        shares = [math.exp(value - highest) for value in logs]
        total = sum(shares)
        return [share / total for share in shares]

    def alike(self, post: str, reply: str) -> float:
        """How likely it is that both are about one matter, in [0, 1]."""
        return sum(a * b for a, b in zip(self.posterior(post), self.posterior(reply), strict=True))


@cache
def matter_model() -> MatterModel:
    """The model of the built-in matters, counted once in a process."""
    draw = Random("matter")
    return MatterModel(
        [
            [made.filled(line, draw) for lines in matter.sentences.values() for line in lines for _ in range(FILLS)]
            for matter in made.matters()
        ]
    )
