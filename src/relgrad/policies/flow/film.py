"""A trajectory as a film: at every step which positions jumped, to what, and how probable that was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relgrad.core.types import Prompt, Rollouts
from relgrad.laws import ctmc
from relgrad.policies.flow.symbols import Symbols
from relgrad.text.vocabulary import BLANK
from relgrad.trajectories import states as _flow_states
from relgrad.trajectories.film import cells, told

if TYPE_CHECKING:
    from relgrad.policies.flow.policy import FlowPolicy

END = "∎"
"""How the end of sequence is shown to people."""


@torch.no_grad()
def shoot(
    policy: FlowPolicy, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    """`group_size` films per prompt, as models/film.py tells them, of the positions that are written.

    `source` is what they begin as, "uniform" noise or the "mask"; `final` ends before the first end of sequence. In a frame,
    `masked` are positions that still hold the mask, `filled` those that jumped in the step; `confidence` is the probability the
    network gave a token when it was drawn, None for what still is noise. Three keys more:

    chance  per jump, in the order of `filled`, the probability of this very jump in this step, under the law that is trained
    logp    log-probability of the whole step in nats; None for the start
    end     position of the first end of sequence, None where there is none
    """
    begun = time.perf_counter()
    from relgrad.policies.flow.policy import FlowPolicy

    # the steps themselves, whatever a subclass makes of them
    rollouts = FlowPolicy.sample(policy, prompts, group_size, generator)
    state_BTE = _flow_states.read(rollouts.trace, torch.arange(rollouts.rows))
    confidence_BTE, chance_BTE = probabilities(policy, rollouts, state_BTE)
    source = "mask" if policy.symbols.masked else "uniform"
    films: list[dict[str, Any]] = []
    for row, group in enumerate(rollouts.group_B.tolist()):
        frames = [
            frame(step, state_BTE[row], confidence_BTE[row, step], chance_BTE[row, step], policy.symbols)
            for step in range(state_BTE.shape[1])
        ]
        for shot, logp in zip(frames, [None, *rollouts.behaviour_logp_BT[row].tolist()], strict=True):
            shot["logp"] = logp
        final, ids = rollouts.outputs[row].text, list(rollouts.outputs[row].ids)
        films.append({"prompt": prompts[group].text, "source": source, "final": final, "ids": ids, "frames": frames})
    seconds = time.perf_counter() - begun
    return [{**film, "seconds": seconds} for film in films]


def probabilities(policy: FlowPolicy, rollouts: Rollouts, state_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """([B, T + 1, E] p(token) when the token now there was drawn, [B, T + 1, E] that of the jump which led to this state).

    NaN where no token was drawn, and where no jump led there. Columns 1 .. T follow a step.
    """
    confidence_BTE = torch.full(state_BTE.shape, torch.nan)
    chance_BTE = torch.full(state_BTE.shape, torch.nan)
    steps = state_BTE.shape[1] - 1
    time_S = torch.arange(steps, dtype=torch.float64) / steps
    hazard_S = ctmc.hazard(policy.settings.kernel, policy.scheduler, time_S, 1 / steps)
    for step in range(steps):
        before_BE, after_BE = state_BTE[:, step], state_BTE[:, step + 1]
        at = (before_BE != after_BE).nonzero(as_tuple=True)
        confidence_BTE[:, step + 1] = confidence_BTE[:, step]
        step_B = torch.full((rollouts.rows,), step)
        hidden_MH = policy.engine.hidden(rollouts.trace, rollouts.group_B, before_BE, step_B, steps, (at[0], at[1]))
        columns = before_BE[at], after_BE[at], hazard_S[step].expand(len(at[0]))
        p_M, chance_M = policy.engine.by_pieces(policy.engine.chance, hidden_MH, *columns)
        confidence_BTE[at[0], step + 1, at[1]] = p_M.cpu()
        chance_BTE[at[0], step + 1, at[1]] = chance_M.cpu()
    return confidence_BTE, chance_BTE


def frame(step: int, state_TE: Tensor, confidence_E: Tensor, chance_E: Tensor, symbols: Symbols) -> dict[str, Any]:
    """The state after `step` steps."""
    ids = state_TE[step].tolist()
    parts = cells(ids, lambda run: decode(run, symbols))
    jumped = [] if step == 0 else (state_TE[step] != state_TE[step - 1]).nonzero()[:, 0].tolist()
    return {
        "step": step,
        "text": "".join(parts),
        "masked": [i for i, token in enumerate(ids) if token == symbols.mask_id],
        "filled": jumped,
        "confidence": [told(c) for c in confidence_E.tolist()],
        "chance": [told(c) for c in chance_E[jumped].tolist()],
        "end": ids.index(symbols.end_id) if symbols.end_id in ids else None,
        **({"cells": parts} if any(len(part) != 1 for part in parts) else {}),
    }


def decode(ids: Sequence[int], symbols: Symbols) -> str:
    """Text with the end of sequence and masks shown."""
    signs = {symbols.end_id: END, symbols.mask_id: BLANK}
    runs = groupby(ids, key=lambda i: signs.get(i))
    return "".join(sign * len(list(run)) if sign else symbols.vocabulary.decode(list(run)) for sign, run in runs)
