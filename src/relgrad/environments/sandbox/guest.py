"""What runs inside: limits this process, executes the program, calls its function and reports. Standard library only.

A message is four bytes, its length with the highest byte first, and so many bytes of JSON. The guest says that it is ready, and
gets a job; the program's calls go out and answers come in; the last message is the report, which carries the job's token. The
token tells a report from what a program writes to the channel itself; a program that digs it out of its interpreter can report
what it could have returned as well.

The source of this file is handed to the interpreter as text (launch.py).
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from relgrad.environments.sandbox.values import pack, unpack

MEGABYTE = 2**20
SPARE = 32 * MEGABYTE
"""Memory that is kept to report that there is no more."""
SHOWN = 2000
"""Characters of an error that are reported."""
CHANNEL = 3
"""The number that the inherited socket gets here, whatever it was in the parent."""
PROGRAM, PRELUDE = "<program>", "<prelude>"


class Channel:
    """Messages over one inherited socket."""

    def __init__(self, number: int) -> None:
        self.number = number

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(self.number, data) :]

    def receive(self) -> Any:
        """Ends this process where the parent is gone."""
        return json.loads(self._read(struct.unpack(">I", self._read(4))[0]))

    def _read(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = os.read(self.number, min(count - len(parts), MEGABYTE))
            if not part:
                os._exit(1)
            parts += part
        return parts


def confine(limits: dict[str, int]) -> None:
    """Limit this process and those it starts. Soft limits of memory and time end a program with a report or a signal of its own."""
    memory, seconds = limits["memory_mb"] * MEGABYTE, limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + SPARE))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if "tasks" in limits:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["tasks"], limits["tasks"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk_mb"] * MEGABYTE,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for name in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(name, (0, 0))


def main(number: int) -> None:
    """Serve one job on the inherited socket, and end."""
    if number != CHANNEL:
        os.dup2(number, CHANNEL)
        os.close(number)
    channel = Channel(CHANNEL)
    channel.send({"ready": True})
    job = channel.receive()
    sys.path[:] = [place for place in sys.path if place]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a crash would swallow is printed before
    confine(job["limits"])
    try:
        report = {"value": _packed(_execute(job, channel), job["limits"]["message_kb"] * 1024)}
    except _Ended as ended:
        report = {"error": ended.kind, "message": ended.message[:SHOWN]}
    except MemoryError:
        report = {"error": "memory", "message": "the program wanted more memory than it may have"}
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed or replaced by the program
            continue
    channel.send({"token": job["token"], **report})
    os._exit(0)


class _Ended(Exception):
    """The program's end without a value."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message


def _execute(job: dict[str, Any], channel: Channel) -> Any:
    """What the program's function returns. Raises _Ended, and MemoryError."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    names = vars(module)
    names["call"] = _caller(channel)
    inputs = unpack(job["inputs"])
    try:
        for text, name in ((job["prelude"], PRELUDE), (job["program"], PROGRAM)):
            exec(compile(text, name, "exec", dont_inherit=True), names)
        if not callable(names.get(job["entry"])):
            raise _Ended("exception", f"the program defines no function {job['entry']!r}")
        value = names[job["entry"]](**inputs)
        return _awaited(value) if isinstance(value, types.CoroutineType) else value
    except (_Ended, MemoryError):
        raise
    except BaseException as error:
        raise _Ended(_kind(error), _described(error)) from None


def _awaited(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


def _caller(channel: Channel) -> Callable[..., Any]:
    def call(name: str, /, **arguments: Any) -> Any:
        """Ask the parent, and wait for its answer. One that is refused ends the program."""
        channel.send({"call": name, "arguments": pack(arguments)})
        return unpack(channel.receive())

    return call


def _packed(value: Any, most: int) -> Any:
    try:
        data = pack(value)
        size = len(json.dumps(data))
    except MemoryError:
        raise
    except Exception as error:
        raise _Ended("no data", f"the program's value: {type(error).__name__}: {error}") from None
    if size > most:
        raise _Ended("no data", f"the program's value has {size} bytes, more than {most}")
    return data


def _kind(error: BaseException) -> str:
    """A program that does not parse has reached none of its lines, and its error is "syntax"; all others are "exception"."""
    reached = any(frame.f_code.co_filename == PROGRAM for frame, _ in traceback.walk_tb(error.__traceback__))
    return "syntax" if isinstance(error, SyntaxError) and error.filename == PROGRAM and not reached else "exception"


def _described(error: BaseException) -> str:
    """The error in one line, and the line of the program it came from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == PROGRAM]
    text = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    return f"{text} (line {lines[-1]})" if lines else text
