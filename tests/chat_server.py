"""A real HTTP server with a chat-completions route, whose every answer a test writes; and what it was asked."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """`body` is sent as it is where it is bytes; `hang` seconds pass before."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0.0


def says(text: str, model: str = "m", **more: Any) -> Answer:
    """A good answer of 7 tokens read and 3 written."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return Answer({"model": model, "choices": [choice], "usage": usage})


class Listening(ThreadingHTTPServer):
    """Says nothing of whoever asked and has gone before the question was whole."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (OSError, ValueError, TypeError)):
            super().handle_error(request, client_address)


@dataclass
class ChatServer:
    """`asked` holds (body, headers) of every request, in order."""

    url: str
    asked: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Answer], port: int = 0) -> Iterator[ChatServer]:
    """Serve on a port, 0 for a free one; `answer` is given the request's number, from 0, and its body."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append((body, dict(self.headers)))
            reply = answer(number, body)
            time.sleep(reply.hang)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                return  # whoever asked has gone

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    listening = Listening(("127.0.0.1", port), Handler)
    listening.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{listening.server_port}/v1")
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
