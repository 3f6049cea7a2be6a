"""A guest's process, from its start to its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress
from functools import cache
from importlib import resources

from relgrad.environments.sandbox import bubblewrap
from relgrad.environments.sandbox.limits import Limits
from relgrad.environments.sandbox.machine import Containment

PACKAGE = "relgrad.environments.sandbox"
START = (
    "import sys, types\n"
    "def module(name, text):\n"
    "    made = sys.modules[name] = types.ModuleType(name)\n"
    "    exec(compile(text, name, 'exec'), made.__dict__)\n"
    "    return made\n"
    f"module('{PACKAGE}.values', sys.argv[1])\n"
    f"module('{PACKAGE}.guest', sys.argv[2]).main(int(sys.argv[3]))\n"
)
"""Executes the two files that run inside, which stand nowhere that the program could read them."""


class Guest:
    """A process, this side's end of the channel, and what is printed. The process ends with the thread that started it.

    Raises OSError where it cannot be started.
    """

    def __init__(self, containment: Containment, limits: Limits) -> None:
        self.contained = containment.tools is not None
        self.channel, inside = socket.socketpair()
        try:
            with inside, bubblewrap.filter_file(containment.filter) as number:
                self.process = subprocess.Popen(
                    [*_command(containment, limits, number), "-c", START, *_sources(), str(inside.fileno())],
                    pass_fds=(inside.fileno(),) if number is None else (inside.fileno(), number),
                    env={} if self.contained else {"PYTHONHASHSEED": "0"},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except BaseException:
            self.channel.close()
            raise
        assert self.process.stdout is not None
        self.printed = self.process.stdout

    def end(self) -> None:
        """Kill what is left of it and close all files. Behind walls, everything it started dies with its first process."""
        with suppress(ProcessLookupError):
            if self.contained:
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()
        self.printed.close()

    def tasks(self, limits: Limits) -> dict[str, int]:
        """The kernel's limit of processes, which it counts by user: without walls, all of yours, so there is none."""
        return {"tasks": limits.processes + 1} if self.contained else {}


def _command(containment: Containment, limits: Limits, filter_number: int | None) -> list[str]:
    if containment.tools is None:
        return [containment.interpreter.path, *bubblewrap.OPTIONS]
    return bubblewrap.command(containment.tools, containment.interpreter, limits.disk_mb, filter_number)


@cache
def _sources() -> tuple[str, str]:
    folder = resources.files(PACKAGE)
    return folder.joinpath("values.py").read_text("utf-8"), folder.joinpath("guest.py").read_text("utf-8")
