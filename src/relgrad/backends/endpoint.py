"""Any server with OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, `transformers serve`, or a provider's.

A request is repeated after a connection that fails, no answer within `timeout`, status 408, 409, 425, 429 or 5xx, and a body that
is no chat completion; waits grow twofold, or are as long as the server's Retry-After says. All of it ends at `deadline`, by
a clock that stands still while a request waits for its turn among others. Other statuses are final.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import httpx2
from pydantic import Field, field_validator

from relgrad.backends import reading
from relgrad.backends.pace import FIRST_WAIT, Pace, wait_after
from relgrad.backends.protocol import CallFailed, Reply, Request, Usage
from relgrad.core.addresses import http_url
from relgrad.core.settings import Strict

AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which a request is repeated."""
TEMPLATE = 64
"""Tokens that a chat template may add to each message."""
ADDED = re.compile(r"[-@:](\d{4}(-?\d\d){0,2}|\d\d-\d\d|\d{3}|v\d+(\.\d+)*|latest)|@(main|[0-9a-f]{40})")
"""What a server may add to a model's name: a date (-2024-08-06, -20241022, -0613), a version (-002, -v2), :latest, a revision
(@main)."""


class Price(Strict):
    """What a model costs per million tokens, read and written."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Settings(Strict):
    """Where the server is and how it is asked.

    url                  up to and with the version: http://127.0.0.1:8000/v1
    key                  sent as a bearer token; write `env:NAME`
    prices               by the name of a model; without the one asked for, money is not counted
    deadline             seconds of a request from its first turn on, all attempts and the waits between them
    any_model            take answers of a model of another name than the one asked for
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = Field(60.0, gt=0)
    deadline: float = Field(300.0, gt=0)
    retries: int = Field(4, ge=0)
    first_wait: float = Field(FIRST_WAIT, gt=0)
    requests_per_minute: float | None = Field(None, gt=0)
    concurrency: int = Field(8, ge=1)
    send_seed: bool = True
    logprobs: bool = False
    any_model: bool = False
    prices: dict[str, Price] = Field(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return http_url(url)


def build(settings: Settings, seed: int = 0) -> Endpoint:
    """Connects to nothing yet."""
    return Endpoint(settings)


class _Again(Exception):
    """An attempt that failed and may be repeated, after `wait` seconds where the server says so; `billed`: it may have cost."""

    def __init__(self, reason: str, wait: float | None = None, *, billed: bool = False, reached: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.billed, self.reached = wait, billed, reached


class Endpoint:
    """See protocol.Backend. A request that timed out may have been answered and billed: it counts at its worst."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.price = settings.prices.get(settings.model)
        self._client: httpx2.AsyncClient | None = None
        self._pace = Pace(settings.concurrency, settings.requests_per_minute)

    @property
    def identity(self) -> str:
        return f"endpoint {self.settings.url} {self.settings.model}"

    @property
    def priced(self) -> bool:
        return self.price is not None

    def worst(self, request: Request) -> Usage:
        return self._once(request).times(self.settings.retries + 1)

    def _once(self, request: Request) -> Usage:
        """The most that one attempt can cost."""
        return self._usage(request.size + TEMPLATE * (len(request.messages) + 1), request.max_tokens)

    def _usage(self, read: int, written: int) -> Usage:
        money = 0.0 if self.price is None else (read * self.price.input + written * self.price.output) / 1e6
        return Usage(1, read, written, money)

    async def generate(self, request: Request) -> Reply:
        start, lost = time.monotonic(), Usage()
        for attempt in range(1, self.settings.retries + 2):
            try:
                async with self._pace.turn() as waited:
                    start += waited
                    async with asyncio.timeout_at(_at(start, self.settings.deadline)):
                        reply = await self._attempt(request, start)
                return Reply(**{**vars(reply), "usage": reply.usage.plus(lost)})
            except CallFailed as failure:
                raise CallFailed(str(failure), failure.usage.plus(lost), fatal=failure.fatal) from None
            except TimeoutError:
                raise self._failed("no answer", lost.plus(self._once(request)), attempt, start) from None
            except _Again as failure:
                lost = lost.plus(self._once(request) if failure.billed else Usage(calls=int(failure.reached)))
                wait = failure.wait if failure.wait is not None else self._wait(attempt, request)
                late = time.monotonic() - start + wait > self.settings.deadline
                if late or attempt > self.settings.retries:
                    raise self._failed(str(failure), lost, attempt, start, fatal=not failure.reached) from None
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt answers or raises")

    def _wait(self, attempt: int, request: Request) -> float:
        return wait_after(attempt, self.settings.first_wait, request.seed or 0)

    def _failed(self, reason: str, usage: Usage, attempts: int, start: float, *, fatal: bool = False) -> CallFailed:
        seconds = time.monotonic() - start
        return CallFailed(f"{self.settings.url}: {reason} ({attempts} attempts, {seconds:.1f} s)", usage, fatal=fatal)

    async def _attempt(self, request: Request, start: float) -> Reply:
        """One request. Raises _Again where it may be repeated, CallFailed where not."""
        try:
            answer = await self._connected().post("/chat/completions", json=self._body(request))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Again(f"no connection ({error})", reached=False) from None
        except httpx2.TimeoutException:
            raise _Again(f"no answer within {self.settings.timeout:g} s", billed=True) from None
        except httpx2.HTTPError as error:
            raise _Again(f"the connection broke ({type(error).__name__})", billed=True) from None
        if answer.status_code in AGAIN or answer.status_code >= 500:
            raise _Again(_refusal(answer), _retry_after(answer))
        if answer.status_code != 200:
            advice = {
                401: "; is `key` right?",
                403: "; is `key` right?",
                404: f"; is there a model {self.settings.model!r}?",
            }
            raise CallFailed(
                f"{self.settings.url}: {_refusal(answer)}{advice.get(answer.status_code, '')}",
                Usage(calls=1),
                fatal=answer.status_code in (401, 403, 404),
            )
        try:
            read = reading.completion(answer.content)
        except reading.Malformed as error:
            raise _Again(str(error), billed=True) from None
        usage = self._once(request) if read.tokens is None else self._usage(*read.tokens)
        self._require_model(read.model, usage)
        return Reply(
            read.text, usage, read.model or self.settings.model, read.finish, time.monotonic() - start,
            estimated=read.tokens is None, logprobs=read.logprobs,
        )  # fmt: skip

    def _require_model(self, answered: str, usage: Usage) -> None:
        """Raise CallFailed for an answer of another model; the same name with a date, a version or a revision is no other."""
        if not answered or self.settings.any_model or _same_model(self.settings.model, answered):
            return
        raise CallFailed(
            f"{self.settings.url}: model {self.settings.model!r} was asked for, and {answered!r} answers. Name the model that the "
            "server has, or set any_model: true",
            usage,
            fatal=True,
        )

    def _body(self, request: Request) -> dict[str, Any]:
        body = {
            "model": self.settings.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None and self.settings.send_seed:
            body["seed"] = request.seed % 2**31
        if self.settings.logprobs:
            body["logprobs"] = True
        return body

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            headers = {"Authorization": f"Bearer {self.settings.key}"} if self.settings.key else {}
            self._client = httpx2.AsyncClient(
                base_url=self.settings.url, headers=headers, timeout=self.settings.timeout, trust_env=False
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _at(start: float, seconds: float) -> float:
    """The event loop's time at which so many seconds after `start` (of time.monotonic) have passed."""
    return asyncio.get_running_loop().time() + start + seconds - time.monotonic()


def _same_model(name: str, answered: str) -> bool:
    """Whether a model that answers is the one of this name, or of this name with what servers add to it."""
    base = name.removesuffix("-latest").removesuffix(":latest")
    return answered in (name, base) or (answered.startswith(base) and ADDED.fullmatch(answered, len(base)) is not None)


def _refusal(answer: httpx2.Response) -> str:
    return f"status {answer.status_code}: {reading.error_of(answer.content)}"


def _retry_after(answer: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait, where it does."""
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
