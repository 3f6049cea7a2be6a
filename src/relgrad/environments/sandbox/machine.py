"""What this machine can contain: each part is tried out, and what is missing has a reason and a fix.

full        bubblewrap and a filter of system calls
namespaces  bubblewrap alone
none        limits of memory and time, which is no boundary
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from relgrad.environments.sandbox import system_calls
from relgrad.environments.sandbox.bubblewrap import Interpreter, Tools, command, filter_file
from relgrad.environments.sandbox.outcome import Level

INSTALL = "apt-get install bubblewrap libseccomp2 and pip install 'relgrad[sandbox]'"
PATIENCE = 60.0
"""Seconds that trying one out may take, on a machine with much else to do."""


@dataclass(frozen=True)
class Containment:
    """How programs are contained here.

    facts   what there is, for people: versions, who programs run as
    lacks   why the level is no higher, "" where it is full
    """

    level: Level
    interpreter: Interpreter
    tools: Tools | None = None
    filter: bytes | None = field(default=None, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    lacks: str = ""


@cache
def containment() -> Containment:
    """The highest level that works here, found out once in a process."""
    tools = _tools()
    if isinstance(tools, str):
        return _uncontained(tools)
    program, lacks = _filter()
    interpreter = _working(tools, program)
    if isinstance(interpreter, str):
        return _uncontained(interpreter)
    facts = {
        "bubblewrap": _version(tools),
        "system calls": "filtered" if program else "not filtered",
        "runs as": "nobody" if tools.setpriv else "you, shown as nobody inside",
        "interpreter": interpreter.path,
    }
    return Containment("full" if program else "namespaces", interpreter, tools, program, facts, lacks)


def _uncontained(lacks: str) -> Containment:
    interpreter = Interpreter(sys.executable, sys.base_prefix)
    return Containment("none", interpreter, facts={"runs as": "you", "interpreter": interpreter.path}, lacks=lacks)


def _tools() -> Tools | str:
    """The tools, or what is missing."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed (no bwrap on the PATH)"
    if os.geteuid() != 0:
        return Tools(bwrap, None)
    setpriv = shutil.which("setpriv")
    return Tools(bwrap, setpriv) if setpriv else "root needs setpriv (util-linux) to run programs as nobody"


def _filter() -> tuple[bytes | None, str]:
    """The filter of system calls; or None, and what is missing."""
    try:
        return system_calls.program(), ""
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"system calls cannot be filtered ({type(error).__name__}: {error})"


def interpreters() -> list[Interpreter]:
    """This process's own first, then the system's; each file once."""
    own = Interpreter(str(Path(sys.executable).resolve()), sys.base_prefix)
    system = [
        Interpreter(str(path), "/usr" if path.is_relative_to("/usr/bin") else str(path.parent.parent))
        for name in ("/usr/bin/python3", "/usr/local/bin/python3")
        if (path := Path(name).resolve()).exists()
    ]
    return list({one.path: one for one in (own, *system)}.values())


def _working(tools: Tools, program: bytes | None) -> Interpreter | str:
    """The first interpreter that starts behind the walls; or what was said when the last one did not."""
    complaint = "there is no Python that programs could run with"
    for interpreter in interpreters():
        complaint = _tried(tools, interpreter, program)
        if not complaint:
            return interpreter
    return f"bubblewrap cannot make its walls here ({complaint})"


def _tried(tools: Tools, interpreter: Interpreter, program: bytes | None) -> str:
    """ "" where it starts; otherwise the last line of what it said."""
    with filter_file(program) as number:
        line = command(tools, interpreter, 1, number)
        passed = () if number is None else (number,)
        try:
            done = subprocess.run(
                [*line, "-c", "import asyncio, json"], pass_fds=passed, env={}, capture_output=True, timeout=PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (words[-1] if words else f"exit code {done.returncode}")


def _version(tools: Tools) -> str:
    output = subprocess.run([tools.bwrap, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    return output.strip().rpartition(" ")[2]
