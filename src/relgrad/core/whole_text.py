"""Text that a file can hold: UTF-8 has no half of a surrogate pair, but JSON, YAML and the command line can bring one in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any


def half_character(value: Any) -> str | None:
    """Says where text, however deep inside of lists and mappings, has half of a surrogate pair; None where it has none."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"half a character, {value[error.start]!a}, after {error.start} others"
        return None
    if isinstance(value, Mapping):
        return next(filter(None, map(half_character, itertools.chain(value, value.values()))), None)
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(half_character, value)), None)
    return None
