"""The thread and event loop that a browser lives on, so that it can be called from any thread (rewards run on changing ones)."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from relgrad.environments.forms.outcome import Unscored

Result = TypeVar("Result")
PATIENCE = 180.0
"""Seconds that starting a browser or a page may take."""
FAREWELL = 5.0
"""Seconds that closing something may take."""


class OwnThread:
    """An event loop on a daemon thread, from the first work on until `close`, or the end of the process.

    begin  called before each life of the loop
    end    what the loop does last
    """

    def __init__(self, name: str, begin: Callable[[], None], end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name, self._begin, self._end = name, begin, end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin something on the thread."""
        with self._lock:
            if self._loop is None:
                self._begin()
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True).start()
                atexit.register(self.close)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def all(self, works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result | Unscored]:
        """The results in order; Unscored is returned, not raised. When the wait is interrupted, all of them end."""
        started = [self.start(work) for work in works]
        try:
            return [_answer(future) for future in started]
        finally:
            for future in started:
                future.cancel()  # of no effect on one that is done

    def close(self) -> None:
        """End the loop. Another begins when there is more work."""
        with self._lock:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None
                atexit.unregister(self.close)


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result()
    except Unscored as failure:
        return failure


def first_line(error: Exception) -> str:
    """An error's kind and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
