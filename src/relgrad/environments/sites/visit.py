"""One plan on one page of a site, in a real browser: every step is what Playwright does for a person's hand.

The page is read before every step, so that controls which scripts show, hide, build or disable count as they stand. Scripts are
waited for by what they have begun (watching.js): timers of up to two seconds, requests, a form on its way.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from relgrad.environments.forms.outcome import Entry, Unscored
from relgrad.environments.forms.plan import Plan, Step
from relgrad.environments.sites import submission, verdict
from relgrad.environments.sites.buttons import submit_button
from relgrad.environments.sites.controls import GROUPS, READ, SEVERAL, Button, Control, Offer
from relgrad.environments.sites.entering import TEXTS, Order, Refused, entry
from relgrad.environments.sites.entering import Entry as Entering
from relgrad.environments.sites.finding import NotFound, find, find_button, likely_form, plain
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.wire import Exchange, Wire

MOST = 100
"""Steps that are executed. Plans in sentences need two for a field."""
WAIT = 3.0
"""Seconds that a page's scripts are waited for, at most, after each step."""
ARRIVES = 10.0
"""Seconds until a form that the browser is sending has come here, at most."""
ACTION = 4000.0
"""Milliseconds that one action may take: what something else covers cannot be clicked."""
AGREE = ("yes", "ok", "okay", "confirm", "submit", "send", "continue", "agree", "proceed", "i agree")
NOW = """() => new Promise(done => (window.__relgrad?.later || setTimeout)(() => { const seen = window.__relgrad || {}; done({
  ready: document.readyState === 'complete', timers: seen.timers || 0, calls: seen.calls || 0, sent: seen.sent || 0,
  invalid: seen.invalid || 0, wrong: seen.wrong || []}); }, 0))"""
SHOWN = "selector => { const e = document.querySelector(selector); return e && e.checkVisibility() ? e.textContent : null; }"

After = Callable[[Any, int, bool | None], Awaitable[None]]
"""Called with the page, the number of a step, from 0, and whether it executed; first with None, for the page as it comes."""


@dataclass(frozen=True)
class Where:
    """The page of a site, and what a success is there."""

    origin: str
    path: str
    rule: verdict.Rule
    order: Order | None = None

    @property
    def url(self) -> str:
        return urljoin(self.origin, self.path)


