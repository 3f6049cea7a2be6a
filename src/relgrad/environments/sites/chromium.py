"""Chromium for pages that somebody else wrote: every plan gets an emptied tab (tab.py) and one way out, to its site (wire.py).

It lives on a thread and event loop of its own (forms/executing/own_thread.py). A plan that takes longer than the time-out is
unscored, and costs its tab alone, or the browser where the tab cannot be closed. A browser that dies is started again; the plans
that were in it begin anew, once each, and are unscored when that fails too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from relgrad.environments.forms.executing.browser import find_chromium
from relgrad.environments.forms.executing.own_thread import FAREWELL, PATIENCE, OwnThread, first_line
from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.plan import Plan
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.tab import Tab
from relgrad.environments.sites.visit import After, Where

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--dns-prefetch-disable",
    "--disable-features=AutofillServerCommunication,OptimizationHints,MediaRouter,Translate",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
)
_NOWHERE = {"server": "http://127.0.0.1:1", "bypass": "<-loopback>"}
"""The browser's own way out: nothing listens there. Every page has a way of its own in its place."""
PLANS = 200
"""Plans after which a tab is closed and another opened."""


@dataclass(frozen=True)
class Job:
    """A plan to execute on a page of a site at `host:port`; `allowed`: other hosts that it may reach."""

    where: Where
    host: str
    port: int
    plan: Plan
    allowed: frozenset[str] = frozenset()
    after: After | None = None


class Chromium:
    """Executes plans, `pages` of them side by side. `timeout` is in seconds per plan.

    Raises RelgradError at once where no browser is installed; it is started when the first plan comes.
    """

    def __init__(self, timeout: float = 20.0, pages: int = 1) -> None:
        self.timeout, self.pages = timeout, pages
        self._executable = find_chromium()
        self._thread = OwnThread("relgrad-chromium", self._begin, lambda: self._end(self._life))
        self._turns: asyncio.Semaphore
        self._starting: asyncio.Lock
        self._life: _Life | None = None

    def run_all(
        self, jobs: Sequence[Job], before: Coroutine[Any, Any, None] | Any = None
    ) -> list[SiteOutcome | Unscored]:
        """One answer per job, in order; Unscored is returned, not raised. When the wait is interrupted, the plans end too.

        before   called, on a thread of its own, before each plan; what it raises as Unscored is the plan's answer
        """
        return self._thread.all([self._run(job, before) for job in jobs])

    def close(self) -> None:
        """End the browser. It starts again when another plan comes."""
        self._thread.close()

    def _begin(self) -> None:
        self._turns, self._starting = asyncio.Semaphore(self.pages), asyncio.Lock()

    # ------------------------------------------------------------------ on the browser's thread

    async def _run(self, job: Job, before: Any) -> SiteOutcome:
        async with self._turns:
            for again in (True, False):
                life: _Life | None = None
                try:
                    if before is not None:
                        await asyncio.to_thread(before)
                    life = await self._running()
                    return await life.play(job, self.timeout)
                except Unscored:
                    if life is not None and life.spoilt:
                        await self._end(life)
                    raise
                except Exception as error:  # Playwright's own kinds, and plain ones when its driver is gone
                    await self._end(life)
                    if not again:
                        raise Unscored(f"the browser failed twice: {first_line(error)}") from None
        raise AssertionError("unreachable")

    async def _running(self) -> _Life:
        """The browser; a new one where there is none that lives."""
        async with self._starting:
            if self._life is not None and not self._life.lives:
                await self._end(self._life)
            if self._life is None:
                life = _Life()
                try:
                    await asyncio.wait_for(life.begin(self._executable), PATIENCE)
                except BaseException:
                    await life.end()
                    raise
                self._life = life
            return self._life

    async def _end(self, life: _Life | None) -> None:
        """End this browser; another that took its place goes on."""
        if life is not None and self._life is life:
            self._life = None
        if life is not None:
            await life.end()


class _Life:
    """One life of a browser, and its tabs. `spoilt`: one of them could not be closed, so it should be ended."""

    def __init__(self) -> None:
        self._driver: Any = None
        self._process: Any = None
        self._tabs: list[Tab] = []
        self.spoilt = False

    @property
    def lives(self) -> bool:
        return not self.spoilt and bool(self._process.is_connected())

    async def begin(self, executable: str | None) -> None:
        from playwright.async_api import async_playwright

        self._driver = await async_playwright().start()
        self._process = await self._driver.chromium.launch(
            executable_path=executable, args=_ARGUMENTS, timeout=1000 * PATIENCE, proxy=_NOWHERE
        )

    async def play(self, job: Job, timeout: float) -> SiteOutcome:
        """Execute a plan in a tab of its site. Raises Unscored when it takes too long, and anything when the browser fails."""
        place = (job.host, job.port, job.allowed)
        tab = next((tab for tab in self._tabs if tab.place == place), None)
        if tab is None:
            tab = await asyncio.wait_for(Tab.open(self._process, job.host, job.port, job.allowed), PATIENCE)
        else:
            self._tabs.remove(tab)
        whole = False
        try:
            outcome = await asyncio.wait_for(tab.play(job.where, job.plan, job.after), timeout)
            whole = True
            return outcome
        except Unscored:
            whole = True
            raise
        except TimeoutError:
            raise Unscored(f"the plan took longer than {timeout:g} s in the browser") from None
        finally:
            if whole and tab.plans < PLANS:
                self._tabs.append(tab)
            else:
                self.spoilt |= not await tab.close()

    async def end(self) -> None:
        """Close everything; what is dead already is no obstacle."""
        process, driver, self._process, self._driver = self._process, self._driver, _Gone(), None
        tabs, self._tabs = self._tabs, []
        for tab in tabs:
            await tab.wire.close()
        for part in (process and process.close(), driver and driver.stop()):
            if part is not None:
                with suppress(Exception):
                    await asyncio.wait_for(part, FAREWELL)


class _Gone:
    """In place of a browser that was ended."""

    def is_connected(self) -> bool:
        return False

    async def close(self) -> None:
        return

    async def new_context(self, **_: Any) -> Any:
        raise ConnectionError("the browser was ended")
