"""The server of the example site: pages by GET, and by POST what a server does with them. It keeps nothing.

It validates everything again. What it says of mistakes differs from page to page, as it does between sites: the form again with its
errors and status 200 or 422, JSON with `ok: false` and status 200, JSON with `errors`; and of a success: a page, a redirect, JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from html import escape
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from relgrad.environments.loopback import LoopbackServer

PAGES = files(__package__) / "pages"
Sent = Mapping[str, list[str]]

TEXT, MAIL, DAY = r"\S.*", r"[^@\s]+@[^@\s]+\.[a-z]+", r"\d{4}-\d\d-\d\d"
NUMBER, MONEY = r"\d+", r"\d+(\.\d+)?"
RULES: dict[str, dict[str, str]] = {
    "library-card": {"full_name": TEXT, "email": MAIL, "dob": DAY, "branch": "[cnh]", "terms": "1"},
    "clinic-appointment": {
        "patient": TEXT,
        "phone": r"[\d +()-]{6,}",
        "day": DAY,
        "time": r"\d\d:\d\d",
        "visit": "first|follow|vacc",
    },
    "shop-order": {"sku": "10[123]", "qty": NUMBER, "ribbon": "#[0-9a-f]{6}", "address": TEXT},
    "job-application": {"applicant": TEXT, "mail": MAIL, "position": TEXT, "years": NUMBER, "cv": r".+\.(pdf|txt)"},
    "event-registration": {"name": TEXT, "ticket": "day|weekend"},
    "contact": {"your-name": TEXT, "your-email": MAIL, "subject": TEXT, "message": TEXT, "topic": TEXT},
    "tool-rental": {"account": "private|trade", "tool": TEXT, "from": DAY, "days": "[137]", "deposit": MONEY},
    "school-trip": {
        "child_name": TEXT,
        "child_class": TEXT,
        "parent_name": TEXT,
        "parent_phone": TEXT,
        "meals": "[blds]",
    },
    "gym-membership": {
        "firstName": TEXT,
        "lastName": TEXT,
        "plan": "basic|plus|all",
        "pay": "[my]",
        "start": r"\d{4}-\d\d",
    },
    "hotel-booking": {"guest": TEXT, "arrival": DAY, "nights": NUMBER, "room": "[sdf]"},
    "insurance-claim": {"policy": r"[A-Z]\d+", "holder": TEXT, "date": DAY, "amount": MONEY, "kind": "[wft]"},
    "garden-plot": {"gardener": TEXT, "size": "small|medium|large", "since": DAY, "water": NUMBER},
    "course-enrolment": {"student": TEXT, "email": MAIL, "course": "p1|p2|w", "level": "[1-5]", "email_again": ""},
}
"""What every field must look like, by page and name: a regular expression for the whole of its first value."""

GARDEN = [
    {"label": "Gardener", "name": "gardener", "type": "text", "required": True},
    {"label": "Plot size", "name": "size", "options": ["Small", "Medium", "Large"], "required": True},
    {"label": "Member since", "name": "since", "type": "date", "required": True},
    {"label": "Water (litres a day)", "name": "water", "type": "number", "required": True},
    {"label": "Shed wanted", "name": "shed", "type": "checkbox", "required": False},
]
"""The fields from which the page garden-plot builds its form."""

Answer = tuple[int, str, str]
"""Status, kind of content, and the content; of a redirect, where to."""


def faults(page: str, sent: Sent) -> dict[str, str]:
    """What is wrong, by name."""
    rules = RULES[page]
    first = {name: sent.get(name, [""])[0] for name in rules}
    wrong = {
        name: f"{name}: please check" for name, rule in rules.items() if not re.fullmatch(rule, first[name], re.DOTALL)
    }
    if page == "event-registration" and sent.get("guests") == ["true"] and not sent.get("guest_count"):
        wrong["guest_count"] = "guest_count: how many?"
    return wrong


def form_page(page: str, wrong: Mapping[str, str]) -> str:
    """The page of a form, with what was wrong."""
    items = "".join(f"<li>{escape(text)}</li>" for text in wrong.values())
    return (
        (PAGES / f"{page}.html")
        .read_text(encoding="utf-8")
        .replace("{errors}", f'<ul class="errorlist">{items}</ul>' if wrong else "")
    )


def _page(title: str) -> str:
    return f"<!doctype html><title>{title}</title><h1>{title}</h1><p>There were no errors.</p>"


def _redirects(page: str, wrong: Mapping[str, str]) -> Answer:
    return (422, "text/html", form_page(page, wrong)) if wrong else (303, "redirect", "/thanks")


def _pages(page: str, wrong: Mapping[str, str]) -> Answer:
    return 200, "text/html", form_page(page, wrong) if wrong else _page("Received")


def _ok(page: str, wrong: Mapping[str, str]) -> Answer:
    return (
        200,
        "application/json",
        json.dumps({"ok": False, "errors": dict(wrong)} if wrong else {"ok": True, "number": 1}),
    )


def _message(page: str, wrong: Mapping[str, str]) -> Answer:
    status, text = (400, "Please check what you entered") if wrong else (201, "See you there. Errors are not possible.")
    return status, "application/json", json.dumps({"message": text})


def _status(page: str, wrong: Mapping[str, str]) -> Answer:
    return 200, "application/json", json.dumps({"status": "error" if wrong else "rented"})


def _list(page: str, wrong: Mapping[str, str]) -> Answer:
    return 200, "application/json", json.dumps({"success": not wrong, "errors": list(wrong.values())})


ANSWERS: dict[str, Callable[[str, Mapping[str, str]], Answer]] = {
    "library-card": _redirects,
    "shop-order": _ok,
    "event-registration": _message,
    "tool-rental": _status,
    "gym-membership": _redirects,
    "hotel-booking": _list,
}
"""How a page's server answers; all others with a page."""


