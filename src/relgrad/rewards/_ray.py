"""A reward on Ray workers: browsers, sandboxes and slow judges beside the machine that trains, several groups at a time.

Each worker is an actor, a process of its own that builds the reward once and answers as the process of `isolate: process` does, one
group after the other. A call that outlasts its deadline is ended with its actor, and the next one gets another; what a lost actor
was asked counts as unscored. Starting an actor is not counted against a deadline. Every worker gets the next group that waits;
which one it gets is not decided by the seed, so a reward that remembers earlier calls may differ from one in a single process.

The cluster: that of the job this run is, else the one RAY_ADDRESS names, else one that runs on this machine, else one that is
started here for this process. Workers need relgrad and the same files: they go to this working directory where they have one.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import references
from relgrad.rewards._answers import Answer, Group, Unanswered, hung
from relgrad.rewards._process import Isolated, Mistake, Order
from relgrad.rewards._workers import Worker

INSTALL = "pip install 'relgrad[ray]'"
PATIENCE = 60.0
"""Seconds in which the cluster must have room for a worker."""
LATE = 2.0
"""Seconds that an answer may be on its way."""
REACHED = 10.0
"""Seconds in which a cluster must accept a connection."""


class _Actor:
    """What runs on a worker."""

    def __init__(self, folder: str, path: Sequence[str]) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path[:] = [*path, *(place for place in sys.path if place not in path)]

    def here(self) -> bool:
        return True

    def build(self, order: Order, secrets: dict[str, str]) -> Mistake | None:
        """Build the reward; its secrets are put into this process's environment, where it looks for them."""
        from relgrad.rewards._child import build, message_of

        os.environ.update(secrets)
        self.order = order
        try:
            self.caller = build(order)
        except BaseException as error:
            return Mistake(message_of(error, f"reward {order.name!r}: cannot be built on its Ray worker"))
        return None

    def answer(self, group: Group, step: int) -> Answer | Mistake:
        from relgrad.rewards._child import message_of, one_by_one
        from relgrad.rewards._runners import Asynchronous
        from relgrad.rewards._workers import AsyncWorker

        seconds = self.order.seconds
        try:
            if not self.caller.is_async:
                return one_by_one(self.caller, [group], step, seconds)[0]
            loop = AsyncWorker()
            together = Asynchronous(self.caller, seconds, loop)
            together.begin([group], step)
            try:
                return next(iter(together.answers()))
            finally:
                together.cancel()
                loop.close()
        except Exception as error:
            return Mistake(message_of(error, f"reward {self.caller.name!r}: cannot be called on its Ray worker"))


