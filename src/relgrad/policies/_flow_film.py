"""A trajectory as a film: at every step which positions jumped, to what, and how probable the network held that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relgrad.models.film import cells
from relgrad.policies import _flow_states
from relgrad.policies._flow_symbols import Symbols
from relgrad.text.vocabulary import BLANK
from relgrad.types import Prompt, Rollouts

if TYPE_CHECKING:
    from relgrad.policies.flow import FlowPolicy

END = "∎"
"""How the end of sequence is shown to people."""


@torch.no_grad()
def shoot(
    policy: FlowPolicy, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    """`group_size` films per prompt, as models/film.py tells them, of the positions that are written.

    `masked` are positions that still hold the mask, `filled` those that jumped in the step; `confidence` is the probability
    the network gave a token when it was drawn, None for what still is noise.
    """
    begun = time.perf_counter()
    rollouts = policy.sample(prompts, group_size, generator)
    state_BTE = _flow_states.read(rollouts.trace, torch.arange(rollouts.rows))
    chance_BTE = chances(policy, rollouts, state_BTE)
    films = []
    for row, group in enumerate(rollouts.group_B.tolist()):
        frames = [frame(step, state_BTE[row], chance_BTE[row], policy.symbols) for step in range(state_BTE.shape[1])]
        seconds = time.perf_counter() - begun
        films.append(
            {"prompt": prompts[group].text, "final": rollouts.outputs[row].text, "frames": frames, "seconds": seconds}
        )
    return films


def chances(policy: FlowPolicy, rollouts: Rollouts, state_BTE: Tensor) -> Tensor:
    """[B, T + 1, E]: p(token) when the token now there was drawn; NaN where none was. Columns 1 .. T follow a step."""
    chance_BTE = torch.full(state_BTE.shape, torch.nan)
    for step in range(state_BTE.shape[1] - 1):
        before_BE, after_BE = state_BTE[:, step], state_BTE[:, step + 1]
        at = (before_BE != after_BE).nonzero(as_tuple=True)
        chance_BTE[:, step + 1] = chance_BTE[:, step]
        step_B = torch.full((rollouts.rows,), step)
        hidden_MH = policy.engine.hidden(
            rollouts.trace, rollouts.group_B, before_BE, step_B, policy.max_decisions, (at[0], at[1])
        )
        (p_M,) = policy.engine.by_pieces(policy.engine.chance, hidden_MH, after_BE[at])
        chance_BTE[at[0], step + 1, at[1]] = p_M.cpu()
    return chance_BTE


def frame(step: int, state_TE: Tensor, chance_TE: Tensor, symbols: Symbols) -> dict[str, Any]:
    """The state after `step` steps."""
    ids = state_TE[step].tolist()
    parts = cells(ids, lambda run: decode(run, symbols))
    jumped = [] if step == 0 else (state_TE[step] != state_TE[step - 1]).nonzero()[:, 0].tolist()
    return {
        "step": step,
        "text": "".join(parts),
        "masked": [i for i, token in enumerate(ids) if token == symbols.mask_id],
        "filled": jumped,
        "confidence": [None if c != c else round(c, 2) for c in chance_TE[step].tolist()],
        **({"cells": parts} if any(len(part) != 1 for part in parts) else {}),
    }


def decode(ids: Sequence[int], symbols: Symbols) -> str:
    """Text with the end of sequence and masks shown."""
    signs = {symbols.end_id: END, symbols.mask_id: BLANK}
    runs = groupby(ids, key=lambda i: signs.get(i))
    return "".join(sign * len(list(run)) if sign else symbols.vocabulary.decode(list(run)) for sign, run in runs)
