"""Plans on a page without scripts, in process: what Chromium read of it once, changed as Chromium would, and sent to the server.

Finding and entering are those of every page; only typing, ticking, HTML's own validation and the form's encoding are modelled here.
What is not modelled raises NotSure, and the plan is for Chromium: an answer with something to do on it, for example.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any
from urllib.parse import quote_plus, urljoin, urlsplit

from relgrad.environments.forms.executing import html_rules
from relgrad.environments.forms.outcome import Entry
from relgrad.environments.forms.plan import Plan, Step
from relgrad.environments.sites import submission, verdict
from relgrad.environments.sites.buttons import submit_button
from relgrad.environments.sites.controls import GROUPS, SEVERAL, Button, Control, Offer
from relgrad.environments.sites.entering import TEXTS, Refused, entry
from relgrad.environments.sites.entering import Entry as Entering
from relgrad.environments.sites.finding import NotFound, find, find_button, likely_form
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.visit import MOST, Where
from relgrad.environments.sites.wire import Exchange

READ_STILL = (files(__package__) / "still.js").read_text(encoding="utf-8")
"""A function for the page: its forms as plain data, or null where it is not still."""
TYPED = ("text", "email", "tel", "password", "search", "number", "date", "textarea")
KINDS = (*TYPED, "hidden", "select-one", "select-multiple", "checkbox", "radio", "file", "submit", "reset", "button")
_SENDS = ("<form", "<input", "<button", "<select", "<textarea", "role=", "contenteditable", "captcha")
"""What an answer must not have, for its page to be one on which nothing can be done any more."""
_BOUNDARY = "----relgrad-boundary-7MA4YWxkTrZu0gW"
_SECONDS = 60.0


class NotSure(Exception):
    """What Chromium would do is not modelled."""


@dataclass(frozen=True)
class StillPage:
    """A page as it comes. `forms`: what still.js says."""

    offer: Offer
    forms: tuple[Mapping[str, Any], ...]

    @property
    def is_modelled(self) -> bool:
        """Whether all of its fields are of kinds, and with rules, that are modelled."""
        inside = {field["number"] for form in self.forms for field in form["fields"]}
        return all(control.number in inside for control in self.offer.controls) and all(
            field["kind"] in KINDS
            and not {"pattern", "step"} & set(field["rules"])
            and (not {"min", "max"} & set(field["rules"]) or field["kind"] in ("number", "date"))
            for form in self.forms
            for field in form["fields"]
        )


def execute(page: StillPage, where: Where, plan: Plan) -> SiteOutcome:
    """What comes of a plan on a fresh copy of the page. Raises NotSure."""
    return _Still(page, where).play(plan)


class _Still:
    """The state of the page: values by mark, ticked boxes, chosen options by their position."""

    def __init__(self, page: StillPage, where: Where) -> None:
        self.page, self.where = page, where
        self.offer = page.offer
        self.form: int | None = None
        self.sent: tuple[Entry, ...] | None = None
        self.success, self.why = False, "nothing was sent"
        self.seen = {(c.kind, c.name, c.id, c.names, c.section): c for c in page.offer.controls if not c.state}
        self._listed: set[int] = set()
        self._edited: set[int] = set()
        fields = [field for form in page.forms for field in form["fields"]]
        self.value = {field["number"]: field["value"] for field in fields}
        self.ticked = {field["number"] for field in fields if field["ticked"]}
        self.chosen = {
            field["number"]: {place for place, option in enumerate(field["options"]) if option["chosen"]}
            for field in fields
        }

    def play(self, plan: Plan) -> SiteOutcome:
        self.form = likely_form(plan, self.offer)
        executed: list[bool] = []
        misses: dict[int, str] = {}
        for number, step in enumerate(plan.steps[:MOST]):
            try:
                self._do(step)
                executed.append(True)
            except (NotFound, Refused) as reason:
                executed.append(False)
                misses[number] = str(reason)
        executed += [False] * (len(plan.steps) - len(executed))
        return SiteOutcome(
            self.success, self.sent, tuple(executed), self.why, misses, controls=tuple(self.seen.values())
        )

    # ------------------------------------------------------------------ steps

    def _do(self, step: Step) -> None:
        if step.verb is None:
            raise Refused(step.error)
        match step.verb:
            case "open":
                if urlsplit(step.value).path.rstrip("/") != urlsplit(self.where.url).path.rstrip("/"):
                    raise Refused("another page")
            case "submit":
                self._press(submit_button(self.offer, self.form))
            case "click":
                self._click(step)
            case "check" | "uncheck":
                self._enter(find(step.label, self._controls(), self.form, True).control, step.verb == "check")
            case "fill" | "choose":
                self._enter(find(step.label, self._controls(), self.form).control, step.value, step.verb == "choose")

    def _controls(self) -> list[Control]:
        """The controls with what they hold now."""
        return [
            replace(
                control,
                value=self.value.get(control.number, control.value),
                checked=control.number in self.ticked,
                options=tuple(replace(o, chosen=self._is_chosen(control, o.number)) for o in control.options),
            )
            for control in self.offer.controls
        ]

    def _is_chosen(self, control: Control, number: int) -> bool:
        return number in (self.ticked if control.kind in GROUPS else self.chosen[control.number])

    def _enter(self, control: Control, value: str | bool, listed: bool = False) -> None:
        entering = entry(control, value, self.where.order)
        if entering.file is not None:
            self.value[control.number] = entering.file
        elif entering.option is not None:
            self._choose(control, entering)
        elif entering.tick is not None:
            self._tick(control, control.number, entering.tick)
        else:
            self._type(control, entering.text or "", listed)
        self.form = control.form

    def _choose(self, control: Control, entering: Entering) -> None:
        assert entering.option is not None
        if control.kind in GROUPS:
            self._tick(control, entering.option.number, True)
            return
        kept = self.chosen[control.number] if control.kind in SEVERAL else set()
        self.chosen[control.number] = {*kept, entering.option.number}

    def _tick(self, control: Control, number: int, tick: bool) -> None:
        if control.kind == "radio-button" and not tick:
            raise Refused("one of several buttons")
        if control.kind in ("radio", "radio-button"):
            same = {
                f["number"]
                for f in self.page.forms[control.form]["fields"]
                if f["kind"] == "radio" and f["name"] == control.name
            }
            if not control.name:
                raise NotSure("radio buttons without a name")
            self.ticked -= same
        (self.ticked.add if tick else self.ticked.discard)(number)

    def _type(self, control: Control, text: str, listed: bool) -> None:
        if listed and control.kind in TEXTS and control.number in self._listed and control.value:
            text = f"{control.value}, {text}"
        kind = control.kind if control.kind in html_rules.FILLABLE else "text"
        if not html_rules.can_be_typed(kind, text) or text != text.replace("\r", ""):
            raise NotSure(f"{text!r} in a field of kind {control.kind}")
        rules = self._field(control)["rules"]
        limit = int(rules["maxlength"]) if rules.get("maxlength", "").isdecimal() else None
        held = html_rules.typed(kind, text, limit)
        self.value[control.number] = held
        self._edited.add(control.number)
        if text and not held:
            raise Refused("the field does not take it")
        if listed:
            self._listed.add(control.number)

    def _field(self, control: Control) -> Mapping[str, Any]:
        return next(field for field in self.page.forms[control.form]["fields"] if field["number"] == control.number)

    def _click(self, step: Step) -> None:
        button = find_button(step.label, self.offer.buttons, self.form)
        if button is not None and button.kind == "submit":
            self._press(button)
            return
        if button is not None:
            raise NotSure("a button that does something else")
        control = find(step.label, self._controls(), self.form, True).control
        if control.kind in ("checkbox", "radio-button"):
            self._tick(control, control.number, control.kind == "radio-button" or not control.checked)
        self.form = control.form

    # ------------------------------------------------------------------ sending

    def _press(self, button: Button) -> None:
        if button.form < 0 or button.kind != "submit":
            raise NotSure("a button outside of all forms")
        form = self.page.forms[button.form]
        if form["validates"] and any(self._is_invalid(field, form) for field in form["fields"]):
            raise Refused("the browser finds a field invalid")
        pairs = [(field, value) for field in form["fields"] for value in self._values(field, button)]
        exchanges = _exchanges(self.where, form, pairs)
        names = frozenset(key.removesuffix("[]") for c in self.seen.values() for key in (c.name, c.id) if key)
        sending = submission.submitting(exchanges, names)
        if sending is None:
            raise NotSure("a form that carries nothing")
        last = verdict.final(exchanges, sending)
        _require_plain(last)
        self.sent = submission.entries(sending)
        after = Offer(url=urljoin(self.where.origin, last.path))
        self.why = verdict.complaint(self.where.rule, last, self.sent, self.offer, after, None)
        self.success = not self.why
        self.offer = after

    def _is_invalid(self, field: Mapping[str, Any], form: Mapping[str, Any]) -> bool:
        kind, rules, number = field["kind"], field["rules"], field["number"]
        if field["disabled"] or field["fixed"] or kind in ("hidden", "submit", "reset", "button"):
            return False
        if kind in TYPED:
            kept = (
                rules
                if number in self._edited
                else {k: v for k, v in rules.items() if k not in ("minlength", "maxlength")}
            )
            return html_rules.fault(kind, self.value[number], kept) != ""
        if "required" not in rules:
            return False
        if kind == "checkbox":
            return number not in self.ticked
        if kind == "radio":
            return not any(
                f["number"] in self.ticked for f in form["fields"] if f["kind"] == kind and f["name"] == field["name"]
            )
        if kind == "file":
            return not self.value[number]
        chosen = self.chosen[number]
        first_is_empty = (
            kind == "select-one" and field["size"] <= 1 and field["options"] and not field["options"][0]["value"]
        )
        return not chosen or (bool(first_is_empty) and chosen == {0})

    def _values(self, field: Mapping[str, Any], button: Button) -> list[str]:
        """What a field sends."""
        kind, number = field["kind"], field["number"]
        if (
            field["disabled"]
            or not field["name"]
            or kind in ("reset", "button")
            or (kind == "submit" and number != button.number)
        ):
            return []
        if kind in ("checkbox", "radio"):
            return [field["value"]] if number in self.ticked else []
        if field["options"]:
            return [
                o["value"]
                for place, o in enumerate(field["options"])
                if place in self.chosen[number] and not o["disabled"]
            ]
        if kind.startswith("select"):
            return []
        return [self.value[number] if kind not in ("hidden", "submit") else field["value"]]


# ---------------------------------------------------------------------- requests

Pairs = Sequence[tuple[Mapping[str, Any], str]]


def _exchanges(where: Where, form: Mapping[str, Any], pairs: Pairs) -> list[Exchange]:
    """The request that the form makes, and those to which its answers redirect. Raises NotSure for another host."""
    target = urlsplit(form["action"])
    text = "&".join(f"{quote_plus(field['name'])}={quote_plus(_lines(field, value))}" for field, value in pairs)
    if form["method"] == "get":
        exchanges = [_ask(where, "GET", f"{target.path or '/'}?{text}", form["action"])]
    elif form["method"] == "post" and form["enctype"] == "multipart/form-data":
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        exchanges = [_ask(where, "POST", _path(form["action"]), form["action"], kind, _multipart(pairs))]
    elif form["method"] == "post" and form["enctype"] == "application/x-www-form-urlencoded":
        exchanges = [_ask(where, "POST", _path(form["action"]), form["action"], form["enctype"], text.encode())]
    else:
        raise NotSure(f"a form with method {form['method']} and {form['enctype']}")
    while exchanges[-1].status in (301, 302, 303) and len(exchanges) < 5:
        url = urljoin(urljoin(where.origin, exchanges[-1].path), exchanges[-1].answer_headers.get("location", ""))
        exchanges.append(_ask(where, "GET", _path(url), url))
    return exchanges


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _lines(field: Mapping[str, Any], value: str) -> str:
    return value.replace("\n", "\r\n") if field["kind"] == "textarea" else value


def _multipart(pairs: Pairs) -> bytes:
    parts = []
    for field, value in pairs:
        name = field["name"].replace('"', "%22")
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        if field["kind"] == "file":
            content = f"{value}\n" if value else ""
            safe = value.replace('"', "%22")
            parts.append(f'{head}; filename="{safe}"\r\nContent-Type: application/octet-stream\r\n\r\n{content}\r\n')
        else:
            parts.append(f"{head}\r\n\r\n{_lines(field, value)}\r\n")
    return ("".join(parts) + f"--{_BOUNDARY}--\r\n").encode()


def _ask(where: Where, method: str, path: str, url: str, kind: str = "", body: bytes = b"") -> Exchange:
    if not url.startswith(where.origin + "/") and url != where.origin:
        raise NotSure(f"a form for {url}")
    headers = {
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
        "accept": "text/html,*/*;q=0.8",
        "referer": where.url,
    }
    if kind:
        headers["content-type"] = kind
    exchange = Exchange(method, path, headers, body)
    connection = http.client.HTTPConnection(urlsplit(where.origin).netloc, timeout=_SECONDS)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        exchange.status = answer.status
        exchange.answer_headers = {name.lower(): value for name, value in answer.getheaders()}
        exchange.answer_headers.pop("transfer-encoding", None)  # which is taken off here
        exchange.answer = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotSure(f"the site does not answer: {error}") from None
    finally:
        with suppress(OSError):
            connection.close()
    return exchange


def _require_plain(last: Exchange) -> None:
    """Raise NotSure for an answer after which more can be done, or which leaves the page where it was."""
    text = last.answer.decode("utf-8", "replace").lower()
    if last.status in (204, 205) or "content-disposition" in last.answer_headers or "set-cookie" in last.answer_headers:
        raise NotSure("an answer that is no page")
    if any(part in text for part in _SENDS) or "<script" in text:
        raise NotSure("an answer with something to do on it")
