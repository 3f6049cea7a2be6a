"""A reward in a process of its own, for code that must be ended at its deadline, or that must not share this process.

The process is a fresh interpreter that builds the reward once, user files included, and calls it on its main thread, one group
after the other (coroutines: all groups at once). A call that outlasts its deadline is ended with the process and with whatever the
process has started; the next call gets a fresh one. Starting a process is not counted against a deadline.

No process is left over: it leads a group of processes, which ends when this process ends, however it does (core/lifeline.py).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal

from relgrad.core.errors import RelgradError
from relgrad.rewards._answers import Answer, Group, Unanswered, hung
from relgrad.rewards._workers import Worker

LATE = 2.0
"""Seconds that a process may be late with the answer of a coroutine, which it cancels itself."""
FAREWELL = 2.0
"""Seconds that a process has to end by itself."""
PATIENCE = 60.0
"""Seconds that a process has at least to be ready again after it was ended."""
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from relgrad.rewards._child import serve; "
    "serve(int(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(frozen=True)
class Isolated:
    """A reward that is to run in a process of its own: its kind and options as the recipe has them, `where` it stands there.

    how      "process" here, "ray" on Ray workers
    workers  how many of these, each for one group at a time
    """

    kind: str
    options: dict[str, Any]
    where: str
    how: Literal["process", "ray"] = "process"
    workers: int = 1


@dataclass(frozen=True)
class Order:
    """What a process is to build: the reward called `name`, with so many seconds for each of its calls."""

    name: str
    reward: Isolated
    seconds: float


@dataclass(frozen=True)
class Ready:
    """What a process says when the reward is built."""

    is_async: bool


@dataclass(frozen=True)
class Mistake:
    """What a process says in place of an answer: an error that would not go away by itself."""

    message: str


class _Life:
    """One process, from its start to its end."""

    def __init__(self, order: Order) -> None:
        if os.name != "posix":
            raise RelgradError(f"reward {order.name!r}: isolate: process needs Linux or macOS; leave it out")
        self.connection, theirs = Pipe()
        lifeline, self._held = os.pipe()
        files = (theirs.fileno(), lifeline)
        command = [sys.executable, "-c", START, json.dumps([str(place) for place in sys.path]), *map(str, files)]
        try:
            self.process = subprocess.Popen(command, pass_fds=files, stdin=subprocess.DEVNULL, start_new_session=True)
        finally:
            theirs.close()
            os.close(lifeline)
        self.end = weakref.finalize(self, _end, self.process, self.connection, self._held)
        with suppress(OSError):  # one that has ended already is noticed when it is to answer
            self.connection.send(order)

    @property
    def ending(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _end(process: subprocess.Popen[bytes], connection: Connection, lifeline: int) -> None:
    """Let a process end, and kill it with its group where it does not."""
    connection.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(FAREWELL)
    _kill(process)
    os.close(lifeline)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class IsolatedRunner:
    """Implements Runner for a reward in a process of its own, which is started at once."""

    meanwhile = True

    def __init__(self, name: str, reward: Isolated, seconds: float) -> None:
        self._order = Order(name, reward, seconds)
        self._worker = Worker()
        self._life: _Life | None = _Life(self._order)
        self._ready = self._is_async = False
        self._patience: float | None = None
        self._answers: Future[list[Answer]] | None = None
        self._stop = threading.Event()

    def wait(self) -> None:
        """Until the reward is built. Raises RelgradError, with what went wrong there.

        The first time takes as long as it takes, as building a reward does; later ones, at most ten times as long or a minute.
        """
        if not self._ready:
            began = time.monotonic()
            self._is_async = self._started().is_async
            self._ready = True
            self._patience = max(PATIENCE, 10 * (time.monotonic() - began))

    def begin(self, groups: Sequence[Group], step: int) -> None:
        self._stop = stop = threading.Event()  # one a job: an earlier one that is being stopped stays so
        self._answers = self._worker.start(lambda: self._ask_all(groups, step, stop))

    def answers(self) -> Iterator[Answer]:
        assert self._answers is not None
        yield from self._answers.result()

    def cancel(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        busy = self._worker.running
        self._worker.close()
        self._drop(at_once=busy)

    # ------------------------------------------------------------------ on the worker's thread

    def _ask_all(self, groups: Sequence[Group], step: int, stop: threading.Event) -> list[Answer]:
        """All at once where the reward is a coroutine, which is then cancelled by the process itself."""
        if self._is_async:
            return self._ask(groups, step, self._order.seconds + LATE)
        answers: list[Answer] = []
        for group in groups:
            if stop.is_set():
                break
            answers += self._ask([group], step, self._order.seconds)
        return answers

    def _ask(self, groups: Sequence[Group], step: int, seconds: float) -> list[Answer]:
        try:
            self.wait()
        except RelgradError as error:  # it could be started before, so this may be bad luck
            return [Unanswered(f"could not be started again: {error}")] * len(groups)
        assert self._life is not None
        life = self._life
        try:
            life.connection.send((step, list(groups)))
        except (AttributeError, TypeError, ValueError, pickle.PicklingError) as error:
            raise RelgradError(
                f"reward {self._order.name!r}: isolate: process sends prompts with all their columns to another process, and a "
                f"column cannot be sent ({error}); keep to text, numbers, lists and mappings, or leave isolate out"
            ) from error
        except OSError:
            return self._ended(len(groups))
        try:
            if not life.connection.poll(seconds):
                self._drop(at_once=True)
                return [hung(self._order.seconds)] * len(groups)
            reply = life.connection.recv()
        except (EOFError, OSError):
            return self._ended(len(groups))
        if isinstance(reply, Mistake):
            raise RelgradError(reply.message)
        answers: list[Answer] = reply
        return answers

    def _started(self) -> Ready:
        if self._life is None:
            self._life = _Life(self._order)
        try:
            late = not self._life.connection.poll(self._patience)
            reply = Mistake(f"was not ready within {self._patience:g} s") if late else self._life.connection.recv()
        except (EOFError, OSError):
            reply = Mistake(f"reward {self._order.name!r}: its process {self._life.ending} while it was starting")
        if isinstance(reply, Mistake):
            self._drop(at_once=True)
            raise RelgradError(reply.message)
        ready: Ready = reply
        return ready

    def _ended(self, groups: int) -> list[Answer]:
        why = f"its process {self._life.ending}" if self._life is not None else "its process was ended"
        self._drop()
        return [Unanswered(why)] * groups

    def _drop(self, at_once: bool = False) -> None:
        """End the process; the next call starts another."""
        life, self._life, self._ready = self._life, None, False
        if life is not None:
            if at_once:
                _kill(life.process)
            life.end()
