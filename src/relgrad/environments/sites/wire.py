"""A page's way to its site: a proxy on loopback. It lets pass what goes to the site, keeps what was said, and refuses the rest.

The browser has no other way out, so redirects, sockets and what the browser itself would like to know come here too. Nothing is
changed on the way but headers about the connection; what is kept of a body is its first `KEPT` bytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KEPT = 1_000_000
EMPTY = "/.relgrad/empty"
"""An empty page of the site that the proxy answers by itself: between two plans a tab waits there."""
_BLANK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<!doctype html>"
_REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNREACHED = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HOP = frozenset({"connection", "proxy-connection", "keep-alive", "accept-encoding", "upgrade-insecure-requests"})


@dataclass
class Exchange:
    """A request of the page and its answer. `status` is None while there is none; `failure` says why there will be none."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    status: int | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    failure: str = ""

    @property
    def navigates(self) -> bool:
        """Whether it loads a page, not a part of one or data."""
        return self.headers.get("sec-fetch-mode") == "navigate" and self.headers.get("sec-fetch-dest") == "document"

    @property
    def is_data(self) -> bool:
        """Whether a script sent it by fetch or XHR. A beacon's keep-alive cannot be told by its headers; its kind of body can."""
        return self.headers.get("sec-fetch-dest") == "empty"


class Wire:
    """The way of one page to `host:port`. `allowed`: names of other hosts that it may reach."""

    def __init__(self, host: str, port: int, allowed: frozenset[str] = frozenset()) -> None:
        self.host, self.port, self.allowed = host, port, allowed
        self.exchanges: list[Exchange] = []
        self.refused: Counter[str] = Counter()
        self.open_requests = 0
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen; the proxy's address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def forget(self) -> None:
        """Begin anew: what was said and refused so far belongs to another page."""
        self.exchanges, self.refused = [], Counter()

    async def close(self) -> None:
        """Stop listening, and end what is still under way."""
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self.open_requests += 1
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the browser went away, or spoke no HTTP
        except asyncio.CancelledError:
            pass  # the page is closed
        finally:
            self.open_requests -= 1
            self._running.discard(task)
            with suppress(OSError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = request.split(" ", 2)
        headers = _headers(lines)
        if method == "CONNECT":
            name, _, number = target.rpartition(":")
            self.open_requests -= 1  # a socket stays open as long as it likes; nobody waits for it
            try:
                await self._tunnel(name.strip("[]"), int(number), reader, writer)
            finally:
                self.open_requests += 1
            return
        url = urlsplit(target)
        host, port = url.hostname or "", url.port or 80
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if (host, port, path) == (self.host, self.port, EMPTY):
            writer.write(_BLANK)
            await writer.drain()
            return
        if (host, port) == (self.host, self.port):
            exchange = Exchange(method, path, headers, body)
            self.exchanges.append(exchange)
        elif host in self.allowed:
            exchange = Exchange(method, path, headers)
        else:
            self.refused[f"{host}:{port}" if host == self.host else host] += 1
            writer.write(_REFUSED)
            await writer.drain()
            return
        kept = [line for line in lines if line.partition(":")[0].strip().lower() not in _HOP]
        sent = "\r\n".join(
            [f"{method} {path} HTTP/1.1", *kept, "Accept-Encoding: identity", "Connection: close", "", ""]
        )
        await self._forward(host, port, sent.encode("latin-1") + body, exchange, writer)

    async def _forward(
        self, host: str, port: int, data: bytes, exchange: Exchange, writer: asyncio.StreamWriter
    ) -> None:
        try:
            from_site, to_site = await asyncio.open_connection(host, port)
        except OSError as error:
            exchange.failure = f"the site does not answer at {host}:{port} ({error.strerror or error})"
            writer.write(_UNREACHED)
            await writer.drain()
            return
        try:
            to_site.write(data)
            await to_site.drain()
            await self._answer(from_site, exchange, writer)
        except _Left:
            return
        except (OSError, asyncio.IncompleteReadError) as error:
            if exchange.status is None:
                exchange.failure = f"the site ended the connection without an answer ({type(error).__name__})"
        finally:
            to_site.close()

    async def _answer(self, reader: asyncio.StreamReader, exchange: Exchange, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.split(b" ", 2)[1].startswith(b"1"):  # 100 Continue, 103 Early Hints
            head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = _headers(lines)
        kept = [line for line in lines if line.partition(":")[0].strip().lower() not in _HOP]
        await _pass("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1"), writer)
        status = int(first.split(" ", 2)[1])
        exchange.answer_headers = headers
        left = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
        if exchange.method == "HEAD" or status in (204, 304):
            left = 0
        while left is None or left > 0:
            chunk = await reader.read(65536 if left is None else min(65536, left))
            if not chunk:
                break
            left = left if left is None else left - len(chunk)
            if len(exchange.answer) < KEPT:
                exchange.answer += chunk
            await _pass(chunk, writer)
        exchange.status = status

    async def _tunnel(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bytes both ways, for sockets to the site and for hosts that are allowed."""
        if (host, port) != (self.host, self.port) and host not in self.allowed:
            self.refused[host] += 1
            writer.write(_REFUSED)
            await writer.drain()
            return
        from_site, to_site = await asyncio.open_connection(host, port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, to_site), _pump(from_site, writer))
        finally:
            to_site.close()


class _Left(Exception):
    """The browser does not wait for an answer any more."""


async def _pass(data: bytes, writer: asyncio.StreamWriter) -> None:
    """Give the browser a part of an answer. Raises _Left."""
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        raise _Left from None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    with suppress(OSError):
        writer.close()


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
