"""What tests of generated code share: a mark that skips where nothing contains it, and which of its processes are alive."""

from __future__ import annotations

import time

import psutil
import pytest

from relgrad.environments.sandbox.launch import PACKAGE
from relgrad.environments.sandbox.machine import containment

needs_walls = pytest.mark.skipif(
    containment().level != "full", reason=f"generated code cannot be contained here: {containment().lacks}"
)


def guests() -> list[psutil.Process]:
    """Processes of guests on this machine, those that another test process started included."""
    alive = []
    for process in psutil.process_iter():
        try:
            if any(f"{PACKAGE}.guest" in word for word in process.cmdline()) and process.status() != "zombie":
                alive.append(process)
        except psutil.Error:
            continue
    return alive


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they have all ended, or do within a minute."""
    until = time.monotonic() + 60
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
