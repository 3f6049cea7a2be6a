"""The walls around a program, as a command line: bubblewrap (https://github.com/containers/bubblewrap), version 0.8 or newer.

Inside there are an interpreter and the system's libraries, read-only; three devices; a small /tmp; no /proc; nobody else's
processes; a network without any interface that is up; no capability, and no way to make another namespace. Where relgrad runs as
root, setpriv makes it nobody before: bubblewrap's own --uid changes only what the program believes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NOBODY = "65534"
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LOADER_CACHE = "/etc/ld.so.cache"
MEGABYTE = 2**20
OPTIONS = ("-s", "-S", "-B", "-X", "utf8")
"""Of the interpreter: no user's nor site's packages, no compiled files, UTF-8. -I would also ignore the fixed hash seed."""


@dataclass(frozen=True)
class Interpreter:
    """A Python: the file that is executed, and the folder that its own library is in."""

    path: str
    prefix: str


@dataclass(frozen=True)
class Tools:
    """What the walls are made with: the paths of bwrap and, where this process is root, setpriv."""

    bwrap: str
    setpriv: str | None


def command(tools: Tools, interpreter: Interpreter, disk_mb: int, filter_number: int | None) -> list[str]:
    """Up to the interpreter and its options; what it is to execute follows. `filter_number` is a file with system_calls.program."""
    walls = [
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--cap-drop",
        "ALL",
        "--die-with-parent",
        "--new-session",
    ]
    identity = [
        "--uid",
        NOBODY,
        "--gid",
        NOBODY,
        "--hostname",
        "sandbox",
        "--clearenv",
        "--setenv",
        "PYTHONHASHSEED",
        "0",
    ]
    filters = [] if filter_number is None else ["--seccomp", str(filter_number)]
    tree = [
        *_tree(interpreter),
        "--size",
        str(disk_mb * MEGABYTE),
        "--perms",
        "0700",
        "--tmpfs",
        "/tmp",
        "--remount-ro",
        "/",
    ]
    as_nobody = _as_nobody(tools.setpriv) if tools.setpriv else []
    return [*as_nobody, tools.bwrap, *walls, *identity, *filters, *tree, "--chdir", "/tmp", interpreter.path, *OPTIONS]


def _as_nobody(setpriv: str) -> list[str]:
    return [setpriv, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"]


def _tree(interpreter: Interpreter) -> list[str]:
    """Options that bind what is readable, each at its own place."""
    options: list[str] = []
    for place in (*LIBRARIES, LOADER_CACHE):
        if os.path.islink(place):
            options += ["--symlink", os.readlink(place), place]
        elif os.path.exists(place):
            options += ["--ro-bind", place, place]
    if Path(interpreter.prefix) == Path("/usr"):
        options += ["--ro-bind", interpreter.path, interpreter.path]
    else:
        options += ["--ro-bind", interpreter.prefix, interpreter.prefix]
    for device in DEVICES:
        options += ["--dev-bind", device, device]
    return options


@contextmanager
def filter_file(program: bytes | None) -> Iterator[int | None]:
    """The number of an open file with the filter, to be inherited; None without a filter. It fits into a pipe."""
    if program is None:
        yield None
        return
    number, end = os.pipe()
    try:
        os.write(end, program)
        os.close(end)
        yield number
    finally:
        os.close(number)
