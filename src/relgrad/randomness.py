"""Randomness as a pure function of (seed, purpose): the same in every process, whatever ran before; nothing to save."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for example `generator(0, "sample", 12)`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw_epochs(items: Sequence[Item], first: int, count: int, seed: int) -> list[Item]:
    """Entries first .. first + count of an endless sequence of epochs, each epoch a permutation of all items."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + count):
        epoch, index = divmod(position, len(items))
        if epoch not in orders:
            orders[epoch] = torch.randperm(len(items), generator=generator(seed, "epoch", epoch)).tolist()
        chosen.append(items[orders[epoch][index]])
    return chosen
