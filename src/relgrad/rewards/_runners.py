"""Where a reward is called: one runner per reward, of four kinds.

Synchronous   on the main thread, where a deadline interrupts it; on a thread of its own where it is another that asks for rewards
Asynchronous  on the event loop that all coroutines share, all groups at once
Isolated      in a process of its own, which is ended at the deadline (_process.py)
Ray           in processes of a Ray cluster, which are ended at the deadline (_ray.py)

`begin` starts what can run meanwhile; `answers` gives one answer per group, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from relgrad.rewards._answers import Answer, Group, Running, answer_of
from relgrad.rewards._calling import Caller
from relgrad.rewards._deadline import MainThread, can_interrupt
from relgrad.rewards._workers import AsyncCall, AsyncWorker, Worker


class Runner(Protocol):
    """Calls one reward. `meanwhile`: whether it works between `begin` and `answers`."""

    meanwhile: bool

    def begin(self, groups: Sequence[Group], step: int) -> None:
        """Raises RelgradError where the reward cannot be called so."""
        ...

    def answers(self) -> Iterator[Answer]:
        """One per group. Raises RelgradError for mistakes that would not go away by themselves."""
        ...

    def cancel(self) -> None:
        """Forget what was begun and not answered."""
        ...

    def close(self) -> None:
        """Let threads and processes end."""
        ...


Bound = tuple[Callable[[], Any], list[dict[str, float]]]
"""A call without arguments for one group, and the parts that it will log."""


def bind(caller: Caller, groups: Sequence[Group], step: int) -> list[Bound]:
    """The calls for these groups. Raises RelgradError for a column that the reward needs and the dataset does not have."""
    return [caller.bind(group.prompt, group.outputs, step) for group in groups]


class Synchronous:
    """Calls one group after the other, when its answer is asked for. `seconds` is the deadline of each call."""

    meanwhile = False

    def __init__(self, caller: Caller, seconds: float) -> None:
        self._caller, self._seconds = caller, seconds
        self._main, self._worker = MainThread(seconds), Worker()
        self._calls: list[Bound] = []

    def begin(self, groups: Sequence[Group], step: int) -> None:
        self._calls = bind(self._caller, groups, step)

    def answers(self) -> Iterator[Answer]:
        for function, parts in self._calls:
            yield answer_of(self._caller.name, partial(self._call, function), parts, self._seconds)

    def _call(self, function: Callable[[], Any]) -> Any:
        if self._worker.running:
            raise Running
        if not can_interrupt():
            return self._worker.call(function, self._seconds)
        with (
            torch.enable_grad()
        ):  # the mode of a fresh thread, and afterwards the one from before, whatever the function sets
            return self._main.call(function)

    def cancel(self) -> None:
        self._calls = []

    def close(self) -> None:
        self._worker.close()


class Asynchronous:
    """Calls all groups at once on the event loop. `seconds` is the deadline of each, from when it begins."""

    meanwhile = True

    def __init__(self, caller: Caller, seconds: float, loop: AsyncWorker) -> None:
        self._caller, self._seconds, self._loop = caller, seconds, loop
        self._calls: list[tuple[AsyncCall | None, list[dict[str, float]]]] = []
        self._left: list[AsyncCall] = []

    def begin(self, groups: Sequence[Group], step: int) -> None:
        self._left = [call for call in self._left if call.running]
        for function, parts in bind(self._caller, groups, step):
            self._calls.append((None if self._left else self._loop.start(function, self._seconds), parts))

    def answers(self) -> Iterator[Answer]:
        for call, parts in self._calls:
            yield answer_of(self._caller.name, partial(self._result, call), parts, self._seconds)

    def _result(self, call: AsyncCall | None) -> Any:
        if call is None:
            raise Running
        return self._loop.result(call)

    def cancel(self) -> None:
        for call, _ in self._calls:
            if call is not None:
                call.answer.cancel()
                self._left.append(call)
        self._calls = []

    def close(self) -> None:
        self._loop.close()


def runner_of(caller: Caller, seconds: float, loop: AsyncWorker) -> Runner:
    """The runner of a reward that is called in this process."""
    return Asynchronous(caller, seconds, loop) if caller.is_async else Synchronous(caller, seconds)
