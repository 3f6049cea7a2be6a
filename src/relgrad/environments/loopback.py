"""A web server for this machine alone, for which a browser that leaves in the middle of an answer is no error."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class LoopbackServer(ThreadingHTTPServer):
    """`http.server`'s, one thread a request, but without a traceback on the terminal where the other end has gone."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called while the error is being handled."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
