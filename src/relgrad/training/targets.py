"""The text that a column of a prompt gives to learn."""

from __future__ import annotations

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt

_LONGEST = 80
"""Characters of a wrong value that an error shows."""


def example_of(prompt: Prompt, column: str, setting: str) -> Example:
    """The prompt with its target: the column's text, or that of the one assistant message in it, as TRL writes a chat's completion.

    Raises RelgradError, naming the `setting` that chose the column, where it is not there or holds neither.
    """
    if column not in prompt.columns:
        raise RelgradError(
            f"prompt {prompt.id} has no text column {column!r}; it has {', '.join(sorted(prompt.columns)) or 'none'}. Set "
            f"{setting} to the column that holds the text to learn"
        )
    match prompt.columns[column]:
        case str(text) | [{"role": "assistant", "content": str(text)}]:
            return Example(prompt, text)
        case other:
            shown = repr(other)
            shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
            raise RelgradError(
                f"prompt {prompt.id}: column {column!r} holds {shown}; a target is text, or a list of one message "
                f'{{"role": "assistant", "content": text}}. Set {setting} to the column that holds the text to learn'
            )
