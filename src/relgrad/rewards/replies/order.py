"""Whether words stand in an order that English has: a trigram model of word classes, and the text against shuffles of itself.

A class is the word itself for function words and signs, and the ending for others (`-ing`, `-ed`, `-ly`, `-s`, a number, or none of
these). With p the model's probability of the classes, c the text's classes and c' the mean over shuffles of its words,

    order = (log p(c) - log p(c')) / words      nats per word

which is about 0 for words in any order, and 1 to 3 for sentences. Word frequencies cancel, since shuffles have the same words. The
model counts Python's own help texts (`pydoc_data.topics`, on every machine) and the sentences of the built-in data set, with
absolute discounting from trigrams to bigrams to classes (Ney et al. 1994).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from random import Random

from relgrad.rewards.replies.words import function_words
from relgrad.text.corpus import BUILTIN, load_text
from relgrad.text.replies import made

TOKEN = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)*|[.,!?;:]")
ENDINGS = ("ing", "ed", "ly", "s", "er", "est")
START = "<"
SENTENCE_ENDS = ".!?"
DISCOUNT = 0.75
SHORTER = 0.02
"""Share of the shorter context in every probability, so that a class that never stood there does not outweigh all others."""
SHUFFLES = 60


def class_of(token: str) -> str:
    """The class of a word or sign, in lower case."""
    if token in function_words() or not token[0].isalnum():
        return token
    if token[0].isdigit():
        return "#"
    return next((f"-{ending}" for ending in ENDINGS if token.endswith(ending) and len(token) > len(ending) + 2), "-")


def classes_of(text: str) -> list[str]:
    """The classes of all words and signs of a text."""
    return [class_of(token.lower().replace("’", "'")) for token in TOKEN.findall(text)]


class OrderModel:
    """Counts of class n-grams and the probabilities they give."""

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        self.counts: tuple[Counter[tuple[str, ...]], ...] = (Counter(), Counter(), Counter())
        for sentence in sentences:
            padded = (START, START, *sentence)
            for end in range(2, len(padded)):
                for size in range(3):
                    self.counts[size][padded[end - size : end + 1]] += 1
        self.total = sum(self.counts[0].values())
        self.before: tuple[Counter[tuple[str, ...]], ...] = (Counter(), Counter(), Counter())
        self.kinds: tuple[Counter[tuple[str, ...]], ...] = (Counter(), Counter(), Counter())
        for size in (1, 2):
            for gram, count in self.counts[size].items():
                self.before[size][gram[:-1]] += count
                self.kinds[size][gram[:-1]] += 1
        self._logp: dict[tuple[str, ...], float] = {}

    def probability(self, gram: tuple[str, ...]) -> float:
        """p(last class | the ones before it), one to three classes long."""
        if len(gram) == 1:
            return (self.counts[0][gram] + 1) / (self.total + len(self.counts[0]) + 1)
        size, context = len(gram) - 1, gram[:-1]
        shorter = self.probability(gram[1:])
        if not self.before[size][context]:
            return shorter
        left = DISCOUNT * self.kinds[size][context] * shorter
        longer = (max(self.counts[size][gram] - DISCOUNT, 0) + left) / self.before[size][context]
        return (1 - SHORTER) * longer + SHORTER * shorter

    def log_probability(self, classes: Sequence[str]) -> float:
        """log p of a whole text, in nats; every sentence begins anew."""
        cached, total, before, last = self._logp, 0.0, START, START
        for next_ in classes:
            gram = (before, last, next_)
            logp = cached.get(gram)
            if logp is None:
                logp = cached[gram] = math.log(self.probability(gram))
            total += logp
            before, last = (START, START) if next_ in SENTENCE_ENDS else (last, next_)
        return total

    def order(self, text: str) -> float:
        """How much likelier the words are in this order than in others, nats per word; 0 for fewer than two words."""
        classes = classes_of(text)
        places = [i for i, c in enumerate(classes) if c[-1] not in ".,!?;:"]
        words = [classes[place] for place in places]
        if len(words) < 2:
            return 0.0
        draw, mixed, shuffled = Random(text), list(classes), 0.0
        for _ in range(SHUFFLES):
            draw.shuffle(words)
            for place, word in zip(places, words, strict=True):
                mixed[place] = word
            shuffled += self.log_probability(mixed) / SHUFFLES
        return (self.log_probability(classes) - shuffled) / len(words)


@cache
def order_model() -> OrderModel:
    """The model, counted once in a process."""
    draw = Random("order")
    own = [
        made.filled(s, draw) for m in made.matters() for role in m.sentences.values() for s in role for _ in range(3)
    ]
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", load_text(BUILTIN)) if part.count(" ") > 2]
    return OrderModel([classes_of(sentence) for sentence in (*own, *sentences)])
