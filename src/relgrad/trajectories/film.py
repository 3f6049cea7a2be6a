"""What happened to a text while it was filled in, as plain data: for the terminal, for films.jsonl and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Decode = Callable[[Sequence[int]], str]
LONGEST = 4
"""The most bytes of one character, so the most ids that may be waiting to become readable."""


@dataclass(frozen=True)
class Frames:
    """Every state of B texts: the start, then by turns what a step filled and what was masked again after it.

    ids_FBL         int32 [2 steps, B, L]; the last frame is the finished text
    confidence_FBL  float16 [2 steps, B, L]; the probability with which the token there was drawn, NaN where it is masked,
                    given or padding
    """

    ids_FBL: Tensor
    confidence_FBL: Tensor


def describe(
    frames: Frames, prompts: Sequence[str], length_B: Tensor, mask_id: int, decode: Decode
) -> list[dict[str, Any]]:
    """Per row `prompt`, `source`, `final` (the finished text), its `ids`, and `frames`: the start, then by turns a filling and a
    masking again.

    step        fills so far
    text        the whole text, with the sign of a mask at masked positions
    cells       the text of every position; left out where every position is one character of `text`
    masked      positions masked in this frame
    filled      positions this frame filled
    confidence  per position the probability with which its token was drawn (see `two_digits`), None where masked or given
    """
    rows = []
    for row, (prompt, length) in enumerate(zip(prompts, length_B.tolist(), strict=True)):
        shots: list[dict[str, Any]] = []
        for number in range(len(frames.ids_FBL)):
            ids = frames.ids_FBL[number, row, :length].tolist()
            confidence = frames.confidence_FBL[number, row, :length].tolist()
            masked = [i for i, token in enumerate(ids) if token == mask_id]
            before = shots[-1]["masked"] if shots else masked
            parts = cells(ids, decode)
            frame = {
                "step": (number + 1) // 2,
                "text": "".join(parts),
                "masked": masked,
                "filled": sorted(set(before).difference(masked)),
                "confidence": [two_digits(c) for c in confidence],
            }
            if any(len(part) != 1 for part in parts):
                frame["cells"] = parts
            shots.append(frame)
        rows.append({"prompt": prompt, "source": "text", "final": shots[-1]["text"], "ids": ids, "frames": shots})
    return rows


def two_digits(probability: float) -> float | None:
    """A probability to two significant digits; None for NaN."""
    return None if math.isnan(probability) else float(f"{probability:.2g}")


def cells(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of every id, given what stands before it; a character of several ids is shown at its last one."""
    shown: list[str] = []
    first = 0  # of the ids that are not shown yet
    for i in range(len(ids)):
        before = decode(ids[max(first - 1, 0) : first])
        text = decode(ids[max(first - 1, 0) : i + 1])[len(before) :]
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 - first < LONGEST and i + 1 < len(ids)
        shown.append("" if unfinished else text)
        first = first if unfinished else i + 1
    return shown