class RayRunner:
    """Implements Runner for a reward on Ray workers, which are started at once."""

    meanwhile = True

    def __init__(self, name: str, reward: Isolated, seconds: float) -> None:
        self._order, self._ray = Order(name, reward, seconds), connected()
        names = references(reward.options)
        self._secrets = {name: os.environ[name] for name in names if name in os.environ}
        self._threads = [Worker() for _ in range(reward.workers)]
        self._actors: list[Any] = [self._new() for _ in self._threads]
        self._ready = [False for _ in self._threads]
        self._answers: list[Future[Answer]] = []
        self._stop = threading.Event()

    def wait(self) -> None:
        """Until every worker has built the reward. Raises RelgradError with what went wrong there, or where there is no room."""
        for number in range(len(self._actors)):
            self._prepare(number)

    def begin(self, groups: Sequence[Group], step: int) -> None:
        self._stop = stop = threading.Event()
        self._answers = [Future() for _ in groups]
        waiting: queue.SimpleQueue[tuple[Group, Future[Answer]]] = queue.SimpleQueue()
        for job in zip(groups, self._answers, strict=True):
            waiting.put(job)
        for number, thread in enumerate(self._threads):
            thread.start(partial(self._work, number, waiting, step, stop))

    def answers(self) -> Iterator[Answer]:
        for future in self._answers:
            yield future.result()

    def cancel(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.close()
        for actor in self._actors:
            with suppress(Exception):  # the cluster may be gone
                self._ray.kill(actor)

    # ------------------------------------------------------------------ on the threads

    def _work(
        self, number: int, waiting: queue.SimpleQueue[tuple[Group, Future[Answer]]], step: int, stop: threading.Event
    ) -> None:
        while not stop.is_set():
            try:
                group, future = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                future.set_result(self._ask(number, group, step))
            except BaseException as error:
                future.set_exception(error)

    def _ask(self, number: int, group: Group, step: int) -> Answer:
        try:
            self._prepare(number)
        except RelgradError as error:  # it could be started before, so this may be bad luck
            return Unanswered(f"could not be started again: {error}")
        seconds = self._order.seconds
        try:
            call = self._actors[number].answer.remote(group, step)
        except (TypeError, ValueError) as error:  # cloudpickle's refusals
            raise RelgradError(
                f"reward {self._order.name!r}: isolate: ray sends prompts with all columns to other processes, and a column "
                f"cannot be sent ({error}); keep to text, numbers, lists and mappings, or leave isolate out"
            ) from error
        try:
            reply: Answer | Mistake = self._ray.get(call, timeout=seconds + LATE)
        except self._ray.exceptions.GetTimeoutError:
            self._renew(number)
            return hung(seconds)
        except self._ray.exceptions.RayError as error:
            self._renew(number)
            return Unanswered(f"its Ray worker was lost ({type(error).__name__})")
        if isinstance(reply, Mistake):
            raise RelgradError(reply.message)
        return reply

    def _new(self) -> Any:
        return self._ray.remote(_Actor).remote(os.getcwd(), [place for place in sys.path if place])

    def _renew(self, number: int) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors[number])
        self._actors[number], self._ready[number] = self._new(), False

    def _prepare(self, number: int) -> None:
        """Until this worker has built the reward, which takes as long as it takes; that it starts does not."""
        if self._ready[number]:
            return
        actor, where = self._actors[number], f"reward {self._order.name!r}: worker {number + 1} of {len(self._actors)}"
        try:
            self._ray.get(actor.here.remote(), timeout=PATIENCE)
            mistake: Mistake | None = self._ray.get(actor.build.remote(self._order, self._secrets))
        except self._ray.exceptions.GetTimeoutError:
            room = self._ray.available_resources().get("CPU", 0)
            raise RelgradError(
                f"{where} found no room on the Ray cluster within {PATIENCE:g} s, where {room:g} CPUs are free and a worker "
                "needs one to start: lower ray_workers, or add nodes"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise RelgradError(f"{where} could not be started ({type(error).__name__}: {str(error)[:400]})") from None
        if mistake is not None:
            raise RelgradError(mistake.message)
        self._ready[number] = True


def connected() -> Any:
    """Ray, with this process connected to a cluster. Raises RelgradError without Ray, and where a named one is not there."""
    try:
        import ray
    except ImportError:
        raise RelgradError(f"isolate: ray needs Ray: {INSTALL}") from None
    if ray.is_initialized():
        return ray
    _require_reachable(os.environ.get("RAY_ADDRESS", ""))
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if here else None  # Ray takes it for itself
    try:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _absent(str(error).strip()[:300]) from None
    finally:
        if here and before is not None:
            signal.signal(signal.SIGTERM, before)
    return ray


def _require_reachable(address: str) -> None:
    """Raise RelgradError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHED).close()
    except OSError as error:
        raise _absent(str(error)) from None


def _absent(why: str) -> RelgradError:
    address = os.environ.get("RAY_ADDRESS")
    named = f" at RAY_ADDRESS={address}" if address else ""
    return RelgradError(
        f"isolate: ray: no Ray cluster answers{named} ({why}); start one with `ray start --head`, or leave RAY_ADDRESS out to use "
        "this machine"
    )
