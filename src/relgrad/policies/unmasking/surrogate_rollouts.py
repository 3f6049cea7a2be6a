"""Finished texts made ready for a surrogate: its passes drawn, its decisions in place of the steps, its values as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from relgrad.core.randomness import Draws
from relgrad.core.types import Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.estimators.passes import Texts
from relgrad.estimators.surrogate import Surrogate
from relgrad.policies.unmasking.rows import NO_PLACE
from relgrad.policies.unmasking.steps import ROWS, Steps
from relgrad.trajectories.plan import in_chunks
from relgrad.trajectories.states import unpack_states
from relgrad.trajectories.trained_steps import tokens_per_step


def surrogate_rollouts(rollouts: Rollouts, surrogate: Surrogate, steps: Steps, mask_id: int, draws: Draws) -> Rollouts:
    """The same texts with the surrogate's decisions and passes. A prompt's random numbers are its own."""
    texts = finished_texts(rollouts.trace, rollouts.group_B, mask_id)
    passes = surrogate.plan.passes(texts, draws)
    mask_BT = surrogate.mask(texts)
    length_B = rollouts.size_BT.sum(-1)
    ready = replace(
        rollouts,
        behaviour_logp_BT=torch.zeros(mask_BT.shape),
        mask_BT=mask_BT,
        size_BT=tokens_per_step(mask_BT, length_B),
        trace={**rollouts.trace, **passes.trace(texts)},
        stands_for=1.0,
    )
    logp_BT = torch.zeros(mask_BT.shape)
    for cells_N2 in whole_rows(ready, ready.cells(), ROWS):
        scores = surrogate.score(steps, ready, cells_N2, Wanted(entropy=False, reference=None))
        logp_BT[tuple(cells_N2.T)] = scores.logp_N.cpu()
    return replace(ready, behaviour_logp_BT=logp_BT)


def is_surrogate(rollouts: Rollouts) -> bool:
    """Whether the decisions are a surrogate's, and not steps."""
    return "masked_BKE" in rollouts.trace


def finished_texts(trace: Mapping[str, Tensor], group_B: Tensor, mask_id: int) -> Texts:
    """What surrogates may know of the texts: what was written, in which step, and where the prompt is."""
    state_BTE = unpack_states(trace, torch.arange(len(group_B)))
    steps = state_BTE.shape[1] - 1
    there_BE = trace["place_GE"][group_B] != NO_PLACE
    written_BE = there_BE & (state_BTE[:, -1] != mask_id)
    step_T1 = torch.arange(steps)[:, None]
    step_BE = torch.where(state_BTE[:, 1:] != state_BTE[:, :-1], step_T1, -1).amax(1)
    row_BL = trace["row_GL"][group_B]
    inside_BL = torch.arange(row_BL.shape[1]) < trace["length_G"][group_B][:, None]
    return Texts(there_BE, written_BE, torch.where(written_BE, step_BE, -1), steps, inside_BL & (row_BL != mask_id))


def whole_rows(rollouts: Rollouts, cells_N2: Tensor, budget: int) -> list[Tensor]:
    """The cells in order, all of a row together, in chunks whose passes take about `budget` tokens."""
    row_R, count_R = torch.unique_consecutive(cells_N2[:, 0], return_counts=True)
    passes = rollouts.trace["masked_BKE"].shape[1]
    cost_R = passes * rollouts.trace["length_G"][rollouts.group_B[row_R]]
    end_R = count_R.cumsum(0)
    bounds_R2 = torch.stack([end_R - count_R, end_R], 1)
    return [cells_N2[int(chunk[0, 0]) : int(chunk[-1, 1])] for chunk in in_chunks(bounds_R2, cost_R, budget)]
