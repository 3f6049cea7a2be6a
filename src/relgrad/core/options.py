"""Options of `relgrad sample` that only some kinds of policy have; each is declared beside its kind, in a file without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def no_settings(value: Any) -> Mapping[str, Any]:
    """An option that changes no setting."""
    return {}


@dataclass(frozen=True)
class SampleOption:
    """One option of `relgrad sample`.

    name      without the dashes
    help      its line in --help
    number    True for a whole number of at least 1, False for text
    settings  the settings of the policy that a value changes, by their dotted names below `policy`. Raises RelgradError for a value
              that means nothing
    prompt    the text to write for in place of prompts, for an option that says what is written and not how; else None
    """

    name: str
    help: str
    number: bool = False
    settings: Callable[[Any], Mapping[str, Any]] = no_settings
    prompt: Callable[[Any], str] | None = None
