"""What a page sent, read from the request that it made: a form's entries, its parts, or the JSON of a script."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from relgrad.environments.forms.outcome import Entry
from relgrad.environments.sites.wire import Exchange

WRITING = ("POST", "PUT", "PATCH")


def entries(exchange: Exchange) -> tuple[Entry, ...]:
    """Names and values in their order, files by their name; of JSON, inner keys after a dot and lists as several entries.

    Nothing where the request carries no form and no JSON.
    """
    if exchange.method not in WRITING:
        return _pairs(urlsplit(exchange.path).query)
    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _parts(exchange)
    text = exchange.body.decode("utf-8", "replace")
    if kind == "application/x-www-form-urlencoded":
        return _pairs(text)
    try:
        return tuple(_flat("", json.loads(text)))
    except ValueError:
        return _pairs(text) if re.match(r"[\w.\[\]-]+=", text) else ()


def _pairs(text: str) -> tuple[Entry, ...]:
    return tuple((name, _lines(value)) for name, value in parse_qsl(text, keep_blank_values=True, errors="replace"))


def _parts(exchange: Exchange) -> tuple[Entry, ...]:
    head = f"Content-Type: {exchange.headers['content-type']}\r\n\r\n".encode("latin-1")
    message = BytesParser(policy=HTTP).parsebytes(head + exchange.body)
    sent = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        file = part.get_filename()
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        value = file if file is not None else _lines(content.decode("utf-8", "replace"))
        if isinstance(name, str):
            sent.append((_read_back(name), _read_back(value) if file is not None else value))
    return tuple(sent)


def _read_back(text: str) -> str:
    """A name in a part's head: browsers write UTF-8 there, and quotes and line breaks as %22, %0D, %0A."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return whole.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _flat(name: str, value: Any) -> list[Entry]:
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in _flat(f"{name}.{key}" if name else str(key), inner)]
    if isinstance(value, list):
        return [one for inner in value for one in _flat(name, inner)]
    if value is None:
        return []
    return [(name, value if isinstance(value, str) else json.dumps(value))]


def submitting(exchanges: Sequence[Exchange], names: frozenset[str]) -> Exchange | None:
    """Of what the page sent since it was asked to submit, the request that carries most of what it offers to fill in.

    Requests that write come before those that only ask (a form whose method is GET leads to another page), beacons count only
    where they carry names of the page, and of several alike the last counts.

    names   the names and ids of the page's controls
    """
    ranked = []
    for number, exchange in enumerate(exchanges):
        sent = {name.removesuffix("[]") for name, _ in entries(exchange)}
        carried = len({part for name in sent for part in (name, name.rpartition(".")[2])} & names)
        writes = exchange.method in WRITING
        if (writes and (carried or not _is_beacon(exchange))) or (exchange.navigates and carried):
            ranked.append((carried, writes, number))
    return exchanges[max(ranked)[2]] if ranked else None


def _is_beacon(exchange: Exchange) -> bool:
    return (exchange.headers.get("sec-fetch-mode"), exchange.headers.get("sec-fetch-dest")) == ("no-cors", "empty")
