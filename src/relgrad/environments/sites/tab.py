"""A tab of a site, used for one plan after the other: starting a process for each page costs more than a whole plan.

Between two plans it stands on an empty page of the site, and everything that a page can leave behind is taken away: cookies, all
kinds of storage, the window's name. Nothing is cached, no permission is granted, no service worker and no download allowed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from relgrad.environments.forms.plan import Plan
from relgrad.environments.sites.controls import WATCH
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.visit import ACTION, After, Visit, Where
from relgrad.environments.sites.wire import EMPTY, Wire

_FAREWELL = 5.0
"""Seconds that closing may take."""
_CLEAR = "() => { sessionStorage.clear(); window.name = ''; }"


class Tab:
    """A browser's page with a profile of its own. `plans`: how many were executed on it."""

    def __init__(self, context: Any, page: Any, wire: Wire) -> None:
        self.context, self.page, self.wire = context, page, wire
        self.plans = 0
        self._visit: Visit | None = None
        self._devtools: Any = None

    @property
    def place(self) -> tuple[str, int, frozenset[str]]:
        """The site that it belongs to, and what else it may reach."""
        return self.wire.host, self.wire.port, self.wire.allowed

    @classmethod
    async def open(cls, browser: Any, host: str, port: int, allowed: frozenset[str]) -> Tab:
        """A new tab, in a profile that is empty."""
        wire = Wire(host, port, allowed)
        context = await browser.new_context(
            proxy={"server": await wire.open(), "bypass": "<-loopback>"},
            service_workers="block",
            accept_downloads=False,
            permissions=[],
        )
        page = await context.new_page()
        page.set_default_timeout(ACTION)
        tab = cls(context, page, wire)
        await page.add_init_script(WATCH)
        tab._devtools = await context.new_cdp_session(page)
        await tab._devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
        page.on("dialog", tab._dialog)
        page.on("download", lambda _: tab._note("download"))
        context.on("page", tab._popup)
        return tab

    async def play(self, where: Where, plan: Plan, after: After | None) -> SiteOutcome:
        """Execute a plan. Raises Unscored for a page that cannot be filled in."""
        if self.plans:
            await self._empty(where.origin)
        self.plans += 1
        self._visit = Visit(self.page, self.wire, where)
        return await self._visit.play(plan, after)

    async def _empty(self, origin: str) -> None:
        """Leave the page that is there, and take away what it left."""
        await self.page.goto(origin + EMPTY, wait_until="commit")
        await self.page.evaluate(_CLEAR)
        await self.context.clear_cookies()
        await self._devtools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        self.wire.forget()

    async def close(self) -> bool:
        """Close it with its profile; whether that was possible. A browser that is dead already is no obstacle."""
        try:
            await asyncio.wait_for(self.context.close(), _FAREWELL)
        except TimeoutError:
            return False
        except Exception:
            return True
        finally:
            await self.wire.close()
        return True

    def _note(self, what: str) -> None:
        if self._visit is not None:
            self._visit.incidents[what] += 1

    async def _dialog(self, dialog: Any) -> None:
        self._note("dialog")
        with suppress(Exception):  # the page is closed meanwhile
            await dialog.accept()

    async def _popup(self, popup: Any) -> None:
        self._note("popup")
        with suppress(Exception):
            await popup.close()
