"""One program, or many side by side.

The program is text. It is executed as a module in which `call(name, **arguments)` asks the parent; then its function `main` is
called with the inputs, and what it returns (a coroutine is awaited) is the value. Inputs, arguments and values are plain data
(values.py).
"""

from __future__ import annotations

import inspect
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from relgrad.core.errors import RelgradError
from relgrad.environments.sandbox.channel import Asked, Breach, Messages, Ready, Report
from relgrad.environments.sandbox.cores import cores
from relgrad.environments.sandbox.launch import Guest
from relgrad.environments.sandbox.limits import Limits, SandboxSettings
from relgrad.environments.sandbox.machine import INSTALL, Containment, containment
from relgrad.environments.sandbox.outcome import REPORTED, Call, ErrorKind, Outcome
from relgrad.environments.sandbox.values import pack

Calls = Mapping[str, Callable[..., Any]]
"""What a program may call: functions of this process, by name. They get the call's arguments by name and return plain data."""

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

STARTING = 60.0
"""Seconds that a guest may take to be ready, on a machine with much else to do."""
LOOKED_AT_LATE = 1.0
"""Seconds that this process may be late itself: what a program wrote before its time was over still counts."""
LEAVING = 5.0
"""Seconds that a process may take to be gone after its last message."""
PART = 65536
SAID = 2000
"""Characters of a message that are kept."""
LEAVES = (None, *REPORTED, "not run")
"""Ends after which the guest's process goes by itself."""


@dataclass(frozen=True)
class Job:
    """A program and what it is to do.

    prelude  text of the parent's own, executed before it in the same module
    entry    the function that is called with `inputs`, by name
    """

    program: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    calls: Calls = field(default_factory=dict)
    prelude: str = ""
    entry: str = "main"


class Refused(Exception):
    """Raised by a function of the table for a call that it refuses: one beyond a budget, or with arguments that make no sense.

    The program then ends with "refused call". Any other exception ends it with "call failed", which leaves it unscored.
    """


class Sandbox:
    """Executes programs as its settings say.

    Raises RelgradError where this machine cannot contain them and the settings do not allow that.
    """

    def __init__(self, settings: SandboxSettings, where: str = "sandbox") -> None:
        self.containment = containment()
        self.settings = settings
        if self.containment.level != "full" and not settings.allow_unsafe:
            raise RelgradError(
                f"{where}: generated code is not executed here, because this machine cannot contain it: {self.containment.lacks}. "
                f"Fix: {INSTALL} (`relgrad doctor` shows what there is); or say allow_unsafe: true where you trust the code"
            )
        if self.containment.level != "full":
            logger.warning(
                "%s: generated code is executed at level %r, which does not contain it: %s",
                where,
                self.containment.level,
                self.containment.lacks,
            )

    def run(self, job: Job) -> Outcome:
        """The program's end, whatever it does. Raises TypeError for inputs that are no plain data."""
        return run(job, self.settings, self.containment)

    def run_all(self, jobs: Sequence[Job], parallel: int | None = None) -> list[Outcome]:
        """All ends in the jobs' order; `parallel` at a time, as many as this process has cores where nothing is said."""
        return side_by_side(self.run, jobs, parallel)


def side_by_side(work: Callable[[T], R], items: Sequence[T], parallel: int | None = None) -> list[R]:
    """What `work` makes of every item, in order, each in a thread. One that fails, or an interrupt, keeps others from beginning."""
    with ThreadPoolExecutor(parallel or cores(), "relgrad-sandbox") as threads:
        waiting = [threads.submit(work, item) for item in items]
        try:
            return [one.result() for one in waiting]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def run(job: Job, limits: Limits, contained: Containment) -> Outcome:
    """Start a guest, serve it, and end it with all that it started."""
    inputs = pack(dict(job.inputs))
    try:
        guest = Guest(contained, limits)
    except OSError as error:
        return Outcome(error="not run", message=str(error), level=contained.level)
    try:
        return _Run(guest, job, inputs, limits, contained).outcome()
    finally:
        guest.end()


class _End(Exception):
    """The end of a run: an error, or a value where there is none."""

    def __init__(self, error: ErrorKind | None, message: str = "", value: Any = None) -> None:
        super().__init__(message)
        self.error, self.message, self.value = error, message, value


