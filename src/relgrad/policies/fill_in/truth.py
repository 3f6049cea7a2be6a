"""A filled-in text beside what was hidden: for the samples, the films and the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from relgrad.core.types import Output, Prompt
from relgrad.text.vocabulary import Vocabulary
from relgrad.trajectories.film import cells


def hidden_cells(prompt: Prompt, vocabulary: Vocabulary) -> list[tuple[int, str]]:
    """(position, the text that was hidden there) of every masked position; empty where the truth is not known."""
    masked, truth = prompt.columns.get("masked_ids"), prompt.columns.get("truth_ids")
    if masked is None or truth is None or len(masked) != len(truth):
        return []
    shown = texts(truth, vocabulary)
    return [(position, shown[position]) for position in masked_positions(masked, vocabulary)]


def beside_truth(prompt: Prompt, output: Output, vocabulary: Vocabulary) -> dict[str, Any]:
    """`truth`, the text as it was, and `holes`: per masked position `[first, end, hidden, right]`.

    `first` and `end` are characters of the output's text, `hidden` is the true text there, and `right` says whether the true id was
    written. Empty where the truth is not known; without `holes` where single ids cannot be found again in the text.
    """
    hidden = hidden_cells(prompt, vocabulary)
    truth: Sequence[int] = prompt.columns["truth_ids"] if hidden else ()
    if not hidden or len(truth) != len(output.ids):
        return {}
    written = texts(output.ids, vocabulary)
    whole = {"truth": vocabulary.decode(truth)}
    if "".join(written) != output.text:
        return whole
    ends = list(accumulate(len(cell) for cell in written))
    holes = [[ends[p] - len(written[p]), ends[p], text, output.ids[p] == truth[p]] for p, text in hidden]
    return {**whole, "holes": holes}


def texts(ids: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """The text of every id: of characters one by one, otherwise given what stands before it."""
    return list(vocabulary.decode_each(ids)) if vocabulary.kind == "char" else cells(ids, vocabulary.decode)


def masked_positions(masked_ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Where the mask stands."""
    return [position for position, token in enumerate(masked_ids) if token == vocabulary.mask_id]