class Visit:
    """A page from its opening to its end; `play` does it all."""

    def __init__(self, page: Any, wire: Wire, where: Where) -> None:
        self.page, self.wire, self.where = page, wire, where
        self.offer = Offer()
        self.form: int | None = None
        self.success, self.why = False, "nothing was sent"
        self.sent: dict[str, tuple[Entry, ...]] | None = None
        self.seen: dict[tuple[Any, ...], Control] = {}
        self.incidents: Counter[str] = Counter()
        self.notes: list[str] = []
        self._listed: set[int] = set()
        self._standing = (0, 0, 0)

    async def play(self, plan: Plan, after: After | None = None) -> SiteOutcome:
        """Open the page and execute the plan. Raises Unscored for a page that cannot be filled in."""
        await self._open()
        self.form = likely_form(plan, self.offer)
        if after is not None:
            await after(self.page, 0, None)
        executed: list[bool] = []
        misses: dict[int, str] = {}
        for number, step in enumerate(plan.steps[:MOST]):
            try:
                await self._do(step)
                executed.append(True)
            except (NotFound, Refused) as reason:
                executed.append(False)
                misses[number] = str(reason)
            if after is not None:
                await after(self.page, number, executed[-1])
        executed += [False] * (len(plan.steps) - len(executed))
        self.incidents.update({f"refused {host}": count for host, count in self.wire.refused.items()})
        submitted = None if self.sent is None else tuple(one for group in self.sent.values() for one in group)
        return SiteOutcome(
            self.success, submitted, tuple(executed), self.why, misses, tuple(dict.fromkeys(self.notes)),
            tuple(self.seen.values()), dict(self.incidents),
        )  # fmt: skip

    # ------------------------------------------------------------------ the page as it stands

    async def _open(self) -> None:
        response = await self.page.goto(self.where.url, wait_until="load")
        self._require_answers()
        if response is None or response.status >= 400:
            raise Unscored(f"the page {self.where.path} answered {response.status if response else 'nothing'}")
        await self._settle()
        await self._read()
        if not self.offer.controls:
            raise Unscored(f"the page {self.where.path} has nothing to fill in")

    async def _read(self) -> None:
        for again in (True, False):
            try:
                self.offer = Offer.of(await self.page.evaluate(READ))
                break
            except Exception as error:
                if not again or not _navigates(error):
                    raise
                await self._settle()
        if self.offer.captcha:
            raise Unscored(f"the page {self.where.path} has a captcha: {self.offer.captcha}")
        for control in self.offer.controls:
            if not control.state:
                self.seen[control.kind, control.name, control.id, control.names, control.section] = control

    async def _settle(self, until: Callable[[], bool] = lambda: True, seconds: float = WAIT) -> dict[str, Any]:
        """Wait until the page has nothing under way, and `until`; what it has counted. At most so many seconds.

        What is still under way then, a stream or a poll, is taken to go on for ever, and not waited for again.
        """
        loop = asyncio.get_running_loop()
        end, calm = loop.time() + seconds, 0
        counts: dict[str, Any] = {}
        under_way = (0, 0, 0)
        while calm < 2:
            if loop.time() > end:
                self._standing = under_way
                break
            try:
                counts = await self.page.evaluate(NOW)
                under_way = (counts["timers"], counts["calls"], self.wire.open_requests)
                more = any(now > standing for now, standing in zip(under_way, self._standing, strict=True))
                busy = not counts["ready"] or more or not until()
            except Exception as error:
                if not _navigates(error):
                    raise
                busy = True
            calm = 0 if busy else calm + 1
            if busy:
                await asyncio.sleep(0.01)
        return counts

    def _require_answers(self) -> None:
        for exchange in self.wire.exchanges:
            if exchange.failure:
                raise Unscored(exchange.failure)

    # ------------------------------------------------------------------ steps

    async def _do(self, step: Step) -> None:
        """Execute a step. Raises NotFound or Refused where it does not do what it says."""
        if step.verb is None:
            raise Refused(step.error)
        if step.verb == "open":
            if urlsplit(step.value).path.rstrip("/") != urlsplit(self.where.url).path.rstrip("/"):
                raise Refused(f"{step.value!r} is another page than {self.where.path}")
            return
        if self.offer.scripts:
            await self._settle()
        await self._read()
        match step.verb:
            case "submit":
                await self._press(submit_button(self.offer, self.form), must_send=True)
            case "click":
                await self._click(step)
            case "check" | "uncheck":
                await self._enter(self._find(step.label, boxes=True), step.verb == "check")
            case "fill" | "choose":
                await self._enter(self._find(step.label, boxes=False), step.value, listed=step.verb == "choose")

    def _find(self, label: str, boxes: bool) -> Control:
        match = find(label, self.offer.controls, self.form, boxes)
        if match.step != "exact":
            self.notes.append(
                f"{label!r} is the control {match.control.called!r}, by its {match.source or 'likeness'} ({match.step})"
            )
        return match.control

    async def _enter(self, control: Control, value: str | bool, listed: bool = False) -> None:
        """Enter a value; `listed`: as one of several."""
        entering = entry(control, value, self.where.order)
        if entering.note:
            self.notes.append(entering.note)
        try:
            if entering.file is not None:
                await self._locate(control.number).set_input_files(_file(entering.file))
            elif entering.option is not None:
                await self._choose(control, entering)
            elif entering.tick is not None:
                await self._tick(control, control.number, entering.tick)
            else:
                await self._type(control, entering.text or "", listed)
        except Exception as error:
            await self._refuse(error, f"{control.called!r}")
        self.form = control.form

    async def _refuse(self, error: Exception, what: str) -> None:
        """Raise Refused for an action that took too long on a page that answers, the error itself for any other.

        A page that hangs does not answer: the plan's own time-out ends the wait.
        """
        if type(error).__name__ != "TimeoutError":
            raise error
        await self.page.evaluate(NOW)
        raise Refused(f"{what} cannot be reached: something covers it, or it is gone") from None

    def _locate(self, number: int) -> Any:
        return self.page.locator(f'[data-relgrad="{number}"]')

    async def _choose(self, control: Control, entering: Entering) -> None:
        option = entering.option
        assert option is not None
        if control.kind in GROUPS:
            await self._tick(control, option.number, True)
            return
        kept = [one.number for one in control.options if one.chosen] if control.kind in SEVERAL else []
        await self._locate(control.number).select_option(index=[*kept, option.number])

    async def _tick(self, control: Control, number: int, tick: bool) -> None:
        """Set a box; one that only its label is seen of, by a click on that."""
        if control.kind == "radio-button" and not tick:
            raise Refused(f"{control.called!r} is one of several buttons; choose another in place of unticking it")
        box = self._locate(number)
        if await box.is_visible():
            await box.set_checked(tick)
        elif await box.is_checked() != tick:
            label = await box.evaluate_handle(
                "box => [...(box.labels || [])].find(label => label.checkVisibility()) || box"
            )
            await label.as_element().click()
        if await box.is_checked() != tick:
            raise Refused(f"{control.called!r} does not keep the tick")

    async def _type(self, control: Control, text: str, listed: bool) -> None:
        if listed and control.kind in TEXTS and control.number in self._listed and control.value:
            text = f"{control.value}, {text}"
            self.notes.append(f"{control.called}: several values entered as {text!r}")
        field = self._locate(control.number)
        try:
            await field.fill(text)
        except Exception as error:
            if "Malformed value" not in str(error):
                raise
        held = await (field.inner_text() if control.kind == "contenteditable" else field.input_value())
        if held != text and held.strip() != text.strip():
            self.notes.append(f"{control.called}: the page made {held!r} of {text!r}")
        if text and not held:
            raise Refused(f"{control.called!r} does not take {text!r}")
        if listed:
            self._listed.add(control.number)

    async def _click(self, step: Step) -> None:
        button = find_button(step.label, self.offer.buttons, self.form)
        if button is not None:
            await self._press(button, must_send=button.kind == "submit")
            return
        control = find(step.label, self.offer.controls, self.form, boxes=True).control
        if control.kind in ("checkbox", "radio-button"):
            await self._tick(control, control.number, control.kind == "radio-button" or not control.checked)
        else:
            await self._locate(control.number).focus()
        self.form = control.form

    # ------------------------------------------------------------------ sending

    async def _press(self, button: Button, must_send: bool) -> None:
        """Click a button; note what was sent, and whether the server took it.

        Raises Refused where something must have been sent and was not.
        """
        first, before = len(self.wire.exchanges), self.offer
        counted = await self.page.evaluate(NOW)
        names = frozenset(key.removesuffix("[]") for c in self.seen.values() for key in (c.name, c.id) if key)
        try:
            await self._locate(button.number).click(no_wait_after=True)
        except Exception as error:
            await self._refuse(error, f"the button {button.text!r}")
        sending = await self._sending(first, names, counted)
        if sending is None and (agree := await self._agreement(button)) is not None:
            await self._locate(agree.number).click(no_wait_after=True)
            self.incidents["dialog"] += 1
            sending = await self._sending(first, names, counted)
        if sending is not None:
            await self._note(sending, self.wire.exchanges[first:], before)
        elif must_send:
            wrong = (await self.page.evaluate(NOW))["wrong"][counted["invalid"] :]
            raise Refused(f"the browser finds invalid: {', '.join(map(repr, wrong))}" if wrong else "nothing was sent")

    async def _sending(self, first: int, names: frozenset[str], counted: dict[str, Any]) -> Exchange | None:
        """The request that submits, once the page has come to rest; None where there is none."""
        refused = self.wire.refused.total()
        counts = await self._settle()
        under_way = counts.get("sent", 0) > counted["sent"] or counts.get("calls", 0) > self._standing[1]
        if under_way:  # a form, or a script's request: it comes here, or was for somewhere else
            await self._settle(lambda: len(self.wire.exchanges) > first or self.wire.refused.total() > refused, ARRIVES)
        sending = submission.submitting(self.wire.exchanges[first:], names)
        while sending is not None and sending.status is None and not sending.failure:
            await asyncio.sleep(0.01)
            if not self.wire.open_requests:
                break
        self._require_answers()
        return sending

    async def _agreement(self, pressed: Button) -> Button | None:
        """The one button of an open dialog of the page that agrees."""
        await self._read()
        agreeing = [b for b in self.offer.buttons if b.dialog and not b.state and plain(b.text).startswith(AGREE)]
        return agreeing[0] if len(agreeing) == 1 and agreeing[0].number != pressed.number else None

    async def _note(self, sending: Exchange, exchanges: list[Exchange], before: Offer) -> None:
        await self._settle()
        entries = submission.entries(sending)
        grouped: dict[str, tuple[Entry, ...]] = {}
        for name, value in entries:
            grouped[name] = (*grouped.get(name, ()), (name, value))
        self.sent = {**(self.sent or {}), **grouped}
        await self._read()
        selector = self.where.rule.selector
        element = await self.page.evaluate(SHOWN, selector) if selector else None
        last = verdict.final(exchanges, sending)
        self.why = verdict.complaint(self.where.rule, last, entries, before, self.offer, element)
        self.success = not self.why


def _navigates(error: Exception) -> bool:
    """Whether an error of the browser says that the page was just being left."""
    return any(
        words in str(error)
        for words in ("context was destroyed", "navigat", "Cannot find context", "frame was detached")
    )


def _file(name: str) -> Any:
    """A small file of this name; nothing where it has none."""
    if not name:
        return []
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"name": name, "mimeType": kind, "buffer": f"{name}\n".encode()}
