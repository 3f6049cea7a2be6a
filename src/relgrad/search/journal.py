"""Every call in a file before and after it is made, so that a search which was killed goes on exactly and pays for nothing twice.

    calls.jsonl   {"asked": key, "worst": usage, "at": seconds}, and when it has ended
                  {"key": key, "reply": …} or {"key": key, "failed": reason, "usage": …}
                  {"ended": tree, "why": reason, "limits": {…}}: the budget of a tree was spent
                  {"again": key}: nothing came of a call that failed; the next session makes it again

A search is a function of its seed and of the replies, so that resuming is doing it again with the replies of the file. A call that
was asked and never ended was under way when the process died: it may have been paid, counts at its worst, and is made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from relgrad.backends.protocol import NOTHING, Backend, CallFailed, Reply, Request, Usage
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import HALVES, cut_torn_line, read_lines
from relgrad.core.secrets import hide_in
from relgrad.search.budget import Budget
from relgrad.search.settings import Budget as Limits


class Journal:
    """The calls of one search.

    seconds  of running, in earlier sessions
    lost     what calls of earlier sessions may have cost that are made again, and `in_flight` how many were under way at an end
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was not finished is cut off. Raises RelgradError for a file that cannot be read."""
        self.path = path
        self._ended: dict[str, Reply | CallFailed] = {}
        self._spent: dict[str, tuple[str, Limits]] = {}
        self.seconds, self.lost, self.in_flight = 0.0, NOTHING, 0
        cut_torn_line(path)
        self._read()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8", errors=HALVES)

    def _read(self) -> None:
        open_calls: Counter[str] = Counter()
        worst: dict[str, Usage] = {}
        for number, line in enumerate(read_lines(self.path), 1):
            try:
                if "asked" in line:
                    open_calls[line["asked"]] += 1
                    worst[line["asked"]] = Usage(*line["worst"])
                elif "ended" in line:
                    self._spent[line["ended"]] = (line["why"], Limits.model_validate(line["limits"]))
                elif "again" in line:
                    self.lost = self.lost.plus(self._ended.pop(line["again"]).usage)
                else:
                    open_calls[line["key"]] -= 1
                    self._remember(line)
                self.seconds = max(self.seconds, float(line["at"]))
            except (KeyError, TypeError, ValueError) as error:
                raise RelgradError(
                    f"{self.path}, line {number} is no call ({error!r}); start over with --fresh"
                ) from None
        for key, count in open_calls.items():
            self.in_flight += count
            self.lost = self.lost.plus(worst[key].times(count))

    def _remember(self, line: dict[str, Any]) -> None:
        if "reply" in line:
            self._ended[line["key"]] = Reply.of(line["reply"])
        elif not line["fatal"]:
            self._ended[line["key"]] = CallFailed(line["failed"], Usage(*line["usage"]))
        else:
            self.lost = self.lost.plus(Usage(*line["usage"]))

    @property
    def paid(self) -> Usage:
        """What the calls of earlier sessions have cost, at the worst where that is not known."""
        total = self.lost
        for end in self._ended.values():
            total = total.plus(end.usage)
        return total

    def get(self, key: str) -> Reply | CallFailed | None:
        """How a call ended, where it did."""
        return self._ended.get(key)

    def asked(self, key: str, worst: Usage, at: float) -> None:
        self._write({"asked": key, "worst": list(worst), "at": at})

    def answered(self, key: str, reply: Reply, at: float) -> None:
        self._ended[key] = reply
        self._write({"key": key, "reply": reply.record(), "at": at})

    def failed(self, key: str, failure: CallFailed, at: float) -> None:
        """A fatal failure is not kept as the call's end: when whatever it was is mended, the call is made again."""
        if not failure.fatal:
            self._ended[key] = failure
        record = {"key": key, "failed": str(failure), "usage": list(failure.usage), "fatal": failure.fatal, "at": at}
        self._write(record)

    def again(self, key: str, at: float) -> None:
        """The next session makes this call again, which failed."""
        self._write({"again": key, "at": at})

    def spent(self, tree: str, why: str, limits: Limits, at: float) -> None:
        """The budget of a tree was spent, within these limits."""
        if self.why_ended(tree, limits) is None:
            self._spent[tree] = (why, limits)
            self._write({"ended": tree, "why": why, "limits": limits.model_dump(), "at": at})

    def why_ended(self, tree: str, limits: Limits) -> str | None:
        """Why a tree ended, where its budget was spent within limits that were no narrower than these; else None."""
        why, before = self._spent.get(tree, (None, limits))
        return why if limits.within(before) else None

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(hide_in(record), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


HOPELESS = 20
"""Calls that all failed, and none was answered: whatever it is, the others will fail too."""


class Asker:
    """Answers requests from the journal, or from a back end within the budget. A call counts once, however often it is read.

    Where the first HOPELESS calls all failed, the next failure is fatal; the next session makes these calls again.
    """

    def __init__(self, backend: Backend, journal: Journal, budget: Budget) -> None:
        self.backend, self.journal, self.budget = backend, journal, budget
        self._prefix = hashlib.sha256(backend.identity.encode()).hexdigest()[:8]
        self._charged: set[str] = set()
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        self._answered = False
        self._failed: dict[str, CallFailed] = {}
        self._hopeless: CallFailed | None = None

    def _key(self, request: Request) -> str:
        return f"{self._prefix}-{request.key}"

    def ask_again(self, requests: Sequence[Request]) -> None:
        """The next session of the search makes these calls again, which failed."""
        for request in requests:
            self.journal.again(self._key(request), self.budget.seconds)

    async def ask(self, request: Request) -> Reply:
        """Raises CallFailed, and BudgetSpent before a call that might pass a limit and for a call that runs out of time."""
        if self._hopeless is not None:
            raise self._hopeless
        key = self._key(request)
        if (ended := self.journal.get(key)) is not None:
            self._charge_once(key, ended.usage)
            if isinstance(ended, CallFailed):
                self._failed[key] = ended
                raise ended
            self._answered = True
            return ended
        if key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(self._call(key, request))
        return await asyncio.shield(self._under_way[key])

    def require_an_answer(self) -> None:
        """Raises CallFailed, a fatal one, where calls were made and none was answered."""
        if self._hopeless is None and self._failed and not self._answered:
            for key in self._failed:
                self.journal.again(key, self.budget.seconds)
            first = next(iter(self._failed.values()))
            self._hopeless = CallFailed(f"all of {len(self._failed)} calls failed, the first with: {first}", fatal=True)
        if self._hopeless is not None:
            raise self._hopeless

    def _charge_once(self, key: str, usage: Usage) -> None:
        if key not in self._charged:
            self._charged.add(key)
            self.budget.charge(usage)

    async def _call(self, key: str, request: Request) -> Reply:
        worst = self.backend.worst(request)
        try:
            await self.budget.wait_for(worst)
            self._charged.add(key)
            self.journal.asked(key, worst, self.budget.seconds)
            try:
                reply = await self._in_time(request)
            except CallFailed as failure:
                self.budget.settle(worst, failure.usage)
                self.journal.failed(key, failure, self.budget.seconds)
                self._failed[key] = failure
                if len(self._failed) >= HOPELESS:
                    self.require_an_answer()
                raise
            except BaseException:
                self.budget.settle(worst, worst)
                raise
            self.budget.settle(worst, reply.usage)
            self.journal.answered(key, reply, self.budget.seconds)
            self._answered = True
            return reply
        finally:
            del self._under_way[key]

    async def _in_time(self, request: Request) -> Reply:
        """Raises BudgetSpent where the budget's seconds pass first: a call that was made and has not ended, as after a kill."""
        try:
            async with asyncio.timeout(self.budget.seconds_left) as limit:
                return await self.backend.generate(request)
        except TimeoutError:
            if limit.expired():
                raise self.budget.out_of_time() from None
            raise
