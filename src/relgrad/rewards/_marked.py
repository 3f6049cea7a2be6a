"""The part of a completion that is its answer."""

from __future__ import annotations


def after_mark(text: str, mark: str | None) -> str | None:
    """What stands after the last mark, without outer white space; None where there is none. Without a mark to look for, all."""
    if mark is None:
        return text.strip()
    _, separator, after = text.rpartition(mark)
    return after.strip() if separator else None
