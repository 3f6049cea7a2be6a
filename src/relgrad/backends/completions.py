"""OpenAI's completions API with what training needs beside it, as vLLM has it: token ids, log-probabilities, adapters at run time.

    POST /v1/completions           prompt as token ids, n, seed, logprobs, return_token_ids     -> choices with token_ids
    POST /v1/load_lora_adapter     lora_name, lora_path                 (vLLM: needs --enable-lora, and to be allowed)
    POST /v1/unload_lora_adapter   lora_name
    GET  /v1/models                models and adapters

What a server would add from the model's own generation config (top_k, penalties) is switched off by name. Requests are repeated
after a connection that fails, no answer in time, status 408, 409, 425, 429 or 5xx, and a body that is no such completion.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import httpx2

from relgrad.backends.pace import FIRST_WAIT, wait_after
from relgrad.backends.reading import Malformed, error_of
from relgrad.core.errors import ServerFailed, UnknownModel
from relgrad.core.protocols import ServedLaw
from relgrad.core.types import CompletionRequest, Written

AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which a request is repeated."""
PLAIN_LAW = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""What a server may otherwise take from the model's own generation config."""
Value = TypeVar("Value")


class Completions:
    """See training/remote.Server.

    deadline, timeout  seconds for an answer: for the completions of a prompt `timeout`, for all else `deadline`
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        deadline: float = 60.0,
        timeout: float = 600.0,
        retries: int = 8,
        concurrency: int = 64,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self.url, self.deadline, self.timeout = url, deadline, timeout
        self.retries, self.concurrency, self.first_wait = retries, concurrency, first_wait
        try:
            self._client = httpx2.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx2.Limits(max_connections=concurrency),
                trust_env=False,
            )
        except httpx2.InvalidURL as error:
            raise ServerFailed(f"{url!r} is no address of a server: {error}") from None

    def models(self) -> list[str]:
        """See Server."""
        return self._ask("GET", "/models", None, self.deadline, _names, retries=0)

    def token_ids(self, model: str, text: str) -> list[int]:
        """See Server. A completion of one token tells the tokens of its prompt."""
        body = {"model": model, "prompt": text, "max_tokens": 1, "add_special_tokens": False, "return_token_ids": True}
        return self._ask("POST", "/completions", body, self.deadline, _prompt_ids)

    def load_adapter(self, name: str, folder: str) -> None:
        """See Server."""
        body = {"lora_name": name, "lora_path": folder}
        try:
            self._ask("POST", "/load_lora_adapter", body, self.deadline, _nothing)
        except ServerFailed as error:
            raise ServerFailed(
                f"{error}. The server must load adapters at run time (vLLM: --enable-lora, --max-lora-rank policy.lora.r or more, "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True) and read {folder} (grpo.remote.adapters, adapters_there)"
            ) from None

    def unload_adapter(self, name: str) -> None:
        """See Server. One that is not there is no failure."""
        with suppress(UnknownModel):
            self._ask("POST", "/unload_lora_adapter", {"lora_name": name}, self.deadline, _nothing)

    def complete(self, model: str, requests: Sequence[CompletionRequest], law: ServedLaw) -> list[list[Written]]:
        """See Server."""

        def one(prompt: CompletionRequest) -> list[Written]:
            body = {
                "model": model,
                "prompt": prompt.prompt_ids,
                "n": prompt.completions,
                "seed": prompt.seed,
                "max_tokens": law.max_tokens,
                "temperature": law.temperature,
                "stop_token_ids": list(law.end_ids),
                "logprobs": 1,
                "return_token_ids": True,
                "skip_special_tokens": False,
                **PLAIN_LAW,
            }

            def read(answer: Any) -> list[Written]:
                return [_written(choice, law) for choice in _choices(answer, prompt.completions)]

            return self._ask("POST", "/completions", body, self.timeout, read)

        with ThreadPoolExecutor(min(self.concurrency, len(requests))) as pool:
            return list(pool.map(one, requests))

    # ------------------------------------------------------------------ requests

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float,
        read: Callable[[Any], Value],
        retries: int | None = None,
    ) -> Value:
        """What `read` makes of the answer. Raises ServerFailed after the last attempt, and at once where another is no use."""
        attempts = 1 + (self.retries if retries is None else retries)
        for attempt in range(1, attempts + 1):
            try:
                return read(self._attempt(method, path, body, timeout))
            except (_Again, Malformed) as failure:
                if attempt == attempts:
                    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
                    raise ServerFailed(f"{self.url}{path}: {failure} ({times})") from None
                time.sleep(wait_after(attempt, self.first_wait, 0))
        raise AssertionError("the last attempt answers or raises")

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        """The answer's JSON, or its text where it is none."""
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout)
        except httpx2.TimeoutException:
            raise _Again(f"no answer within {timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise _Again(f"no connection ({error or type(error).__name__})") from None
        status, reason = answer.status_code, error_of(answer.content)
        if status in AGAIN or status >= 500:
            raise _Again(f"status {status}: {reason}")
        where = f"{self.url}{path}: status {status}: {reason}"
        if status == 404:
            raise UnknownModel(where)
        if status in (401, 403):
            raise ServerFailed(f"{where}; is grpo.remote.key right?")
        if status != 200:
            raise ServerFailed(where)
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            return answer.text


class _Again(Exception):
    """An attempt that failed and may be repeated."""


# ---------------------------------------------------------------------- answers


def _nothing(answer: Any) -> None:
    """Of an answer that only says that it was done."""


def _names(answer: Any) -> list[str]:
    models = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(models, list) or not all(isinstance(model, Mapping) and "id" in model for model in models):
        raise Malformed(f"no list of models: {str(answer)[:120]!r}")
    return [str(model["id"]) for model in models]


def _choices(answer: Any, count: int) -> list[Mapping[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != count or not all(isinstance(c, Mapping) for c in choices):
        raise Malformed(f"no {count} choices: {str(answer)[:120]!r}")
    return sorted(choices, key=lambda choice: int(choice.get("index", 0)))


def _prompt_ids(answer: Any) -> list[int]:
    return _ids(_choices(answer, 1)[0], "prompt_token_ids")


def _ids(choice: Mapping[str, Any], key: str) -> list[int]:
    """Token ids of a choice. Raises ServerFailed for a server that tells none: another attempt would not either."""
    ids = choice.get(key)
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ServerFailed(
            f"the server tells no token ids (a choice without {key}): a text is not enough to train on. vLLM tells them, "
            "asked by return_token_ids, from version 0.10.2 on"
        )
    return ids


def _written(choice: Mapping[str, Any], law: ServedLaw) -> Written:
    """One completion. Raises Malformed, and ServerFailed where the server does not do what was asked."""
    ids = _ids(choice, "token_ids")
    holder = choice.get("logprobs")
    logp = holder.get("token_logprobs") if isinstance(holder, Mapping) else None
    if not isinstance(logp, list) or not all(isinstance(value, (int, float)) for value in logp):
        raise ServerFailed("the server tells no log-probabilities (a choice without logprobs.token_logprobs)")
    if len(logp) != len(ids) or not all(math.isfinite(value) for value in logp):
        raise Malformed(f"{len(ids)} tokens with {len(logp)} log-probabilities, or some that are no numbers")
    finish = choice.get("finish_reason")
    if finish == "stop" and ids and ids[-1] in law.end_ids:
        return Written(tuple(ids), tuple(map(float, logp)), True)
    if finish == "length" and len(ids) == law.max_tokens:
        return Written(tuple(ids), tuple(map(float, logp)), ids[-1] in law.end_ids)
    if finish in ("stop", "length"):
        raise ServerFailed(
            f"the server ended a completion after {len(ids)} tokens with finish_reason {finish!r}, and its last token is "
            f"{ids[-1] if ids else None}: the ends are {list(law.end_ids)}, the limit is {law.max_tokens}. It adds stop words of "
            "its own, leaves the end out, or has too short a context (vLLM: --max-model-len)"
        )
    raise Malformed(f"a completion that ended with finish_reason {finish!r}")
