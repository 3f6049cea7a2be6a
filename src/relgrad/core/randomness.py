"""Randomness as a pure function of (seed, purpose): the same in every process, whatever ran before; nothing to save."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch

Item = TypeVar("Item")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for example `generator(0, "sample", 12)`."""
    return torch.Generator().manual_seed(derived(seed, *purpose))


def derived(seed: int, *purpose: str | int) -> int:
    """A seed of its own for one purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def draw_epochs(items: Sequence[Item], first: int, count: int, seed: int) -> list[Item]:
    """Entries first .. first + count of an endless sequence of epochs, each epoch a permutation of all items.

    Items that have an attribute `in_order` (a stream that is still being written, say) keep their order instead.
    """
    if getattr(items, "in_order", False):
        return [items[position % len(items)] for position in range(first, first + count)]
    chosen = []
    for position in range(first, first + count):
        epoch, index = divmod(position, len(items))
        chosen.append(items[int(permutation(len(items), seed, epoch)[index])])
    return chosen


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of an epoch, int64 [size]; kept, since every step of an epoch reads a stretch of it."""
    return torch.randperm(size, generator=generator(seed, "epoch", epoch))
