"""Dropout draws from PyTorch's global random state; here it does so from given random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from relgrad.core.randomness import Draws, Randomness, derived


@contextmanager
def seeded(randomness: Randomness) -> Iterator[None]:
    """The global random state, set from `randomness`; as before on leaving.

    Of `Draws` the batch's seed and the number of the first item count: two parts of a batch drop different units, and a part drops
    the same ones in whatever process it is computed.
    """
    if isinstance(randomness, Draws):
        seed = derived(randomness.seed, "dropout", *randomness.number_N[:1].tolist())
    else:
        seed = int(torch.randint(2**62, (), generator=randomness))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
