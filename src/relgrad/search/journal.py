"""Every call in a file before and after it is made, so that a search which was killed goes on exactly and pays for nothing twice.

    calls.jsonl   {"asked": key, "worst": usage, "at": seconds}, and when it has ended
                  {"key": key, "reply": …} or {"key": key, "failed": reason, "usage": …}

A search is a function of its seed and of the replies, so that resuming is doing it again with the replies of the file. A call that
was asked and never ended was under way when the process died: it may have been paid, counts at its worst, and is made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import IO, Any

from relgrad.backends.protocol import NOTHING, Backend, CallFailed, Reply, Request, Usage
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import HALVES, cut_torn_line, read_lines
from relgrad.core.secrets import hide_in
from relgrad.search.budget import Budget


class Journal:
    """The calls of one search.

    seconds  of running, in earlier sessions
    lost     what calls under way at earlier ends may have cost, and `in_flight` how many they were
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was not finished is cut off. Raises RelgradError for a file that cannot be read."""
        self.path = path
        self._ended: dict[str, Reply | CallFailed] = {}
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

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(hide_in(record), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Asker:
    """Answers requests from the journal, or from a back end within the budget. A call counts once, however often it is read."""

    def __init__(self, backend: Backend, journal: Journal, budget: Budget) -> None:
        self.backend, self.journal, self.budget = backend, journal, budget
        self._prefix = hashlib.sha256(backend.identity.encode()).hexdigest()[:8]
        self._charged: set[str] = set()
        self._under_way: dict[str, asyncio.Future[Reply]] = {}

    async def ask(self, request: Request) -> Reply:
        """Raises CallFailed, and BudgetSpent before a call that might pass a limit."""
        key = f"{self._prefix}-{request.key}"
        if (ended := self.journal.get(key)) is not None:
            self._charge_once(key, ended.usage)
            if isinstance(ended, CallFailed):
                raise ended
            return ended
        if key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(self._call(key, request))
        return await asyncio.shield(self._under_way[key])

    def _charge_once(self, key: str, usage: Usage) -> None:
        if key not in self._charged:
            self._charged.add(key)
            self.budget.charge(usage)

    async def _call(self, key: str, request: Request) -> Reply:
        worst = self.backend.worst(request)
        try:
            self.budget.reserve(worst)
            self._charged.add(key)
            self.journal.asked(key, worst, self.budget.seconds)
            try:
                reply = await self.backend.generate(request)
            except CallFailed as failure:
                self.budget.settle(worst, failure.usage)
                self.journal.failed(key, failure, self.budget.seconds)
                raise
            self.budget.settle(worst, reply.usage)
            self.journal.answered(key, reply, self.budget.seconds)
            return reply
        finally:
            del self._under_way[key]
