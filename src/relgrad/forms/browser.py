"""The real executor: headless Chromium through Playwright. One browser, one page that is used again for every plan.

It lives on a thread and event loop of its own, so it can be called from any thread (rewards run on changing ones). A plan that
takes longer than the time-out is unscored. A browser that dies, crashes or fails otherwise is started again once for the plan
it failed at, which begins anew and is unscored when that fails too.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from relgrad.forms.form import Form
from relgrad.forms.outcome import Outcome, Unscored
from relgrad.forms.plan import Plan
from relgrad.forms.visit import HOST, WATCH_REFUSALS, After, Visit
from relgrad.types import RelgradError

VARIABLE = "RELGRAD_CHROMIUM"
"""Environment variable with the path of the browser to use."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run",
]  # fmt: skip
_PATIENCE = 180.0
"""Seconds that starting a browser may take."""


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
    if found := next(filter(None, map(shutil.which, _NAMES)), None):
        return found
    with sync_playwright() as playwright:
        if Path(playwright.chromium.executable_path).is_file():
            return None
    raise RelgradError(
        "forms: no browser is installed; run `playwright install chromium`, or `apt-get install chromium`, or set "
        f"{VARIABLE} to the path of one"
    )


class Browser:
    """Implements forms.outcome.Executor. `timeout` is in seconds per plan; `headed` shows the window.

    Raises RelgradError at once where no browser is installed; it is started when the first plan comes.
    """

    def __init__(self, timeout: float = 20.0, *, headed: bool = False) -> None:
        self.timeout, self.headed = timeout, headed
        self._executable = find_chromium()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start = threading.Lock()
        self._turn: asyncio.Lock
        self._driver: Any = None
        self._chromium: Any = None
        self._page: Any = None
        self._visits = 0

    def run(self, form: Form, plan: Plan, after: After | None = None) -> Outcome:
        """Execute the plan on a fresh page of the form. Raises Unscored where the browser fails or takes too long."""
        return self._call(self._run(form, plan, after))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something on the browser's own thread, and wait for it."""
        with self._start:
            if self._loop is None:
                self._turn = asyncio.Lock()
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="relgrad-browser", daemon=True).start()
                atexit.register(self.close)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the browser. It starts again when another plan comes."""
        if self._loop is not None:
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
            atexit.unregister(self.close)

    # ------------------------------------------------------------------ on the browser's thread

    async def _run(self, form: Form, plan: Plan, after: After | None) -> Outcome:
        async with self._turn:
            for again in (True, False):
                try:
                    visit = await asyncio.wait_for(self._visit(form), _PATIENCE)
                    return await asyncio.wait_for(_play(visit, plan, after), self.timeout)
                except TimeoutError:
                    await self._end()
                    limits = f"{self.timeout:g} s for a plan, or {_PATIENCE:g} s to start"
                    raise Unscored(f"the browser took longer than {limits}") from None
                except Exception as error:  # Playwright's own kinds, and plain ones when its driver is gone
                    await self._end()
                    if not again:
                        raise Unscored(f"the browser failed twice: {_first_line(error)}") from None
        raise AssertionError("unreachable")

    async def _visit(self, form: Form) -> Visit:
        """The form, ready to be opened in the page; the browser is started where there is none."""
        if self._page is None:
            await self._begin()
        self._visits += 1
        visit = Visit(self._page, form, self._visits)
        await self._page.unroute_all()
        await self._page.route("**/*", visit.answer)
        return visit

    async def _begin(self) -> None:
        from playwright.async_api import async_playwright

        self._driver = await async_playwright().start()
        self._chromium = await self._driver.chromium.launch(
            executable_path=self._executable,
            args=_ARGUMENTS,
            headless=not self.headed,
            timeout=1000 * _PATIENCE,
            slow_mo=400 if self.headed else 0,
        )
        context = await self._chromium.new_context(base_url=HOST, service_workers="block", accept_downloads=False)
        await context.add_init_script(WATCH_REFUSALS)
        page = await context.new_page()
        page.set_default_timeout(0)  # the plan's own time-out is the only one
        self._page = page

    async def _end(self) -> None:
        """Close everything; what is dead already is no obstacle."""
        chromium, driver = self._chromium, self._driver
        self._page = self._chromium = self._driver = None
        for part in (chromium and chromium.close(), driver and driver.stop()):
            if part is not None:
                with suppress(Exception):
                    await asyncio.wait_for(part, 5)


async def _play(visit: Visit, plan: Plan, after: After | None) -> Outcome:
    await visit.open()
    return await visit.play(plan, after)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
