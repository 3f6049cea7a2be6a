"""What a policy that unmasks is made of: a network, its symbols, and how they lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from relgrad.networks.masked.interface import MaskedNetwork
from relgrad.policies.unmasking.symbols import Symbols

Check = Callable[[Tensor, Tensor, Tensor], None]
"""Looks at the first supervised batch, and warns of what does not fit: (ids_BL with masks, valid_BL, true ids_BL)."""


class Store(Protocol):
    """How the weights and symbols of a family lie on disk."""

    def save(self, folder: Path) -> None:
        """Write a folder that the family's libraries, and `load`, read."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into these weights. Raises RelgradError for another network or vocabulary."""
        ...


class Opened(NamedTuple):
    """The parts of a policy; `notes` are what a person should know of them."""

    network: MaskedNetwork
    symbols: Symbols
    store: Store
    notes: tuple[str, ...] = ()
    check: Check | None = None
