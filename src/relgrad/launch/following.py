"""A log that is shown while it grows, until the job that writes it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from relgrad.launch.target import State

PAUSE = 0.5
"""Seconds between two looks."""


def follow_file(log: Path, state: Callable[[], State], pause: float = PAUSE) -> State:
    """Print a log file from its beginning, line for line, and what is added to it, until the job has ended; how it ended."""
    shown = 0
    while True:
        now = state()
        if log.is_file():
            with open(log, "rb") as file:
                file.seek(shown)
                added = file.read()
            sys.stdout.write(added.decode("utf-8", errors="replace"))
            sys.stdout.flush()
            shown += len(added)
        if now.ended:
            return now
        time.sleep(pause)
