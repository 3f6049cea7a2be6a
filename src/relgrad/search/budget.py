"""Hard limits: the worst that a call can cost is reserved before it is made, so that no limit is ever passed."""

from __future__ import annotations

import asyncio
import time

from relgrad.backends.protocol import NOTHING, Usage
from relgrad.search.settings import Budget as Limits


class BudgetSpent(Exception):
    """The next call might pass a limit; the message names it."""


class Budget:
    """What was spent, what is reserved for calls under way, and what may be.

    seconds_before  of running, in earlier sessions of the same search
    ended           why no further call is made; None while calls are made
    """

    def __init__(self, limits: Limits, seconds_before: float = 0.0) -> None:
        self.limits = limits
        self.spent, self.reserved = NOTHING, NOTHING
        self._start = time.monotonic() - seconds_before
        self._share: dict[str, float] = {}
        self.ended: str | None = None
        self._under_way, self._settled = 0, asyncio.Event()

    @property
    def seconds(self) -> float:
        """Of running, earlier sessions included."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Until the limit of seconds; None where there is none."""
        return None if self.limits.seconds is None else self.limits.seconds - self.seconds

    def narrow(self, parts: int, ended: str | None = None) -> None:
        """From here on only one of so many equal parts of what is left may be spent, of calls, tokens and money.

        `ended`: why this part was spent in an earlier session, where it was; then no call is made.
        """
        self.ended = ended
        self._share = {
            name: used + (limit - used) / parts
            for name, limit, used in (
                ("calls", self.limits.calls, self.spent.calls),
                ("tokens", self.limits.tokens, self.spent.tokens),
                ("money", self.limits.money, self.spent.money),
            )
            if limit is not None
        }

    async def wait_for(self, worst: Usage) -> None:
        """Set the worst case of a call aside; where it might pass a limit, wait until calls under way have cost less than theirs.

        Raises BudgetSpent where it might pass a limit and no call is under way, and from then on for every call.
        """
        while self.ended is None:
            try:
                return self.reserve(worst)
            except BudgetSpent as spent:
                if not self._under_way:
                    self.ended = str(spent)
                    break
            await self._settled.wait()
        raise BudgetSpent(self.ended)

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
        if self.seconds_left is not None and self.seconds_left <= 0:
            raise self.out_of_time()
        self.reserved = self.reserved.plus(worst)
        self._under_way += 1

    def settle(self, worst: Usage, actual: Usage) -> None:
        """A call has ended: what it cost takes the place of what was reserved."""
        self.reserved = self.reserved.plus(worst.times(-1))
        self.spent = self.spent.plus(actual)
        self._under_way -= 1
        self._settled.set()
        self._settled = asyncio.Event()

    def out_of_time(self) -> BudgetSpent:
        """What a call is told that has no time left; no further call is made."""
        self.ended = f"budget: seconds, {self.limits.seconds:g}"
        return BudgetSpent(self.ended)

    def charge(self, usage: Usage) -> None:
        """Count what was paid in an earlier session."""
        self.spent = self.spent.plus(usage)
