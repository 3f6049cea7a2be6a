"""The real executor: headless Chromium through Playwright. One browser with one page, which is used plan after plan.

It lives on a thread and event loop of its own (own_thread.py). A plan that takes longer than the time-out is unscored. A browser
that dies, hangs or fails otherwise is started again, once for each plan that it failed at; the plan begins anew, and is unscored
when that fails too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.executing.browser_page import After, Tab
from relgrad.environments.forms.executing.own_thread import FAREWELL, PATIENCE, OwnThread, first_line
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.outcome import Outcome, Unscored
from relgrad.environments.forms.plan import Plan

VARIABLE = "RELGRAD_CHROMIUM"
"""Environment variable with the path of the browser to use."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """The browser's path, or None where Playwright's own is installed. Raises RelgradError with what to install."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise RelgradError("forms: a browser needs Playwright; pip install 'relgrad[browser]'") from None
    if (named := os.environ.get(VARIABLE)) is not None:
        if not Path(named).is_file():
            raise RelgradError(f"forms: {VARIABLE}={named!r} is no file; give the path of Chromium, or unset it")
        return named
    if path := next(filter(None, map(shutil.which, _NAMES)), None):
        return path
    with sync_playwright() as playwright:
        if Path(playwright.chromium.executable_path).is_file():
            return None
    raise RelgradError(
        "forms: no browser is installed; run `playwright install chromium`, or `apt-get install chromium`, or set "
        f"{VARIABLE} to the path of one"
    )


class Browser:
    """Implements forms.outcome.Executor. `timeout` is in seconds per plan; `headed` shows the window.

    Plans are executed one after the other. Raises RelgradError at once where no browser is installed; it is started when the
    first plan comes.
    """

    def __init__(self, timeout: float = 20.0, *, headed: bool = False) -> None:
        self.timeout, self.headed = timeout, headed
        self._executable = find_chromium()
        self._thread = OwnThread("relgrad-browser", self._begin, self._end)
        self._turn: asyncio.Lock
        self._chromium: _Chromium | None = None

    def run(self, form: Form, plan: Plan, after: After | None = None) -> Outcome:
        """Execute the plan on a fresh page of the form. Raises Unscored where the browser fails or takes too long."""
        return self._thread.start(self._run(form, plan, after)).result()

    def run_all(self, form: Form, plans: Sequence[Plan]) -> list[Outcome | Unscored]:
        """The same for many plans, what is unscored in its place. When the wait for them is interrupted, the plans end too."""
        return self._thread.all([self._run(form, plan, None) for plan in plans])

    def close(self) -> None:
        """End the browser. It starts again when another plan comes."""
        self._thread.close()

    def _begin(self) -> None:
        self._turn = asyncio.Lock()

    # ------------------------------------------------------------------ on the browser's thread

    async def _run(self, form: Form, plan: Plan, after: After | None) -> Outcome:
        async with self._turn:
            for again in (True, False):
                try:
                    chromium = await self._running()
                    return await chromium.play(form, plan, after, self.timeout)
                except Unscored:
                    raise
                except Exception as error:  # Playwright's own kinds, and plain ones when its driver is gone
                    await self._end()
                    if not again:
                        raise Unscored(f"the browser failed twice: {first_line(error)}") from None
        raise AssertionError("unreachable")

    async def _running(self) -> _Chromium:
        """The browser; a new one where there is none that lives."""
        if self._chromium is not None and not self._chromium.lives:
            await self._end()
        if self._chromium is None:
            chromium = _Chromium()
            try:
                await asyncio.wait_for(chromium.begin(self._executable, self.headed), PATIENCE)
            except BaseException:
                await chromium.end()
                raise
            self._chromium = chromium
        return self._chromium

    async def _end(self) -> None:
        """End the browser, where there is one."""
        chromium, self._chromium = self._chromium, None
        if chromium is not None:
            await chromium.end()


class _Chromium:
    """One life of a browser, and its page."""

    def __init__(self) -> None:
        self._driver: Any = None
        self._process: Any = None
        self._context: Any = None
        self._tab: Tab | None = None

    @property
    def lives(self) -> bool:
        return bool(self._process.is_connected())

    async def begin(self, executable: str | None, headed: bool) -> None:
        from playwright.async_api import async_playwright

        self._driver = await async_playwright().start()
        self._process = await self._driver.chromium.launch(
            executable_path=executable,
            args=_ARGUMENTS,
            headless=not headed,
            timeout=1000 * PATIENCE,
            slow_mo=400 if headed else 0,
        )
        self._context = await self._process.new_context(service_workers="block", accept_downloads=False)

    async def play(self, form: Form, plan: Plan, after: After | None, timeout: float) -> Outcome:
        """Execute a plan on the page. Raises Unscored when it takes too long, and anything when the browser fails."""
        tab, self._tab = self._tab, None
        if tab is None:
            tab = await asyncio.wait_for(Tab.open(self._context), PATIENCE)
        try:
            outcome = await asyncio.wait_for(tab.play(form, plan, after), timeout)
        except TimeoutError:
            await asyncio.wait_for(tab.page.close(), FAREWELL)  # raises when the browser hangs
            raise Unscored(f"the plan took longer than {timeout:g} s in the browser") from None
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait_for(tab.page.close(), FAREWELL)
            raise
        self._tab = tab
        return outcome

    async def end(self) -> None:
        """Close everything; what is dead already is no obstacle."""
        for part in (self._process and self._process.close(), self._driver and self._driver.stop()):
            if part is not None:
                with suppress(Exception):
                    await asyncio.wait_for(part, FAREWELL)
