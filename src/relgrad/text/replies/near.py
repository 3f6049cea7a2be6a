"""Which texts are nearly the same: Jaccard similarity of their word trigrams.

    J(a, b) = |A ∩ B| / |A ∪ B|,   A, B the sets of three words in a row; a shorter text is one piece

Pairs are found exactly, without comparing all with all, by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): two sets
with J ≥ t share one of the |A| - ⌈t |A|⌉ + 1 rarest pieces of A.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
THRESHOLD = 0.5
"""From this similarity on, two posts count as nearly the same."""

Piece = tuple[str, ...]


def pieces_of(text: str) -> frozenset[Piece]:
    """The word trigrams of a text, in lower case; the words as one piece where there are fewer than three."""
    words = WORD.findall(text.lower())
    if len(words) < 3:
        return frozenset([tuple(words)])
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def similarity(a: frozenset[Piece], b: frozenset[Piece]) -> float:
    """Jaccard similarity of two sets of pieces, in [0, 1]."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def near_pairs(texts: Sequence[str], threshold: float = THRESHOLD) -> Iterator[tuple[int, int]]:
    """Numbers (i < j) of all pairs of texts with similarity >= `threshold` > 0, each once."""
    pieces = [pieces_of(text) for text in texts]
    frequency = Counter(piece for each in pieces for piece in each)
    holders: dict[Piece, list[int]] = defaultdict(list)
    for number, each in enumerate(pieces):
        rare = sorted(each, key=lambda piece: (frequency[piece], piece))
        prefix = rare[: len(rare) - math.ceil(threshold * len(rare)) + 1]
        candidates = {other for piece in prefix for other in holders[piece]}
        yield from ((other, number) for other in sorted(candidates) if similarity(pieces[other], each) >= threshold)
        for piece in prefix:
            holders[piece].append(number)


def groups_of(count: int, pairs: Iterator[tuple[int, int]]) -> list[int]:
    """For each of `count` items the smallest number of the items it is connected with, directly or by way of others."""
    first = list(range(count))

    def root(item: int) -> int:
        while first[item] != item:
            first[item] = first[first[item]]
            item = first[item]
        return item

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        first[high] = low
    return [root(item) for item in range(count)]
