"""One plan executed on a page of a real browser: every step is what Playwright does for a person's hand.

The page is asked which label names which control; typing, choosing, ticking, clicking, checking and sending are the browser's.
What was submitted is the body of the request it made, success is the element of the page that it then shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from relgrad.environments.forms.executing import html_rules, server_verdict
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.outcome import Outcome
from relgrad.environments.forms.pages.page import OUTCOME, form_page, outcome_page
from relgrad.environments.forms.plan import MOST, Plan, Step

HOST = "http://forms.invalid/"
"""Where the forms seem to be. Nothing leaves the machine: the page's requests are answered here, all others refused."""

_HTML = "text/html; charset=utf-8"

READ_LABELS = """() => {
  window.relgradRefused = 0;
  addEventListener('invalid', () => { window.relgradRefused++ }, true);
  const clean = text => text.trim().replace(/\\s+/g, ' ');
  const text = element => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll('input, select, textarea, button').forEach(inner => inner.remove());
    return clean(copy.textContent);
  };
  const labels = [], buttons = [];
  for (const set of document.querySelectorAll('form fieldset'))
    labels.push([text(set.querySelector('legend')), 'radio', '',
      [...set.querySelectorAll('label')].map(label => [text(label), label.control.id])]);
  for (const label of document.querySelectorAll('form label'))
    if (!label.closest('fieldset'))
      labels.push([text(label), label.control.type, label.control.id,
        [...(label.control.options || [])].map((option, number) => [clean(option.text), number])]);
  for (const button of document.querySelectorAll('form button'))
    buttons.push([clean(button.textContent), button.type, button.id]);
  return [labels, buttons];
}"""
"""Reads the labels and buttons of the page, and begins to count the fields that the browser finds invalid when asked to send."""

After = Callable[[Any, int, bool | None], Awaitable[None]]
"""Called with the page, the number of a step, from 0, and whether it executed; first with None, for the page as it comes."""


class Tab:
    """A page that is used for one form after the other.

    A form is written into the page that is there, which takes a quarter of the time of going to it; sending it leads to
    another page, as always.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self._visit: Visit | None = None

    @classmethod
    async def open(cls, context: Any) -> Tab:
        """A new page of a browser's context."""
        page = await context.new_page()
        page.set_default_timeout(0)  # the plan's own time-out is the only one
        tab = cls(page)
        await page.route("**/*", tab._answer)
        await page.goto(HOST, wait_until="domcontentloaded")
        return tab

    async def play(self, form: Form, plan: Plan, after: After | None) -> Outcome:
        """Execute a plan on a fresh page of the form."""
        self._visit = Visit(self.page, form)
        await self._visit.open()
        return await self._visit.play(plan, after)

    async def _answer(self, route: Any) -> None:
        """The server's part: an empty page to begin with, and what comes after a form."""
        request = route.request
        if request.url != HOST:
            await route.abort()
        elif request.method == "POST" and self._visit is not None:
            await route.fulfill(body=self._visit.receive(request.post_data_buffer or b""), content_type=_HTML)
        else:
            await route.fulfill(body="<!doctype html>", content_type=_HTML)


class Visit:
    """A form in a page, from its opening to its end."""

    def __init__(self, page: Any, form: Form) -> None:
        self.page, self.form = page, form
        self.sent: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.labels: dict[str, tuple[str, str, dict[str, Any]]] = {}
        self.buttons: dict[str, tuple[str, str]] = {}
        self.refusals = 0
        self.success = False

    def receive(self, body: bytes) -> str:
        """Note what was sent; the page that answers it."""
        if not self.sent.done():
            self.sent.set_result(body)
        return outcome_page(self.form, server_verdict.complaints(self.form, server_verdict.decode(body)))

    async def open(self) -> None:
        """Show the form and read its labels."""
        await self.page.set_content(form_page(self.form), wait_until="domcontentloaded")
        labels, buttons = await self.page.evaluate(READ_LABELS)
        for text, kind, id, options in labels:
            self.labels.setdefault(text, (kind, id, dict(reversed(options))))
        for text, kind, id in buttons:
            self.buttons.setdefault(text, (kind, id))

    async def play(self, plan: Plan, after: After | None = None) -> Outcome:
        """Execute the plan, after `open`."""
        executed: list[bool] = []
        if after is not None:
            await after(self.page, 0, None)
        for number, step in enumerate(plan.steps[:MOST]):
            executed.append(not self.sent.done() and await self._do(step))
            if after is not None:
                await after(self.page, number, executed[-1])
        executed += [False] * (len(plan.steps) - len(executed))
        submitted = server_verdict.decode(self.sent.result()) if self.sent.done() else None
        return Outcome(self.success, submitted, tuple(executed))

    async def _do(self, step: Step) -> bool:
        match step.verb:
            case "fill":
                return await self._fill(step)
            case "choose":
                return await self._choose(step)
            case "check" | "uncheck":
                return await self._tick(step)
            case "click":
                return await self._click(step)
            case "submit":
                submit = [id for kind, id in self.buttons.values() if kind == "submit"]
                return bool(submit) and await self._submit(submit[0])
        return False

    def _locate(self, id: str) -> Any:
        return self.page.locator(f'[id="{id}"]')

    async def _fill(self, step: Step) -> bool:
        kind, id, _ = self.labels.get(step.label, ("", "", {}))
        if kind not in html_rules.FILLABLE or not html_rules.can_be_typed(kind, step.value):
            return False
        field = self._locate(id)
        try:
            await field.fill(step.value)
        except Exception as error:
            if "Malformed value" not in str(error):  # which is a date that is none: the field has been emptied
                raise
        return step.value == "" or await field.input_value() != ""

    async def _choose(self, step: Step) -> bool:
        kind, id, options = self.labels.get(step.label, ("", "", {}))
        if step.value not in options:
            return False
        if kind == "radio":
            await self._locate(options[step.value]).check()
            return True
        field, chosen = self._locate(id), [options[step.value]]
        if kind == "select-multiple":
            chosen += await field.evaluate("list => [...list.selectedOptions].map(option => option.index)")
        await field.select_option(index=chosen)
        return True

    async def _tick(self, step: Step) -> bool:
        kind, id, _ = self.labels.get(step.label, ("", "", {}))
        if kind == "checkbox":
            await self._locate(id).set_checked(step.verb == "check")
        return kind == "checkbox"

    async def _click(self, step: Step) -> bool:
        kind, id = self.buttons.get(step.label, ("", ""))
        if kind == "submit":
            return await self._submit(id)
        if not kind:
            kind, id, _ = self.labels.get(step.label, ("", "", {}))
        if kind in ("reset", "checkbox"):
            await self._locate(id).click()
        return kind in ("reset", "checkbox")

    async def _submit(self, id: str) -> bool:
        """Click the button; whether the browser sent the form. Then wait for the next page and read what it says."""
        await self._locate(id).click()
        if not self.sent.done() and await self._refused():
            return False
        await self.sent
        self.success = await self.page.locator(OUTCOME).get_attribute("data-outcome") == "success"
        return True

    async def _refused(self) -> bool:
        """Whether fields were found invalid just now. While the page is being left, the question fails: they were not."""
        try:
            count = await self.page.evaluate("window.relgradRefused || 0")
        except Exception as error:
            if "context was destroyed" in str(error) or "navigat" in str(error):
                return False
            raise
        before, self.refusals = self.refusals, count
        return bool(count > before)