def decoded(kind: str, body: bytes) -> dict[str, list[str]]:
    """What was sent, by name; files by their name."""
    if kind.startswith("application/json"):
        data: dict[str, Any] = json.loads(body)
        return {
            name: [_text_of(one) for one in (value if isinstance(value, list) else [value])]
            for name, value in data.items()
        }
    if kind.startswith("multipart/form-data"):
        message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        sent: dict[str, list[str]] = {}
        for part in message.iter_parts():
            name, payload = part.get_param("name", header="content-disposition"), part.get_payload(decode=True) or b""
            sent.setdefault(str(name), []).append(part.get_filename() or bytes(payload).decode("utf-8", "replace"))
        return sent
    return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Handler(BaseHTTPRequestHandler):
    """GET / lists the pages."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.strip("/")
        if name in RULES:
            self._answer(200, "text/html", form_page(name, {}))
        elif name == "school-trip/sent":
            wrong = faults("school-trip", parse_qs(parts.query, keep_blank_values=True))
            self._answer(400 if wrong else 200, "text/html", _page("Not signed up" if wrong else "Signed up"))
        elif name == "garden-plot/fields":
            self._answer(200, "application/json", json.dumps(GARDEN))
        elif name in ("", "thanks", "search"):
            links = "".join(f'<li><a href="/{page}">{page}</a></li>' for page in RULES)
            self._answer(
                200, "text/html", _page("Thank you") if name == "thanks" else f"<!doctype html><ul>{links}</ul>"
            )
        else:
            self._answer(404, "text/plain", "no such page")

    def do_POST(self) -> None:
        name = urlsplit(self.path).path.strip("/")
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(min(int(length) if length.isdecimal() else 0, 5_000_000))
        if name not in RULES:
            self._answer(200 if name == "newsletter" else 404, "text/plain", "no such page")
            return
        try:
            sent = decoded(self.headers.get("Content-Type", ""), body)
        except (ValueError, AttributeError):
            self._answer(400, "text/plain", "this cannot be read")
            return
        self._answer(*ANSWERS.get(name, _pages)(name, faults(name, sent)))

    def _answer(self, status: int, kind: str, content: str) -> None:
        body = b"" if kind == "redirect" else content.encode()
        self.send_response(status)
        if kind == "redirect":
            self.send_header("Location", content)
        else:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve on the port that the command line names."""
    with LoopbackServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
