"""An n-gram model of characters with interpolated Witten-Bell smoothing: a language model for those without one.

    p(c | h) = (#(h c) + T(h) p(c | h')) / (#(h) + T(h))

#(h c) counts an n-gram, #(h) is its sum over c, T(h) the number of different characters seen after h, and h' is h without
its first character; below the empty context every character, and one sign for all that the text does not have, is equally
likely. A context that was never seen falls back to h' whole. The law sums to 1 in every context.

Source: Witten and Bell 1991 (method C), interpolated as in Chen and Goodman 1999, section 2.5.
"""

from __future__ import annotations

import math
from collections import Counter

from relgrad.core.errors import RelgradError


class NGram:
    """`order` is n: a character is predicted from the order - 1 before it. `alphabet` is all characters of the text."""

    def __init__(self, text: str, order: int) -> None:
        """Count every n-gram of `text` up to `order`. Raises RelgradError for an empty text or an order below 1."""
        if order < 1 or not text:
            raise RelgradError(
                f"an n-gram model needs order >= 1 and a text (received {order}, {len(text)} characters)"
            )
        self.order = order
        self.alphabet = frozenset(text)
        self._count: Counter[str] = Counter()
        for n in range(1, order + 1):
            self._count.update(text[i : i + n] for i in range(len(text) - n + 1))
        self._total, self._types = Counter[str](), Counter[str]()
        for gram, times in self._count.items():
            self._total[gram[:-1]] += times
            self._types[gram[:-1]] += 1

    def probability(self, character: str, context: str) -> float:
        """p(character | context); of the context, the last order - 1 characters count. Any foreign character is the same."""
        p = 1 / (len(self.alphabet) + 1)
        for k in range(min(self.order, len(context) + 1)):
            h = context[len(context) - k :]
            total, types = self._total.get(h, 0), self._types.get(h, 0)
            if not total:  # nor was any longer context
                break
            p = (self._count.get(h + character, 0) + types * p) / (total + types)
        return p

    def log_probabilities(self, text: str) -> list[float]:
        """Nats per character, the first from the empty context: a text may start in the middle of another."""
        reach = self.order - 1
        return [math.log(self.probability(c, text[max(0, i - reach) : i])) for i, c in enumerate(text)]
