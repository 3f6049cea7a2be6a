"""Replies kept in a file and given again: a search or a test without a server. A request that is not in the file is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import model_validator

from relgrad.backends.protocol import Backend, CallFailed, Reply, Request, Usage
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import cut_torn_line, read_lines
from relgrad.core.secrets import hide_in
from relgrad.core.settings import Component, NamesFiles, Strict, settings_of


class Settings(Strict):
    """What is kept where.

    mode  "replay": only what is in the file; "record": what is not is asked of `of`, and kept
    of    the back end that is recorded
    """

    file: Annotated[Path, NamesFiles()]
    mode: Literal["replay", "record"] = "replay"
    of: Component | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> Settings:
        if (self.mode == "record") != (self.of is not None):
            raise ValueError("mode: record goes with `of`, the back end that is recorded, and mode: replay without it")
        return self


def build(settings: Settings, seed: int = 0) -> Replay:
    """Raises RelgradError for a file that is not there (mode replay) or cannot be read."""
    if settings.of is None:
        if not settings.file.is_file():
            raise RelgradError(f"replay: no file {str(settings.file)!r} (working directory {Path.cwd()})")
        return Replay(settings.file, None)
    module = registry.find("backends", settings.of.kind)
    inner = module.build(settings_of(settings.of, module.Settings, "replay.of"), seed)
    return Replay(settings.file, inner)


class Replay:
    """See protocol.Backend. What comes from the file costs what it cost when it was recorded."""

    def __init__(self, file: Path, inner: Backend | None) -> None:
        self.file, self.inner = file, inner
        if inner is not None:
            cut_torn_line(file)
        self._replies = dict(map(_entry, read_lines(file)))

    @property
    def identity(self) -> str:
        return self.inner.identity if self.inner is not None else f"replay {self.file.name}"

    @property
    def priced(self) -> bool:
        return self.inner.priced if self.inner is not None else True

    def worst(self, request: Request) -> Usage:
        if (reply := self._replies.get(request.key)) is not None:
            return reply.usage
        return self.inner.worst(request) if self.inner is not None else Usage()

    async def generate(self, request: Request) -> Reply:
        if (reply := self._replies.get(request.key)) is not None:
            return reply
        if self.inner is None:
            raise CallFailed(
                f"{self.file} holds no reply to this request, which begins {request.messages[-1]['content'][:60]!r}: record it "
                "with mode: record",
                fatal=True,
            )
        reply = await self.inner.generate(request)
        self._replies[request.key] = reply
        self._append({"key": request.key, "messages": list(request.messages), "reply": reply.record()})
        return reply

    def _append(self, record: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(hide_in(record), ensure_ascii=False) + "\n")

    async def close(self) -> None:
        if self.inner is not None:
            await self.inner.close()


def _entry(record: dict[str, Any]) -> tuple[str, Reply]:
    try:
        return str(record["key"]), Reply.of(record["reply"])
    except (KeyError, TypeError) as error:
        raise RelgradError(
            f"replay: a line is no recorded reply ({error!r}): key and reply belong there, as mode: record writes"
        ) from None
