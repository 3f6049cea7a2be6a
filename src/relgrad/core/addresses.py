"""Addresses of servers, checked where a recipe is read. Standard library only."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

NOT_IN_URLS = re.compile(r"[\s\x00-\x1f\x7f]")


def http_url(url: str) -> str:
    """The URL without a slash at its end. Raises ValueError for what no request could be sent to."""
    example = "for example http://127.0.0.1:8000/v1"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url begins with http:// or https://, {example}")
    if NOT_IN_URLS.search(url):
        raise ValueError(f"url has a space or a control character in it, {url!r}; write it without, {example}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url {url!r} cannot be read ({error}); {example}") from None
    if not host:
        raise ValueError(f"url {url!r} names no host; {example}")
    return url.rstrip("/")
