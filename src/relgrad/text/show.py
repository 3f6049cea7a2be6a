"""What masks look like: rows of masked text as styled pieces, and their figures, strategy by strategy. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from relgrad.core.types import Prompt
from relgrad.text.masking import IGNORE
from relgrad.text.sample_file import SampleFile
from relgrad.text.vocabulary import Vocabulary

Style = Literal["", "mask", "truth", "swapped", "kept"]
"""Plain text; a masked position; what a mask hides; an asked position that shows another symbol, or its own."""

TRUE_LEFT, TRUE_RIGHT = "⟦", "⟧"
"""Put around what masks hide where there are no colours."""


class Row(NamedTuple):
    """One sample. `ids` without padding, with which it is `width` ids wide; None where padding cannot be told from text.

    label_ids  the true id where the model is asked for it, IGNORE elsewhere; None for texts that a judge learns from
    target     what a judge should say of the text (None for masked text), and `ratio`, the share that was refilled
    """

    ids: tuple[int, ...]
    label_ids: tuple[int, ...] | None
    width: int | None
    strategy: str = ""
    target: float | None = None
    ratio: float | None = None


class Figures(NamedTuple):
    """Of the rows of one strategy: quantiles (mean, p10, p50, p90, max) and shares of all positions, padding included.

    None is what cannot be known: ratio and share of masks without a vocabulary, the target of masked text.
    """

    samples: int
    ratio: tuple[float, ...] | None
    masked: float | None
    labelled: float | None
    padding: float | None
    target: tuple[float, ...] | None


def rows_of_prompts(prompts: Iterable[Prompt], width: int) -> list[Row]:
    """Rows of prompts of a masked task."""
    return [
        Row(tuple(c["masked_ids"]), tuple(c["label_ids"]), width, c["strategy"]) for c in (p.columns for p in prompts)
    ]


def rows_of_file(file: SampleFile) -> list[Row]:
    """All rows of one file of a stream."""
    width = file.masked_NL.shape[1]
    rows = []
    for number, strategy in enumerate(file.strategies):
        _, masked, label = file.row(number)
        rows.append(Row(tuple(masked.tolist()), tuple(label.tolist()), width, strategy))
    return rows


def pieces(row: Row, vocabulary: Vocabulary | None, *, truth: bool) -> list[tuple[str, Style]]:
    """The row's text in stretches of one style; with `truth`, what the masks hide in place of them.

    Without a vocabulary the text is the ids themselves, and every asked position is styled "mask".
    """
    stretches: list[tuple[str, Style]] = []
    positions = [(_style(row, i, vocabulary, truth), i) for i in range(len(row.ids))]
    for style, group in groupby(positions, key=lambda p: p[0]):
        at = [i for _, i in group]
        ids = [row.ids[i] for i in at]
        if style == "truth":
            assert row.label_ids is not None
            ids = [row.label_ids[i] for i in at]
        if vocabulary is None:
            stretches.append(("".join(f"{i} " for i in ids), style))
        else:
            stretches.append((vocabulary.decode(ids), style))
    return stretches


def _style(row: Row, i: int, vocabulary: Vocabulary | None, truth: bool) -> Style:
    labelled = row.label_ids is not None and row.label_ids[i] != IGNORE
    if vocabulary is None:
        return ("truth" if truth else "mask") if labelled else ""
    if row.ids[i] == vocabulary.mask_id:
        return "truth" if truth and labelled else "mask"
    if not labelled or row.label_ids is None:
        return ""
    return "kept" if row.ids[i] == row.label_ids[i] else "swapped"


def plain(stretches: Sequence[tuple[str, Style]]) -> str:
    """Pieces without colours: masks are blanks by themselves, what they hide stands in brackets."""
    return "".join(f"{TRUE_LEFT}{text}{TRUE_RIGHT}" if style == "truth" else text for text, style in stretches)


def figures(rows: Sequence[Row], vocabulary: Vocabulary | None) -> dict[str, Figures]:
    """Of "all" rows and, where there are several strategies, of each."""
    names = sorted({r.strategy for r in rows})
    groups = {"all": list(rows)}
    if len(names) > 1:
        groups |= {name or "not named": [r for r in rows if r.strategy == name] for name in names}
    return {name: _figures(group, vocabulary) for name, group in groups.items()}


def _figures(rows: Sequence[Row], vocabulary: Vocabulary | None) -> Figures:
    positions = sum(len(r.ids) if r.width is None else r.width for r in rows)
    masks = None if vocabulary is None else [r.ids.count(vocabulary.mask_id) for r in rows]
    judged = [r for r in rows if r.target is not None]
    labelled = None if judged else sum(i != IGNORE for r in rows for i in r.label_ids or ()) / positions
    ratio = None if masks is None else _quantiles([m / len(r.ids) for m, r in zip(masks, rows, strict=True)])
    if judged:
        ratios = [r.ratio for r in judged if r.ratio is not None]
        ratio = _quantiles(ratios) if ratios else None
    return Figures(
        samples=len(rows),
        ratio=ratio,
        masked=None if masks is None else sum(masks) / positions,
        labelled=labelled,
        padding=None if any(r.width is None for r in rows) else 1 - sum(len(r.ids) for r in rows) / positions,
        target=_quantiles([r.target for r in judged if r.target is not None]) if judged else None,
    )


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """(mean, p10, p50, p90, max)."""
    return (float(np.mean(values)), *(float(np.quantile(values, q)) for q in (0.1, 0.5, 0.9, 1.0)))
