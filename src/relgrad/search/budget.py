"""Hard limits: the worst that a call can cost is reserved before it is made, so that no limit is ever passed."""

from __future__ import annotations

import time

from relgrad.backends.protocol import NOTHING, Usage
from relgrad.search.settings import Budget as Limits


class BudgetSpent(Exception):
    """The next call might pass a limit; the message names it."""


class Budget:
    """What was spent, what is reserved for calls under way, and what may be.

    seconds_before  of running, in earlier sessions of the same search
    """

    def __init__(self, limits: Limits, seconds_before: float = 0.0) -> None:
        self.limits = limits
        self.spent, self.reserved = NOTHING, NOTHING
        self._start = time.monotonic() - seconds_before
        self._share: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Of running, earlier sessions included."""
        return time.monotonic() - self._start

    def narrow(self, parts: int) -> None:
        """From here on only one of so many equal parts of what is left may be spent, of calls, tokens and money."""
        self._share = {
            name: used + (limit - used) / parts
            for name, limit, used in (
                ("calls", self.limits.calls, self.spent.calls),
                ("tokens", self.limits.tokens, self.spent.tokens),
                ("money", self.limits.money, self.spent.money),
            )
            if limit is not None
        }

    def reserve(self, worst: Usage) -> None:
        """Set the worst case of a call aside. Raises BudgetSpent where it might pass a limit."""
        after = self.spent.plus(self.reserved).plus(worst)
        for name, limit, used in (
            ("calls", self.limits.calls, after.calls),
            ("tokens", self.limits.tokens, after.tokens),
            ("money", self.limits.money, after.money),
        ):
            if limit is not None and used > self._share.get(name, limit):
                raise BudgetSpent(f"budget: {name}, {self._share.get(name, limit):g}")
        if self.limits.seconds is not None and self.seconds > self.limits.seconds:
            raise BudgetSpent(f"budget: seconds, {self.limits.seconds:g}")
        self.reserved = self.reserved.plus(worst)

    def settle(self, worst: Usage, actual: Usage) -> None:
        """A call has ended: what it cost takes the place of what was reserved."""
        self.reserved = self.reserved.plus(worst.times(-1))
        self.spent = self.spent.plus(actual)

    def charge(self, usage: Usage) -> None:
        """Count what was paid in an earlier session."""
        self.spent = self.spent.plus(usage)