class _Run:
    """What is known of one guest while it runs. The clock stands while the parent answers a call."""

    def __init__(self, guest: Guest, job: Job, inputs: Any, limits: Limits, contained: Containment) -> None:
        self._guest, self._job, self._limits, self._contained = guest, job, limits, contained
        self._messages = Messages(guest.channel, limits)
        self._first = {
            "token": self._messages.token,
            "program": job.program,
            "prelude": job.prelude,
            "entry": job.entry,
            "inputs": inputs,
            "limits": {**limits.model_dump(), **guest.tasks(limits)},
        }
        self._calls: list[Call] = []
        self._printed, self._count = bytearray(), 0
        self._began: float | None = None
        self._due = time.monotonic() + STARTING

    def outcome(self) -> Outcome:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._guest.channel, selectors.EVENT_READ)
            waiting.register(self._guest.printed, selectors.EVENT_READ)
            try:
                while True:
                    self._step(waiting)
            except Breach as breach:
                end = _End(breach.error, str(breach))
            except _End as reached:
                end = reached
        seconds = time.monotonic() - self._began if self._began is not None else 0.0
        if end.error in LEAVES:
            self._rest_of_printed()
        text = self._printed.decode(errors="replace")
        message = end.message if end.error != "not run" else f"{end.message}: {text.strip()}".removesuffix(": ")
        message = (
            message[:SAID].encode(errors="backslashreplace").decode()
        )  # half a character could not be written to a file
        return Outcome(end.value, end.error, message, text, tuple(self._calls), seconds, self._contained.level)

    def _step(self, waiting: selectors.BaseSelector) -> None:
        """Wait for the next thing to happen. Raises _End and Breach."""
        rest = self._due - time.monotonic()
        happened = waiting.select(max(rest, 0))
        if rest <= -LOOKED_AT_LATE or (rest <= 0 and not happened):
            raise self._late()
        for key, _ in happened:
            if key.fileobj is self._guest.printed:
                if not self._print():
                    waiting.unregister(self._guest.printed)
            elif not self._messages.read():
                raise self._left()
            else:
                while (message := self._messages.next()) is not None:
                    self._act(message)

    def _act(self, message: Ready | Asked | Report) -> None:
        match message:
            case Ready():
                self._began = time.monotonic()
                self._due = self._began + self._limits.seconds
                self._reply(self._first)
            case Report(value, error, text):
                raise _End(error, text, value)
            case Asked(name, arguments):
                self._answer(name, arguments)

    def _answer(self, name: str, arguments: dict[str, Any]) -> None:
        if name not in self._job.calls:
            allowed = ", ".join(self._job.calls) or "none"
            raise _End("refused call", f"no call {name[:80]!r}; allowed: {allowed}")
        if len(self._calls) >= self._limits.calls:
            raise _End("refused call", f"more than {self._limits.calls} calls")
        function = self._job.calls[name]
        if wrong := _misfit(function, arguments):
            raise _End("refused call", f"{name}: {wrong}")
        started = time.monotonic()
        try:
            value = function(**arguments)
        except Refused as error:
            raise _End("refused call", str(error)) from None
        except Exception as error:
            raise _End("call failed", f"{name}: {type(error).__name__}: {error}") from error
        took = time.monotonic() - started
        self._calls.append(Call(name, arguments, value, took))
        self._due += took
        try:
            data = pack(value)
        except (TypeError, RecursionError) as error:
            raise _End("call failed", f"{name}: {error}") from None
        self._reply(data)

    def _reply(self, message: Any) -> None:
        """A guest that is gone gets no reply; what it wrote before is still read."""
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._messages.send(message, max(self._due - time.monotonic(), 0.001))
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> _End:
        if self._began is None:
            return _End("not run", f"the sandbox was not ready within {STARTING:g} s")
        return _End("timeout", f"no value within {self._limits.seconds:g} s")

    def _left(self) -> _End:
        """How a process that closed its channel ended."""
        try:
            code = self._guest.process.wait(LEAVING)
        except subprocess.TimeoutExpired:
            return _End("crash", "the program closed its channel")
        if self._began is None:
            return _End("not run", f"the sandbox ended with exit code {code}")
        number = _signal(code)
        if number == signal.SIGXCPU:
            return _End("timeout", f"no value within {self._limits.cpu_seconds} s of computing")
        if number is not None:
            return _End("crash", f"the program's process was killed by {number.name}")
        return _End("crash", f"the program's process ended with exit code {code} and without a value")

    def _print(self) -> bool:
        """Take what was printed; False where nothing more can come. Raises _End for a flood."""
        part = os.read(self._guest.printed.fileno(), PART)
        self._count += len(part)
        self._printed += part[: max(self._limits.printed_kb * 1024 - len(self._printed), 0)]
        if self._count > self._limits.flood_mb * 2**20:
            raise _End("flood", f"the program printed more than {self._limits.flood_mb} MB")
        return bool(part)

    def _rest_of_printed(self) -> None:
        """What was still on its way, until the process is gone."""
        until = time.monotonic() + LEAVING
        with selectors.DefaultSelector() as waiting, suppress(_End):
            waiting.register(self._guest.printed, selectors.EVENT_READ)
            while waiting.select(max(until - time.monotonic(), 0)) and self._print():
                pass


def _misfit(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What is wrong with the arguments of a call, by the function's signature; "" where they fit, or nobody knows."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions in C have none
        return ""
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return str(error)
    return ""


def _signal(code: int) -> signal.Signals | None:
    """What killed a process, of its exit code as Popen or, with 128 added, as bubblewrap reports it; None for other ends."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in set(signal.Signals) else None
