"""Threads for calls that do not run on the main thread: all coroutines, on one event loop, and functions where it is not to be had.

A Python thread cannot be stopped from outside. A call that hangs there is left behind, and whoever made it asks `running` before it
makes another, so that nothing runs beside itself. Threads are daemons: they do not delay the process's end.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import Any

from relgrad.rewards._deadline import Hung

RESPITE = 1.0
"""Seconds in which an event loop that is late must answer, or it is blocked."""


class Worker:
    """Runs functions one after the other on a daemon thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] | None = None
        self._last: Future[Any] | None = None

    @property
    def running(self) -> bool:
        """Whether a function is being called."""
        return self._last is not None and not self._last.done()

    def start(self, function: Callable[[], Any]) -> Future[Any]:
        """Call the function after those that were started before."""
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._jobs,), name="relgrad-reward", daemon=True).start()
        self._last = Future()
        self._jobs.put((function, self._last))
        return self._last

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """The function's result or its exception; Hung, the function going on, where it takes longer."""
        future = self.start(function)
        if not wait([future], seconds).done:
            raise Hung
        return future.result()

    def close(self) -> None:
        """Let the thread end after its present call."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


def _serve(jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (job := jobs.get()) is not None:
        function, future = job
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        del job, function, future


# ---------------------------------------------------------------------- coroutines


@dataclass
class AsyncCall:
    """A coroutine on the event loop.

    answer  its result, or Hung from its deadline on
    due     when it must have answered, if the loop is not late, by time.monotonic
    """

    answer: Future[Any]
    due: float
    loop: asyncio.AbstractEventLoop
    tasks: list[asyncio.Future[Any]] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether the coroutine has begun and not ended; one that swallows its cancellation goes on after its deadline."""
        return any(not task.done() for task in self.tasks)


class AsyncWorker:
    """Runs coroutines together on one event loop, which stays open between batches (as sessions and pools expect)."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, function: Callable[[], Awaitable[Any]], seconds: float) -> AsyncCall:
        """Call an async function on the loop now; its deadline is `seconds` after it begins. `result` waits for it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="relgrad-reward-async", daemon=True).start()
        tasks: list[asyncio.Future[Any]] = []
        answer = asyncio.run_coroutine_threadsafe(_limited(function, seconds, tasks), self._loop)
        return AsyncCall(answer, time.monotonic() + seconds, self._loop, tasks)

    def result(self, call: AsyncCall) -> Any:
        """The coroutine's result or its exception; Hung, and cancelled, where it took longer or its loop is blocked."""
        wait([call.answer], max(0.0, call.due - time.monotonic()))
        while not call.answer.done():
            if not self._answers(call.loop):
                call.answer.cancel()
                raise Hung
            wait([call.answer], 0.05)
        try:
            return call.answer.result()
        except CancelledError:
            raise RuntimeError("the coroutine was cancelled") from None

    def _answers(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the loop goes round. A coroutine that computes without awaiting blocks it; later calls then get a new one."""
        ping = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        if wait([ping], RESPITE).done:
            return True
        if loop is self._loop:
            self._loop = None
        return False

    def close(self) -> None:
        """Stop the loop, and with it the thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


async def _limited(function: Callable[[], Awaitable[Any]], seconds: float, tasks: list[asyncio.Future[Any]]) -> Any:
    """The coroutine's result within its time; its task is noted in `tasks` when it begins."""
    task = asyncio.ensure_future(_awaited(function, tasks))
    try:
        ended, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()  # of no effect on one that has ended
    if not ended:
        raise Hung
    return task.result()


async def _awaited(function: Callable[[], Awaitable[Any]], tasks: list[asyncio.Future[Any]]) -> Any:
    if (own := asyncio.current_task()) is not None:
        tasks.append(own)
    try:
        return await function()
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the loop, and with it every other call
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
