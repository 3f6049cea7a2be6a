"""How far texts are from each other: by their n-grams, or by their meaning. Matrices [K, K], symmetric, 0 on the diagonal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from relgrad.text.embedding import embed, require_encoder

Distances = Callable[[Sequence[str]], Tensor]
"""Texts [K] to their distances [K, K], float64."""
Kind = Literal["ngram", "embedding"]


def distances_of(kind: Kind, n: int, encoder: str | None) -> Distances:
    """The distance that a recipe names. Raises RelgradError for an encoder that cannot be had."""
    if kind == "ngram":
        return lambda texts: ngram_distances(texts, n)
    require_encoder(encoder)
    return lambda texts: embedding_distances(texts, encoder)


def ngram_distances(texts: Sequence[str], n: int) -> Tensor:
    """1 - the share of n-grams of words that two texts have in common (Dice: 2 |a and b| / (|a| + |b|), with their counts).

    Texts of fewer than n words are one n-gram, so that two equal ones have distance 0; so have two without any word. Words are what
    stands between blanks, in lower case.
    """
    grams = [_ngrams(text, n) for text in texts]
    sizes = [sum(one.values()) for one in grams]
    distance_KK = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for i in range(len(texts)):
        for j in range(i):
            total = sizes[i] + sizes[j]
            common = sum((grams[i] & grams[j]).values())
            distance_KK[i, j] = distance_KK[j, i] = 1 - 2 * common / total if total else 0.0
    return distance_KK


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.lower().split()
    if not words:
        return Counter()
    return Counter(tuple(words[start : start + n]) for start in range(max(len(words) - n + 1, 1)))


def embedding_distances(texts: Sequence[str], encoder: str | None = None) -> Tensor:
    """1 - cos of sentence embeddings: 0 for the same meaning, about 1 for unrelated ones. Raises RelgradError as `embed` does."""
    unit_KD = embed(texts, encoder).double()
    distance_KK = (1 - unit_KD @ unit_KD.T).clamp(min=0)
    return distance_KK.fill_diagonal_(0.0)
