"""Whether the server took what was sent: by its answer to the submitting request, and by the page that stands there afterwards.

Where a recipe says nothing, an answer is a success when

- its status, after redirects, is 2xx, and
- JSON in it does not say otherwise: no `success`, `ok` or `valid` that is false, no `error` or `errors` with something in it, no
  `status` of error, fail or invalid, and
- the page is not the same form with errors again: the same names to fill in, and an element marked as an error, or what was just
  sent still standing in them.

A rule of the recipe replaces the last two: every part of it that is given must hold. The text of the whole page never counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.environments.forms.outcome import Entry
from relgrad.environments.sites.controls import Offer
from relgrad.environments.sites.wire import Exchange

_TYPED = ("text", "email", "tel", "url", "number", "date", "textarea")


class Rule(Strict):
    """When the server's answer is a success. Nothing given: the default of verdict.py."""

    status: tuple[int, ...] = Field((), description="statuses of the answer, after redirects; empty: 2xx")
    path: str | None = Field(None, description="path of the page that is shown afterwards, e.g. /thanks")
    selector: str | None = Field(None, description="CSS selector of an element that must be shown afterwards")
    text: str | None = Field(None, description="what must stand in that element, whatever the case of its letters")
    answer: dict[str, Any] = Field({}, description="keys and values of the JSON answer, inner keys after a dot")

    @model_validator(mode="after")
    def _legal(self) -> Rule:
        if self.text is not None and self.selector is None:
            raise ValueError(
                "success.text needs success.selector: the text of the whole page never counts; name the element"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether it replaces the default."""
        return self != Rule()


def final(exchanges: Sequence[Exchange], submitting: Exchange) -> Exchange:
    """The exchange that ends the redirects of the submitting one."""
    following = list(exchanges[exchanges.index(submitting) + 1 :])
    last = submitting
    while last.status is not None and 300 <= last.status < 400 and "location" in last.answer_headers:
        path = urlsplit(last.answer_headers["location"]).path
        after = next((one for one in following if urlsplit(one.path).path == path or not path.startswith("/")), None)
        if after is None:
            break
        following = following[following.index(after) + 1 :]
        last = after
    return last


def complaint(
    rule: Rule, last: Exchange, sent: Sequence[Entry], before: Offer, after: Offer, element: str | None
) -> str:
    """Why it is no success; "" where it is one.

    last     the exchange that ends the redirects
    before   the page that was sent; `after`, the one that stands there now
    element  text of the element that the rule's selector names, None where it is not shown
    """
    statuses = rule.status or range(200, 300)
    if last.status not in statuses:
        return f"the server answered {last.status}"
    if not rule.is_given:
        return _json_complaint(answer_json(last)) or _same_form(last, sent, before, after)
    if rule.path is not None and urlsplit(after.url).path != rule.path:
        return f"the page is {urlsplit(after.url).path}, not {rule.path}"
    if rule.selector is not None and element is None:
        return f"no element {rule.selector!r} is shown"
    if rule.text is not None and rule.text.casefold() not in (element or "").casefold():
        return f"{rule.selector!r} says {(element or '')[:60]!r}, not {rule.text!r}"
    received = answer_json(last)
    for key, value in rule.answer.items():
        if _inner(received, key) != value:
            return f"{key!r} of the answer is {_inner(received, key)!r}, not {value!r}"
    return ""


def answer_json(exchange: Exchange) -> Any:
    """The JSON of an answer; None where it is none."""
    body = exchange.answer
    if exchange.answer_headers.get("transfer-encoding", "").lower() == "chunked":
        body = _unchunked(body)
    if "json" not in exchange.answer_headers.get("content-type", ""):
        return None
    try:
        return json.loads(body)
    except ValueError:
        return None


def _unchunked(body: bytes) -> bytes:
    whole, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        try:
            length = int(size.partition(b";")[0], 16)
        except ValueError:
            break
        whole, rest = whole + rest[:length], rest[length + 2 :]
    return whole


def _inner(answer: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(answer, Mapping) or part not in answer:
            return None
        answer = answer[part]
    return answer


def _json_complaint(answer: Any) -> str:
    if not isinstance(answer, Mapping):
        return ""
    for key in ("success", "ok", "valid"):
        if answer.get(key) is False:
            return f"the answer says {key}: false"
    for key in ("errors", "error"):
        if answer.get(key):
            return f"the answer has {key}: {str(answer[key])[:80]}"
    if str(answer.get("status", "")).lower() in ("error", "fail", "failed", "failure", "invalid"):
        return f"the answer says status: {answer['status']}"
    return ""


def _same_form(last: Exchange, sent: Sequence[Entry], before: Offer, after: Offer) -> str:
    names = {name for name, _ in sent} & {control.name for control in before.controls if control.name}
    shown = [control for control in after.controls if control.name in names and control.state != "hidden"]
    if not names or 2 * len({control.name for control in shown}) < len(names):
        return ""
    if after.errors:
        return f"the form is shown again, with errors: {after.errors[0][:80]}"
    if last.is_data:
        return ""
    typed = {(control.name, control.value) for control in shown if control.kind in _TYPED and control.value}
    return "the form is shown again, with what was sent still in it" if typed & set(sent) else ""
