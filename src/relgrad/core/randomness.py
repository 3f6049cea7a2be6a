"""Randomness as a pure function of (seed, purpose, item): the same in every process, whatever ran before; nothing to save."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Item = TypeVar("Item")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for example `generator(0, "sample", 12)`."""
    return torch.Generator().manual_seed(derived(seed, *purpose))


def derived(seed: int, *purpose: str | int) -> int:
    """A seed of its own for one purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


class Draws:
    """Random numbers for the items of a batch (prompts, examples), each from a generator of its own.

    What an item draws depends on the seed and on its number in the batch, and not on the items that are computed beside it: a batch
    may be cut into parts, and the parts given to several processes, without changing a number.

    number_N  int64 [N]: the items' numbers in the whole batch, first .. first + N
    total     how many items the whole batch has
    common    a generator for what all items share; equal in every part of the batch
    """

    def __init__(self, seed: int, first: int, count: int, total: int) -> None:
        self.seed, self.total = seed, total
        self.number_N = torch.arange(first, first + count)
        self.common = generator(seed, "common")
        self._own = [generator(seed, "item", number) for number in range(first, first + count)]

    @staticmethod
    def of(source: torch.Generator | Draws, count: int) -> Draws:
        """Draws of a whole batch of `count` items from a generator (one number is taken of it); Draws are returned as they are.

        Raises ValueError where the draws given are those of another number of items.
        """
        if isinstance(source, Draws):
            if len(source) != count:
                raise ValueError(f"draws for {len(source)} items, but there are {count}")
            return source
        return Draws(int(torch.randint(2**62, (), generator=source)), 0, count, count)

    def part(self, first: int, count: int) -> Draws:
        """The draws of items first .. first + count of these, from their beginning."""
        return Draws(self.seed, int(self.number_N[0]) + first if len(self) else 0, count, self.total)

    def __len__(self) -> int:
        return len(self._own)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, *shape] uniform in [0, 1)."""
        rows = [torch.rand(shape, generator=own, dtype=dtype) for own in self._own]
        return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=dtype)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 [N, *shape] uniform over low .. high - 1."""
        rows = [torch.randint(low, high, shape, generator=own) for own in self._own]
        return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=torch.int64)

    def rand_each(self, counts: Sequence[int], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[sum of counts, *shape] uniform in [0, 1): `counts[n]` rows of item n, item by item."""
        rows = [
            torch.rand(count, *shape, generator=own, dtype=dtype) for count, own in zip(counts, self._own, strict=True)
        ]
        return torch.cat(rows) if rows else torch.empty(0, *shape, dtype=dtype)

    def spread(self) -> Tensor:
        """float64 [N] in [0, 1): each uniform; those of the whole batch are together spread evenly.

        One number is common to the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1), and an item adds its place in it.
        """
        common = torch.rand((), generator=self.common, dtype=torch.float64)
        return (common + self.number_N / self.total) % 1.0


def uniform_at(place_BP: Tensor, draws: Draws) -> Tensor:
    """float32 [B, P]: a uniform number in [0, 1) wherever `place_BP` is True, an item's from its own generator; 0 elsewhere.

    The rows of an item stand next to each other and have the same places, so that what is padded changes no number.
    """
    each = len(place_BP) // max(len(draws), 1)
    place_GP = place_BP[:: max(each, 1)]
    uniform_GPK = torch.zeros(*place_GP.shape, each)
    uniform_GPK[place_GP] = draws.rand_each(place_GP.sum(-1).tolist(), each)
    return uniform_GPK.transpose(1, 2).flatten(0, 1)


Randomness = torch.Generator | Draws
"""What policies and losses take: `Draws.of(randomness, number of items)` makes the same of both."""


@runtime_checkable
class InOrder(Protocol):
    """Items that must be taken in their order (a stream that is still being written), where `in_order` is True."""

    in_order: bool


def draw_epochs(items: Sequence[Item], first: int, count: int, seed: int) -> list[Item]:
    """Entries first .. first + count of an endless sequence of epochs, each epoch a permutation of all items.

    Items that are `InOrder` keep their order instead.
    """
    if isinstance(items, InOrder) and items.in_order:
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
