"""A trajectory as a film: at every step which positions jumped, to what, and how probable that was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.policies.flow.steps import Steps
from relgrad.policies.flow.symbols import Symbols
from relgrad.text.vocabulary import BLANK
from relgrad.trajectories.film import cells, two_digits
from relgrad.trajectories.states import unpack_states

END = "∎"
"""How the end of sequence is shown to people."""


@torch.no_grad()
def describe(rollouts: Rollouts, steps: Steps) -> list[dict[str, Any]]:
    """A film per row, as trajectories/film.py describes them, of the positions that are written; all steps must be trained ones.

    `source` is what they begin as, "uniform" noise or the "mask"; `final` ends before the first end of sequence. In a frame,
    `masked` are positions that still hold the mask, `filled` those that jumped in the step; `confidence` is the probability the
    network gave a token when it was drawn, None for what still is noise. Three keys more:

    chance  per jump, in the order of `filled`, the probability of this very jump in this step, under the law that is trained
    logp    log-probability of the whole step in nats; None for the start
    end     position of the first end of sequence, None where there is none
    """
    symbols = steps.engine.symbols
    state_BTE = unpack_states(rollouts.trace, torch.arange(rollouts.rows))
    confidence_BTE, chance_BTE = probabilities(rollouts, state_BTE, steps)
    films: list[dict[str, Any]] = []
    for row, group in enumerate(rollouts.group_B.tolist()):
        frames = [
            frame(step, state_BTE[row], confidence_BTE[row, step], chance_BTE[row, step], symbols)
            for step in range(state_BTE.shape[1])
        ]
        for shot, logp in zip(frames, [None, *rollouts.behaviour_logp_BT[row].tolist()], strict=True):
            shot["logp"] = logp
        films.append({
            "prompt": rollouts.prompts[group].text,
            "source": "mask" if symbols.masked else "uniform",
            "final": rollouts.outputs[row].text,
            "ids": list(rollouts.outputs[row].ids),
            "frames": frames,
        })  # fmt: skip
    return films


def probabilities(rollouts: Rollouts, state_BTE: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """([B, T + 1, E] p(token) when the token now there was drawn, [B, T + 1, E] that of the jump which led to this state).

    NaN where no token was drawn, and where no jump led there. Columns 1 .. T follow a step.
    """
    confidence_BTE = torch.full(state_BTE.shape, torch.nan)
    chance_BTE = torch.full(state_BTE.shape, torch.nan)
    count, engine = state_BTE.shape[1] - 1, steps.engine
    for step in range(count):
        before_BE, after_BE = state_BTE[:, step], state_BTE[:, step + 1]
        at = (before_BE != after_BE).nonzero(as_tuple=True)
        confidence_BTE[:, step + 1] = confidence_BTE[:, step]
        step_B = torch.full((rollouts.rows,), step)
        hidden_MH = engine.hidden(rollouts.trace, rollouts.group_B, before_BE, step_B, count, (at[0], at[1]))
        columns = before_BE[at], after_BE[at], steps.hazards(count)[step].expand(len(at[0]))
        p_M, chance_M = engine.by_pieces(engine.chance, hidden_MH, *columns)
        confidence_BTE[at[0], step + 1, at[1]] = p_M.float().cpu()
        chance_BTE[at[0], step + 1, at[1]] = chance_M.float().cpu()
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
        "confidence": [two_digits(c) for c in confidence_E.tolist()],
        "chance": [two_digits(c) for c in chance_E[jumped].tolist()],
        "end": ids.index(symbols.end_id) if symbols.end_id in ids else None,
        **({"cells": parts} if any(len(part) != 1 for part in parts) else {}),
    }


def decode(ids: Sequence[int], symbols: Symbols) -> str:
    """Text with the end of sequence and masks shown."""
    signs = {symbols.end_id: END, symbols.mask_id: BLANK}
    runs = groupby(ids, key=lambda i: signs.get(i))
    return "".join(sign * len(list(run)) if sign else symbols.vocabulary.decode(list(run)) for sign, run in runs)
