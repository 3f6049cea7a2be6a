"""What runs in the process of an isolated reward: build it once, answer until nobody asks any more."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.lifeline import end_with
from relgrad.core.protocols import Learner
from relgrad.core.secrets import hide
from relgrad.core.settings import Component, settings_of
from relgrad.rewards._answers import Answer, Group, answer_of
from relgrad.rewards._calling import Caller
from relgrad.rewards._process import Mistake, Order, Ready
from relgrad.rewards._runners import Asynchronous, bind
from relgrad.rewards._workers import AsyncWorker


def serve(connection_number: int, lifeline: int) -> None:
    """Answer on one inherited file (a Connection) until it closes; end with the whole group when the other, a pipe, closes."""
    for number in (connection_number, lifeline):
        os.set_inheritable(number, False)
    # sent to all processes of a job, it is for the run to act on: it may have a step to finish, and this process ends with it
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    end_with(lifeline)
    connection = Connection(connection_number)
    try:
        order: Order = connection.recv()
        try:
            caller = build(order)
        except BaseException as error:
            connection.send(Mistake(message_of(error, f"reward {order.name!r}: cannot be built in its process")))
            return
        connection.send(Ready(caller.is_async))
        _answer_all(connection, caller, order.seconds)
    except (EOFError, BrokenPipeError):
        return


def build(order: Order) -> Caller:
    """The reward. Raises what building it raises, and RelgradError for one that goes on learning."""
    module = registry.find("rewards", order.reward.kind)
    component = Component(kind=order.reward.kind, **order.reward.options)
    reward: Any = module.build(settings_of(component, module.Settings, order.reward.where))
    if isinstance(reward, Learner) and reward.learns:
        raise RelgradError(
            f"reward {order.name!r}: isolate: {order.reward.how} is for rewards that stay as they are, and this one goes on "
            "learning; leave isolate out, or let it learn no more"
        )
    return Caller(order.name, reward)


def _answer_all(connection: Connection, caller: Caller, seconds: float) -> None:
    """Functions are called right here, on the main thread; who asks ends the process at the deadline."""
    together = Asynchronous(caller, seconds, AsyncWorker()) if caller.is_async else None
    while True:
        reply: list[Answer] | Mistake
        try:
            step, groups = connection.recv()
            if together is None:
                reply = one_by_one(caller, groups, step, seconds)
            else:
                together.begin(groups, step)
                reply = list(together.answers())
                together.cancel()
        except (EOFError, KeyboardInterrupt):
            return
        except Exception as error:
            reply = Mistake(message_of(error, f"reward {caller.name!r}: cannot be called in its process"))
        connection.send(reply)


def one_by_one(caller: Caller, groups: Sequence[Group], step: int, seconds: float) -> list[Answer]:
    return [answer_of(caller.name, call, parts, seconds) for call, parts in bind(caller, groups, step)]


def message_of(error: BaseException, what: str) -> str:
    """An error as the other process tells it: a RelgradError says all there is to say, others need their traceback."""
    if isinstance(error, RelgradError):
        return hide(str(error))
    lines: list[Any] = traceback.format_list(traceback.extract_tb(error.__traceback__)[-6:])
    return hide(f"{what} ({type(error).__name__}: {error})\n{''.join(lines).rstrip()}")
