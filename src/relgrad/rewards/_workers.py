"""Calling other people's functions under a deadline, with one thread for all the calls that keep to it.

A Python thread cannot be stopped from outside. So a call that hangs is left behind on its daemon thread (which neither
delays the process's end nor is used again) and the next call gets a fresh thread. As long as nothing hangs, there is
one thread for synchronous calls and one, with an event loop, for coroutines. A function that hangs inside C code while
holding the interpreter's lock (a regular expression that backtracks for ever) stops every thread; no deadline helps.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any


class Hung(Exception):
    """The call did not return in time."""


class Worker:
    """Runs synchronous calls one after the other on a daemon thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] | None = None

    def call(self, function: Callable[[], Any], timeout: float) -> Any:
        """The function's result or its exception; Hung after `timeout` seconds."""
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._jobs,), name="relgrad-reward", daemon=True).start()
        future: Future[Any] = Future()
        self._jobs.put((function, future))
        if not wait([future], timeout).done:
            self.close()
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


async def _awaited(function: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await function()
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the loop, and with it every other call
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


class AsyncWorker:
    """Runs coroutines together on one event loop, which stays open between batches (as sessions and pools expect)."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, function: Callable[[], Awaitable[Any]]) -> Future[Any]:
        """Call an async function on the loop now; `result` waits for it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="relgrad-reward-async", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_awaited(function), self._loop)

    def result(self, future: Future[Any], timeout: float) -> Any:
        """The coroutine's result or its exception; Hung, and cancelled, after `timeout` more seconds."""
        if not wait([future], timeout).done:
            future.cancel()
            self._drop_if_blocked()
            raise Hung
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the coroutine was cancelled") from None

    def _drop_if_blocked(self) -> None:
        """A coroutine that blocks without awaiting stops the whole loop; then the next batch gets a new one."""
        if self._loop is not None:
            answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
            if not wait([answer], 1.0).done:
                self._loop = None

    def close(self) -> None:
        """Stop the loop, and with it the thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
