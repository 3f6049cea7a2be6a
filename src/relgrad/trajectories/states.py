"""The states of a trajectory, kept as its start and its changes: a position changes a few times however many steps there are.

A *jump* is one position that holds another token after a step than before it.

    trace["start_BE"]       [B, E] the tokens of the editable positions before the first step
    trace["jump_offset"]    int64 [B T + 1]; jumps of row b in step t are entries offset[b T + t] .. offset[b T + t + 1]
    trace["jump_position"]  [M] which editable position
    trace["jump_token"]     [M] its token after the step

Integers are as narrow as they can be. 1,024 positions over 10 steps of a 50,257-token vocabulary take about 22 kB a row with
kappa = t, where a position is drawn 2.9 times on average, and less where the network draws what is there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def pack_states(states: Sequence[Tensor], tokens: int) -> dict[str, Tensor]:
    """`states`, T + 1 tensors [B, E] of ids below `tokens`, as the tensors of a trace that are described above."""
    state_BTE = torch.stack(list(states), 1)
    rows, steps, positions = state_BTE.shape[0], state_BTE.shape[1] - 1, state_BTE.shape[2]
    jumped_BTE = state_BTE[:, 1:] != state_BTE[:, :-1]
    count_N = jumped_BTE.sum(-1).flatten()
    ids, place = _narrow(tokens), _narrow(positions)
    return {
        "start_BE": state_BTE[:, 0].to(ids),
        "jump_offset": torch.nn.functional.pad(count_N.cumsum(0), (1, 0)),
        "jump_position": torch.arange(positions, dtype=place).expand(rows, steps, -1)[jumped_BTE],
        "jump_token": state_BTE[:, 1:][jumped_BTE].to(ids),
    }


def unpack_states(trace: Mapping[str, Tensor], row_R: Tensor) -> Tensor:
    """int64 [R, T + 1, E]: all states of the given rows, from what `pack_states` made."""
    start_RE, offset = trace["start_BE"][row_R].long(), trace["jump_offset"]
    steps, positions = (len(offset) - 1) // len(trace["start_BE"]), start_RE.shape[1]
    first_RT = row_R[:, None] * steps + torch.arange(steps)
    count_RT = offset[first_RT + 1] - offset[first_RT]
    place_M = torch.repeat_interleave(count_RT.flatten())  # r T + t of every jump
    before_M = (count_RT.flatten().cumsum(0) - count_RT.flatten())[place_M]
    jump_M = offset[first_RT].flatten()[place_M] + torch.arange(len(place_M)) - before_M
    state_RTE = torch.full((len(row_R), steps + 1, positions), -1)
    state_RTE[:, 0] = start_RE
    row_M, step_M = place_M // max(steps, 1), place_M % max(steps, 1)
    state_RTE[row_M, step_M + 1, trace["jump_position"][jump_M].long()] = trace["jump_token"][jump_M].long()
    number_T1 = torch.arange(steps + 1)[:, None]
    latest_RTE = torch.where(state_RTE >= 0, number_T1, 0).cummax(1).values
    return state_RTE.gather(1, latest_RTE)


def states_around(trace: Mapping[str, Tensor], cells_N2: Tensor) -> tuple[Tensor, Tensor]:
    """int64 ([N, E], [N, E]): the states before and after each of the steps (row, step) given."""
    row_R, local_N = torch.unique(cells_N2[:, 0], return_inverse=True)
    state_RTE = unpack_states(trace, row_R)
    return state_RTE[local_N, cells_N2[:, 1]], state_RTE[local_N, cells_N2[:, 1] + 1]


def _narrow(count: int) -> torch.dtype:
    """The narrowest integers that hold 0 .. count - 1."""
    return torch.int16 if count <= 2**15 else torch.int32
