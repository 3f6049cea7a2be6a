"""A site on which plans are executed: its server, its executor, and the outcomes that are remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.plan import Plan
from relgrad.environments.sites.agreement import still_page
from relgrad.environments.sites.chromium import Chromium, Job
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.serving import Server, server_of
from relgrad.environments.sites.spec import SiteSettings
from relgrad.environments.sites.still import NotSure, StillPage, execute
from relgrad.environments.sites.visit import After, Where

REMEMBERED = 32_768
"""Outcomes that are kept, the newest."""


class Site:
    """Executes plans on the pages of a site."""

    def __init__(self, settings: SiteSettings, server: Server, chromium: Chromium) -> None:
        self.settings, self.server, self.chromium = settings, server, chromium
        self._outcomes: dict[tuple[str, Plan], SiteOutcome] = {}
        self._still: dict[str, StillPage | None] = {}

    def run_all(self, path: str, plans: Sequence[Plan], reference: str | None = None) -> list[SiteOutcome | Unscored]:
        """One answer per plan, in order. Equal plans run once where the server has no memory or is put back before each.

        reference   a plan of the page; then, where the server has no memory, a page on which both executors agree is executed in
                    process (agreement.py)
        """
        if not self.settings.remembers:
            return self._execute(path, plans)
        new = [plan for plan in dict.fromkeys(plans) if (path, plan) not in self._outcomes]
        in_process = self._in_process(path, new, reference) if reference is not None and new else {}
        left = [plan for plan in new if plan not in in_process]
        answers = in_process | dict(zip(left, self._execute(path, left), strict=True))
        merged = [answers[plan] if plan in answers else self._outcomes[path, plan] for plan in plans]
        self._outcomes |= {(path, plan): one for plan, one in answers.items() if isinstance(one, SiteOutcome)}
        for oldest in list(self._outcomes)[:-REMEMBERED]:
            self._outcomes.pop(oldest, None)
        return merged

    def _in_process(self, path: str, plans: Sequence[Plan], reference: str) -> dict[Plan, SiteOutcome | Unscored]:
        """Outcomes of plans that need no browser."""
        if not self.settings.has_no_memory:
            return {}
        try:
            self.server.require()
        except RelgradError:
            return {}
        where = self._where(path)
        if path not in self._still:
            self._still[path] = still_page(where, reference, lambda some, after: self._execute(path, some, after))
        page = self._still[path]
        outcomes: dict[Plan, SiteOutcome | Unscored] = {}
        if page is None:
            return outcomes
        for plan in plans:
            with suppress(NotSure):
                outcomes[plan] = execute(page, where, plan)
        return outcomes

    def _where(self, path: str) -> Where:
        return Where(self.server.origin, path, self.settings.success, self.settings.dates)

    def watch(self, path: str, plan: Plan, after: After) -> SiteOutcome | Unscored:
        """Execute one plan, `after` called for the page as it comes and after each step."""
        return self._execute(path, [plan], after)[0]

    def _execute(self, path: str, plans: Sequence[Plan], after: After | None = None) -> list[SiteOutcome | Unscored]:
        if not plans:
            return []
        try:
            self.server.require()
        except RelgradError as error:
            return [Unscored(str(error))] * len(plans)
        host, port = self.server.address
        where = self._where(path)
        jobs = [Job(where, host, port, plan, frozenset(self.settings.allow_host), after) for plan in plans]
        return self.chromium.run_all(jobs, self.server.ready)


@cache
def _chromium(timeout: float, pages: int) -> Chromium:
    """One for all sites and rewards of a process that ask for the same."""
    return Chromium(timeout, pages)


@cache
def _site(key: str, timeout: float) -> Site:
    server = server_of(key)
    return Site(server.site, server, _chromium(timeout, server.site.side_by_side))


def site_of(spec: Mapping[str, Any], timeout: float) -> Site:
    """The site of a prompt's column. Raises RelgradError where no browser is installed."""
    return _site(SiteSettings.of(spec).key, timeout)
