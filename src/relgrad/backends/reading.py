"""What a chat completion's JSON says. Bodies are read strictly: what is not as it should be is malformed, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from relgrad.core.whole_text import half_character

SHOWN = 120
"""Characters of a body that an error shows."""


class Malformed(Exception):
    """A body that is no chat completion; the message says what is wrong with it."""


class Completion(NamedTuple):
    """`tokens` is (read, written), None where the server does not tell."""

    text: str
    finish: Literal["stop", "length"]
    model: str
    tokens: tuple[int, int] | None
    logprobs: tuple[float, ...]


def completion(body: bytes) -> Completion:
    """Read a body. Raises Malformed."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON ({error}): {_begin(body)}") from None
    choices = data.get("choices") if isinstance(data, Mapping) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], Mapping)):
        raise Malformed(f"JSON without choices: {_begin(body)}")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise Malformed(f"a choice without a message's content: {_begin(body)}")
    if wrong := half_character(text):
        raise Malformed(f"a message with {wrong}")
    finish: Literal["stop", "length"] = "length" if choices[0].get("finish_reason") == "length" else "stop"
    return Completion(text, finish, str(data.get("model") or ""), _tokens(data), _logprobs(choices[0]))


def error_of(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return _begin(body)
    for key in ("error", "detail", "message"):
        if isinstance(data, Mapping) and key in data:
            data = data[key]
    return str(data)[:SHOWN]


def _tokens(data: Mapping[str, Any]) -> tuple[int, int] | None:
    usage = data.get("usage")
    if not isinstance(usage, Mapping):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0:
        return read, written
    return None


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    holder = choice.get("logprobs")
    content = holder.get("content") if isinstance(holder, Mapping) else None
    if not isinstance(content, list):
        return ()
    try:
        return tuple(float(token["logprob"]) for token in content)
    except (KeyError, TypeError, ValueError):
        raise Malformed("logprobs that are no numbers") from None


def _begin(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return repr(text[:SHOWN]) if text else "an empty body"
