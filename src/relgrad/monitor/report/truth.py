"""Texts to show, and where the truth is known which places of them are right: pieces of text, each of one kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

MAX_TEXT = 6_000  # characters of one prompt or completion that are shown

Piece = tuple[str, str]
"""(kind, text): "given", "right", "wrong" in a completion; "given", "hidden" in the truth."""


def written(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a card shows of a sample: its `completion`, its and the `truth`'s pieces, the number of `right` holes and of all.

    None for what is not known. `record` is a line of samples/*.jsonl, or of an evaluation's `samples`. Holes that do not fit its
    completion are left out.
    """
    completion, truth = record.get("completion") or "", record.get("truth")
    shown: dict[str, Any] = {"completion": shorten(completion), "pieces": None, "truth": None, "right": None}
    if not isinstance(truth, str):
        return shown
    holes = [hole for hole in record.get("holes") or () if _fits(hole, completion)]
    if not holes or len(completion) > MAX_TEXT:
        return shown | {"truth": [("given", shorten(truth))]}
    right = sum(1 for hole in holes if hole[3])
    return shown | {
        "pieces": _pieces(completion, [(a, b, completion[a:b], "right" if ok else "wrong") for a, b, _, ok in holes]),
        "truth": _pieces(completion, [(a, b, hidden, "hidden") for a, b, hidden, _ in holes]),
        "right": [right, len(holes)],
    }


def _fits(hole: Any, completion: str) -> bool:
    if not (isinstance(hole, Sequence) and len(hole) == 4 and isinstance(hole[2], str)):
        return False
    first, end = hole[:2]
    return isinstance(first, int) and isinstance(end, int) and 0 <= first <= end <= len(completion)


def _pieces(text: str, places: Sequence[tuple[int, int, str, str]]) -> list[Piece]:
    """`text` with what stands at `places` (first, end, text there, kind); neighbours of one kind are one piece.

    A line break at such a place is shown by a sign too: it would be there to see at the next line only.
    """
    parts: list[Piece] = []
    done = 0
    for first, end, inside, kind in places:
        parts += [("given", text[done:first]), (kind, inside.replace("\n", "⏎\n"))]
        done = end
    parts.append(("given", text[done:]))
    return [
        (kind, "".join(piece for _, piece in group))
        for kind, group in groupby(filter(lambda p: p[1], parts), lambda p: p[0])
    ]


def shorten(text: Any) -> str:
    """`text` as a string of at most MAX_TEXT characters, with a note of what was cut; other values as JSON."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… [{len(text) - MAX_TEXT:,} more characters]"
