"""Reading a dataset column in a reward."""

from __future__ import annotations

import difflib
import math
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt, Score


def missing_column(name: str, prompt: Prompt) -> str:
    """Says that a column is missing, which columns there are, and which comes nearest."""
    near = difflib.get_close_matches(name, list(prompt.columns), 1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    columns = ", ".join(map(repr, prompt.columns)) or "none"
    return f"the dataset has no column {name!r}{hint}; its columns are {columns}"


def column(prompt: Prompt, name: str, reward: str) -> Any:
    """The column's value (None where this row has none); of a completion written as a chat, its text.

    Raises RelgradError when there is no such column.
    """
    if name not in prompt.columns:
        raise RelgradError(f"reward {reward!r}: {missing_column(name, prompt)}")
    match prompt.columns[name]:
        case [{"role": "assistant", "content": str(text)}]:
            return text
        case value:
            return value


def unscored(why: str) -> Score:
    """A completion without a score, and the reason."""
    return Score(math.nan, why=why)
