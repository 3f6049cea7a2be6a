"""A call on the main thread under a deadline: where people's functions are at home, and where they can be interrupted.

Much foreign code works on the main thread alone: whatever sets signal handlers or alarms (math-verify, sympy's time-outs), some
browsers and event loops. So functions are called there, as trainers that know no deadline call them. At the deadline a second
thread sends the main thread a signal, whose handler raises `Hung` inside the function; waiting (sleep, sockets, processes) is
interrupted by it too. A function that swallows it is interrupted again every second. What runs inside C code and never returns to
Python (a regular expression that backtracks for ever) is beyond any handler: only a process of its own can be ended (_process.py).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds between interrupts of a function that goes on."""


class Hung(BaseException):
    """The call did not return in time. It is no Exception, so a reward's `except Exception: return 0.0` makes no score of it."""


def can_interrupt() -> bool:
    """Whether this is the main thread, on a system that can interrupt it, and the signal is not another library's."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR2"):
        return False
    return signal.getsignal(signal.SIGUSR2) is not None


class MainThread:
    """Calls functions on the main thread, `seconds` for each.

    One thread watches all calls. It sleeps until the call that it saw last would be over, looks which one it is by then, and ends
    when there is none; so a call costs little more than the function.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._due: float | None = None  # when the present call is over, by time.monotonic
        self._watched = False
        self._over = False  # the present call was interrupted
        self._listening = False  # an interrupt raises
        self._pending = False  # a signal was sent and not handled
        self._before: Any = None

    def call(self, function: Callable[[], Any]) -> Any:
        """The function's result or its exception; Hung, the function interrupted, where it takes longer."""
        self._before = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, self._interrupt)
        try:
            self._begin()
            return self._unless_over(function)
        finally:
            self._end()
            signal.signal(signal.SIGUSR2, self._before)

    def _begin(self) -> None:
        with self._lock:
            self._over, self._listening = False, True
            self._due = time.monotonic() + self.seconds
            if self._watched:
                return
            self._watched = True
        threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="relgrad-deadline", daemon=True
        ).start()

    def _unless_over(self, function: Callable[[], Any]) -> Any:
        """What the function makes of an interrupt does not count, neither a value nor another exception."""
        try:
            result = function()
            self._listening = False
        except BaseException as error:
            self._listening = False
            if self._over and not isinstance(error, KeyboardInterrupt):
                raise Hung from error
            raise
        if self._over:
            raise Hung
        return result

    def _end(self) -> None:
        with self._lock:
            self._due, self._listening = None, False
        while self._pending:  # a signal that finds the handler gone would end the process
            time.sleep(0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._pending:  # somebody else's signal
            signal.signal(number, self._before)
            signal.raise_signal(number)
            signal.signal(number, self._interrupt)
            return
        self._pending = False
        if self._listening:
            raise Hung

    def _watch(self, home: int) -> None:
        while True:
            with self._lock:
                if self._due is None:
                    self._watched = False
                    return
                rest = self._due - time.monotonic()
                if rest <= 0:
                    self._over = self._pending = True
                    signal.pthread_kill(home, signal.SIGUSR2)
                    rest = min(AGAIN, self.seconds)
            time.sleep(rest)
