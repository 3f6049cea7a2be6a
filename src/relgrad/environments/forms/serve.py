"""Forms for a person in a browser: an index, every form with what is to be entered, and what came of it."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import quote, unquote

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.executing import server_verdict
from relgrad.environments.forms.making import families
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.making.generate import make
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.outcome import accuracies
from relgrad.environments.forms.pages.page import POLICY, hinted_page, index_page, outcome_page
from relgrad.environments.loopback import LoopbackServer

SEEDS = range(5)
"""The forms of every family that the index links to; any other seed works too."""
_LONGEST = 1_000_000


class Handler(BaseHTTPRequestHandler):
    """GET / is the index, GET /form/FAMILY/SEED a form; POST there is the form sent."""

    grammar = Grammar()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(index_page(list(families.families().values()), SEEDS))
        elif form := self._form():
            self._answer(hinted_page(form))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 18 or int(length) > _LONGEST:
            self.close_connection = True
            self._answer("a form is at most a million bytes", HTTPStatus.BAD_REQUEST)
            return
        body = self.rfile.read(int(length))
        if form := self._form():
            entries = server_verdict.decode(body)
            self._answer(outcome_page(form, server_verdict.complaints(form, entries), accuracies(form, entries)))

    def _form(self) -> Form | None:
        """The form that the path names; None where it names none and the answer says so."""
        parts = unquote(self.path).split("/")
        try:
            if len(parts) != 4 or parts[1] != "form" or not parts[3].isdecimal() or len(parts[3]) > 18:
                raise RelgradError("there is / and /form/FAMILY/SEED, where SEED is a number of at most 18 digits")
            return make(parts[2], int(parts[3]), self.grammar)
        except RelgradError as error:
            self._answer(str(error), HTTPStatus.NOT_FOUND)
            return None

    def _answer(self, text: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"text/{'html' if status == HTTPStatus.OK else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is for the addresses."""


def server(port: int, grammar: Grammar) -> LoopbackServer:
    """A server on this machine alone, not yet serving; port 0 takes a free one. Raises RelgradError where it cannot listen."""
    handler = type("FormHandler", (Handler,), {"grammar": grammar})
    try:
        return LoopbackServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise RelgradError(
            f"forms: cannot listen on port {port}: {error}; choose another with --port, or 0 for a free one"
        ) from None


def address(port: int, family: str | None = None, seed: int = 0) -> str:
    """Where the index, or one form, is found."""
    return f"http://127.0.0.1:{port}/" + (f"form/{quote(family)}/{seed}" if family is not None else "")
