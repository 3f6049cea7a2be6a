"""What a back end is: a request in, a reply with its usage out; failures of a call are exceptions that say what they cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from relgrad.core.types import Message


class Usage(NamedTuple):
    """What calls cost: requests sent, tokens read and written, and money in the currency of the price table."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        tokens = (self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)
        return Usage(self.calls + other.calls, *tokens, self.money + other.money)

    def times(self, count: int) -> Usage:
        return Usage(self.calls * count, self.input_tokens * count, self.output_tokens * count, self.money * count)


NOTHING = Usage()


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    max_tokens  the most tokens that are written
    seed        what the reply is drawn from, where the back end takes one
    about       what the question is for (operator, problem …), plain data. It is part of `key`; only the scripted solver reads it,
                and it is never sent anywhere
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name for everything that the reply may depend on, the back end apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of all messages: no tokenizer makes more tokens of them, the template's own apart."""
        return sum(len(message["content"].encode()) for message in self.messages)


@dataclass(frozen=True)
class Reply:
    """One answer.

    model      what the back end says has written it
    finish     "stop", or "length" where `max_tokens` cut it off
    estimated  the back end told no usage: tokens are counted at their upper bound
    token_ids, logprobs  of the written tokens (nats), where the back end tells them; else empty
    """

    text: str
    usage: Usage
    model: str
    finish: Literal["stop", "length"] = "stop"
    seconds: float = 0.0
    estimated: bool = False
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def logp(self) -> float | None:
        """The log-probability of the whole text in nats, where it is known."""
        return sum(self.logprobs) if self.logprobs else None

    def record(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return asdict(self) | {"usage": list(self.usage)}

    @staticmethod
    def of(record: Mapping[str, Any]) -> Reply:
        """From what `record` gave. Raises KeyError or TypeError for anything else."""
        lists = {name: tuple(record.get(name, ())) for name in ("token_ids", "logprobs")}
        return Reply(**{**record, **lists, "usage": Usage(*record["usage"])})


class CallFailed(Exception):
    """A request without a reply.

    usage  what it may have cost, at the worst
    fatal  whether every other request would fail too: the endpoint is away, the key refused, the model unknown
    """

    def __init__(self, reason: str, usage: Usage = NOTHING, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.usage, self.fatal = usage, fatal


class Backend(Protocol):
    """A language model that somebody else runs; used within one event loop."""

    @property
    def identity(self) -> str:
        """A name for everything that replies depend on beside the request: part of the key of what is kept of them."""
        ...

    @property
    def priced(self) -> bool:
        """Whether money is counted."""
        ...

    def worst(self, request: Request) -> Usage:
        """The most that a request can cost."""
        ...

    async def generate(self, request: Request) -> Reply:
        """The reply. Raises CallFailed."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
