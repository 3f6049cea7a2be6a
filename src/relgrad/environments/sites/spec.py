"""What a recipe says of a site: how it is served, where it is, when it has no memory, and what counts as a success."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from relgrad.core.settings import NamesFiles, Strict
from relgrad.environments.sites.entering import Order
from relgrad.environments.sites.verdict import Rule

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SiteSettings(Strict):
    """Either a folder of pages that relgrad serves by itself, or an address, with or without a command that serves it."""

    folder: Annotated[Path | None, NamesFiles()] = Field(None, description="HTML files that relgrad serves by itself")
    url: str | None = Field(None, description="where the site is, http://127.0.0.1:5000 say; {port}: any free port")
    serve: str | None = Field(
        None,
        description="command that serves it, started and ended with the run; {port}, {python} and {relgrad} stand for the port, "
        "this Python and relgrad's folder. null: the server is there",
    )
    serve_timeout: float = Field(60.0, gt=0, description="seconds that the server may take until it answers")
    reset: str | None = Field(
        None, description="puts the server back before each plan: a command, or a path, which is sent a POST"
    )
    stateless: bool = Field(
        False, description="the server has no memory: what a plan does never changes what another finds"
    )
    side_by_side: int = Field(1, ge=1, le=16, description="pages open side by side; more than 1 only where stateless")
    allow_host: tuple[str, ...] = Field(
        (), description="hosts that pages may reach beside the site; all others are refused"
    )
    success: Rule = Field(Rule(), description="when the server's answer is a success")
    dates: Order | None = Field(None, description="which day 3/4/2024 is; null: such dates are refused as ambiguous")

    @model_validator(mode="after")
    def _legal(self) -> SiteSettings:
        if (self.folder is None) == (self.url is None):
            raise ValueError(
                "a site has either `folder`, pages that relgrad serves, or `url`, where it is; give one of the two"
            )
        if self.serve is not None and self.url is None:
            raise ValueError("`serve` needs `url`, where the served site is; drop `serve` for a folder")
        if self.url is not None:
            self._require_url(self.url)
        if self.side_by_side > 1 and not self.has_no_memory:
            raise ValueError(
                f"side_by_side={self.side_by_side} needs a server without memory; say `stateless: true` if it is one, or "
                "side_by_side: 1"
            )
        return self

    def _require_url(self, url: str) -> None:
        if self.serve is None and "{port}" in url:
            raise ValueError("`{port}` in `url` needs `serve`, which is told the port")
        parts = urlsplit(url.replace("{port}", "80"))
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"url={url!r}: a site is reached by http://host:port; https would hide what a page sends")
        if parts.hostname not in (*LOOPBACK, *self.allow_host):
            raise ValueError(
                f"url={url!r}: {parts.hostname} is not this machine; name it in `allow_host` if plans may really be executed there"
            )

    @property
    def has_no_memory(self) -> bool:
        return self.stateless or self.folder is not None

    @property
    def remembers(self) -> bool:
        """Whether equal plans have equal outcomes, so that one may stand for the other."""
        return self.has_no_memory or self.reset is not None

    @property
    def key(self) -> str:
        """The same for equal sites."""
        return json.dumps(self.plain(), sort_keys=True)

    def plain(self) -> dict[str, Any]:
        """As plain data, from which `SiteSettings.of` makes it again."""
        return {
            name: value for name, value in self.model_dump(mode="json").items() if name in SiteSettings.model_fields
        }

    @staticmethod
    def of(data: Mapping[str, Any]) -> SiteSettings:
        return SiteSettings.model_validate(dict(data))
