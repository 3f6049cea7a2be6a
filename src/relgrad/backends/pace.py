"""How fast a back end is asked: so many requests at once, so many a minute, and longer waits after every failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relgrad.core.randomness import derived

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds of the first wait, and the longest."""


class Pace:
    """At most `concurrency` requests at once, begun at least 60 / per_minute seconds apart."""

    def __init__(self, concurrency: int, per_minute: float | None) -> None:
        self._free, self._next_in_line = asyncio.Semaphore(concurrency), asyncio.Lock()
        self._apart = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a turn; it ends with the block, which is given the seconds of waiting.

        Whoever is cancelled while waiting takes none.
        """
        clock = asyncio.get_running_loop().time
        came = clock()
        async with self._free:
            async with self._next_in_line:
                start = max(clock(), self._next)
                await asyncio.sleep(start - clock())
                self._next = start + self._apart
            yield clock() - came


def wait_after(attempt: int, first: float, seed: int) -> float:
    """Seconds to wait after attempt 1, 2, …: twice as long every time, between half and all of it, so that requests spread."""
    share = random.Random(derived(seed, "wait", attempt)).random()
    return min(LONGEST_WAIT, first * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * share)
