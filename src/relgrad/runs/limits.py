"""When a command ends before its run does: SIGTERM, or `max_hours` on the clock. Both are acted on between two optimizer steps.

The first SIGTERM is only remembered; a second one ends the process at once, as it would any other. What ends one process of several
ends all of them, after the same step; there what arrives within ECHO seconds counts as one signal, since a cluster may send it to
every process, and whoever started them passes it on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from relgrad.core.ranks import Ranks

RECEIVED = b"SIGTERM: ending between two steps, with a checkpoint; a second one ends at once\n"
ECHO = 5.0
"""Seconds within which one of several processes takes SIGTERM for the one that it has received already."""


class Limits:
    """The limits of one command, from its start on.

    signalled  whether this process received SIGTERM
    stepped    whether an optimizer step was done: `max_hours` leaves time for one, so that a command that is started again and
               again gets on
    """

    def __init__(self, ranks: Ranks, clock: Callable[[], float] = time.monotonic) -> None:
        self.ranks, self.clock, self.started = ranks, clock, clock()
        self.signalled, self.stepped = False, False

    def reached(self, max_hours: float | None) -> str | None:
        """Which limit is reached, in words; None where none is. All processes call it, and get one answer.

        SIGTERM counts whichever of them received it; of their clocks the first one's.
        """
        over = self.stepped and max_hours is not None and self.clock() - self.started >= 3600 * max_hours
        everybody = self.ranks.numbers(self.signalled, over)
        if any(signalled for signalled, _ in everybody):
            return "SIGTERM"
        return f"max_hours={max_hours:g}" if max_hours is not None and everybody[0][1] else None


@contextmanager
def watched(ranks: Ranks) -> Iterator[Limits]:
    """The limits of a command that begins now. Inside it, a first SIGTERM is remembered.

    Only the main thread of a process can receive signals: elsewhere SIGTERM ends the process as ever.
    """
    limits = Limits(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield limits
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def remember(number: int, frame: FrameType | None) -> None:
        limits.signalled, received = True, limits.clock()

        def again(number: int, frame: FrameType | None) -> None:
            if limits.clock() - received >= ECHO:
                signal.signal(signal.SIGTERM, before)
                signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, before if ranks.alone else again)
        os.write(2, RECEIVED)  # not print, which may be what was interrupted

    signal.signal(signal.SIGTERM, remember)
    try:
        yield limits
    finally:
        signal.signal(signal.SIGTERM, before)
