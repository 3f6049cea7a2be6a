"""Messages from the guest, none of which is trusted: not its length, not its shape, not who wrote it."""

from __future__ import annotations

import json
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Any

from relgrad.environments.sandbox.limits import Limits
from relgrad.environments.sandbox.outcome import REPORTED, ErrorKind
from relgrad.environments.sandbox.values import unpack

PART = 65536
SHOWN = 2000
"""Characters of a report's message that are kept."""
OVERHEAD = 1024
"""Bytes of a report beside the value, which was measured inside."""


class Breach(Exception):
    """A message that is not allowed, and the error it is."""

    def __init__(self, error: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.error: ErrorKind = error


@dataclass(frozen=True)
class Ready:
    """The guest waits for its job."""


@dataclass(frozen=True)
class Asked:
    """A call of the program's."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The end: a value, or an error that was noticed inside."""

    value: Any
    error: ErrorKind | None
    message: str


class Messages:
    """Reads one socket bit by bit, and writes to it. `token` is what a report must carry."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self.token = secrets.token_hex(16)
        self._connection, self._limits = connection, limits
        self._data = bytearray()
        self._started = False

    def send(self, message: Any, seconds: float) -> None:
        """Raises OSError (a TimeoutError where nobody reads) when it cannot be sent."""
        data = json.dumps(message).encode()
        self._connection.settimeout(seconds)
        self._connection.sendall(struct.pack(">I", len(data)) + data)

    def read(self) -> bool:
        """Take what has arrived, a part at a time; False where the other end is closed."""
        try:
            part = self._connection.recv(PART)
        except OSError:
            return False
        self._data += part
        return bool(part)

    def next(self) -> Ready | Asked | Report | None:
        """The next whole message, None before it is whole. Raises Breach."""
        if len(self._data) < 4:
            return None
        length = struct.unpack(">I", self._data[:4])[0]
        most = self._limits.message_kb * 1024 + OVERHEAD
        if length > most:
            raise Breach("refused call", f"a message of {length:,} bytes, more than {most:,} (message_kb)")
        if len(self._data) < 4 + length:
            return None
        data = bytes(self._data[4 : 4 + length])
        del self._data[: 4 + length]
        return self._understood(self._parsed(data))

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Breach("forged", f"a message that is no JSON ({type(error).__name__})") from None

    def _understood(self, message: Any) -> Ready | Asked | Report:
        if not self._started:
            if message != {"ready": True}:
                raise Breach("forged", "a message before the start")
            self._started = True
            return Ready()
        match message:
            case {"call": str(name), "arguments": arguments, **rest} if not rest:
                arguments = self._unpacked(arguments, "refused call")
                if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
                    raise Breach("forged", "a call whose arguments have no names")
                return Asked(name, arguments)
            case {"token": self.token, "value": value, **rest} if not rest:
                return Report(self._unpacked(value, "no data"), None, "")
            case {"token": self.token, "error": str(error), "message": str(text), **rest} if (
                error in REPORTED and not rest
            ):
                return Report(None, error, text[:SHOWN])
        raise Breach("forged", "a message that only the program itself can have written")

    def _unpacked(self, data: Any, error: ErrorKind) -> Any:
        if _deeper(data, self._limits.depth + 1):
            raise Breach(error, f"lists inside of each other, more than {self._limits.depth} deep (depth)")
        try:
            return unpack(data)
        except (ValueError, RecursionError) as reason:
            raise Breach("forged", f"data that is none ({reason})") from None


def _deeper(data: Any, most: int) -> bool:
    """Whether there are more than `most` lists and objects inside of each other."""
    level = [data]
    for _ in range(most):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return False
    return any(isinstance(item, (list, dict)) for item in level)


def _inside(item: Any) -> Any:
    return item if isinstance(item, list) else item.values() if isinstance(item, dict) else ()
