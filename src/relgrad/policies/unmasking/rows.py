"""Prompts as rows of ids, and which of their positions are written.

trace["row_GL"]     int32: the prompts' rows before anything is written, masks where something will be; padded
trace["length_G"]   int64: how many positions each row has
trace["place_GE"]   int32: the positions that are written, from left to right; -1 behind those of a row that has fewer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.policies.unmasking.symbols import Symbols

NO_PLACE = -1


def row_of(
    prompt: Prompt, symbols: Symbols, writes: Literal["answer", "holes"], positions: int, longest: int
) -> tuple[list[int], list[int]]:
    """(ids of the row, positions that are written).

    Raises RelgradError for a prompt that leaves too little room, has holes where an answer is written or none where these are.
    """
    ids = symbols.encode(prompt)
    holes = [i for i, token in enumerate(ids) if token == symbols.mask_id]
    if writes == "holes" and not 1 <= len(holes) <= positions:
        raise RelgradError(
            f"prompt {prompt.id} has {len(holes)} masked positions (█), and policy.writes=holes takes 1 to "
            f"policy.max_completion_length={positions}: {prompt.text[:60]!r}"
        )
    if writes == "answer":
        if holes:
            raise RelgradError(
                f"prompt {prompt.id} holds █, which is written for a masked position: set policy.writes: holes to fill it in, or "
                f"leave it out. It begins {prompt.text[:60]!r}"
            )
        holes = list(range(len(ids), len(ids) + positions))
        ids = [*ids, *([symbols.mask_id] * positions)]
    if len(ids) > longest:
        raise RelgradError(
            f"prompt {prompt.id} and what is written take {len(ids)} positions, and the network has {longest} (a new one's: "
            f"policy.network.block_size): shorten the prompt, or lower policy.max_completion_length. It begins {prompt.text[:60]!r}"
        )
    return ids, holes


def rows_of(rows: Sequence[tuple[list[int], list[int]]], padding: int) -> dict[str, Tensor]:
    """The tensors of a trace, from `row_of` of every prompt."""
    ids = [torch.tensor(row, dtype=torch.int32) for row, _ in rows]
    places = [torch.tensor(place, dtype=torch.int32) for _, place in rows]
    return {
        "row_GL": pad_sequence(ids, batch_first=True, padding_value=padding),
        "length_G": torch.tensor([len(row) for row in ids]),
        "place_GE": pad_sequence(places, batch_first=True, padding_value=NO_PLACE),
    }


def written_into(trace: Mapping[str, Tensor], group_N: Tensor, state_NE: Tensor) -> Tensor:
    """int64 [N, L]: whole rows, with the state of their written positions put in."""
    row_NL, place_NE = trace["row_GL"][group_N].long(), trace["place_GE"][group_N].long()
    beyond = row_NL.shape[1]
    wide_NL = torch.nn.functional.pad(row_NL, (0, 1))
    return wide_NL.scatter(1, torch.where(place_NE == NO_PLACE, beyond, place_NE), state_NE)[:, :beyond]
