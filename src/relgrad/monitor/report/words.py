"""Values of a run folder in words: numbers, times, nested settings as lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any


def number(value: Any, signed: bool = False) -> str:
    """Four significant digits, a true minus sign, a dash for what is not a number; `signed` writes the plus."""
    if not isinstance(value, (int, float)):
        return "–"
    if value == 0:
        return "0"
    text = f"{value:+.4g}" if signed else f"{value:.4g}"
    return text.replace("-", "−")


def flatten(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """("versions · torch", "2.13") for every leaf of nested mappings; lists become one line."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path} · {key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        yield path, " ".join(str(v) for v in value)
    elif value is not None:
        yield path, str(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def first_word(*values: Any) -> str:
    """The first value that is a non-empty string, or ""."""
    return next((v for v in values if isinstance(v, str) and v), "")


def when(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
