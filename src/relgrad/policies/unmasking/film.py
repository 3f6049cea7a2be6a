"""How a text came about as a film: at every step which positions were revealed or masked again, and how probable that was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.laws import categorical
from relgrad.policies.unmasking.engine import Engine
from relgrad.policies.unmasking.rows import NO_PLACE
from relgrad.policies.unmasking.symbols import Symbols
from relgrad.trajectories.film import cells, two_digits
from relgrad.trajectories.states import unpack_states

END = "∎"
"""How the end of sequence is shown to people."""


@torch.no_grad()
def describe(rollouts: Rollouts, engine: Engine, symbols: Symbols) -> list[dict[str, Any]]:
    """A film per row, as trajectories/film.py describes them, of the positions that are written; all steps must be trained ones.

    A frame for the start and one for every step that was one. `filled` are the positions that the step revealed; `confidence` the
    probability with which each token was drawn (temperature and truncation included), None where masked. Further keys:

    logp    of a frame: log-probability of the whole step in nats; None for the start
    end     of a frame: the first end of sequence, None where there is none
    tokens_per_forward
            of the film: tokens of the text, its end included, over forward passes
    """
    state_BTE = unpack_states(rollouts.trace, torch.arange(rollouts.rows))
    confidence_BTE = confidences(rollouts, state_BTE, engine, symbols)
    films: list[dict[str, Any]] = []
    for row, group in enumerate(rollouts.group_B.tolist()):
        written = int((rollouts.trace["place_GE"][group] != NO_PLACE).sum())
        steps = [0, *(rollouts.mask_BT[row].nonzero()[:, 0] + 1).tolist()]
        frames = [
            frame(
                number, state_BTE[row, [max(step - 1, 0), step], :written], confidence_BTE[row, step, :written], symbols
            )
            for number, step in enumerate(steps)
        ]
        for shot, step in zip(frames, steps, strict=True):
            shot["logp"] = float(rollouts.behaviour_logp_BT[row, step - 1]) if step else None
        films.append({
            "prompt": rollouts.prompts[group].text,
            "source": "mask",
            "final": rollouts.outputs[row].text,
            "ids": list(rollouts.outputs[row].ids),
            "tokens_per_forward": round(int(rollouts.size_BT[row].sum()) / max(len(steps) - 1, 1), 3),
            "frames": frames,
        })  # fmt: skip
    return films


def confidences(rollouts: Rollouts, state_BTE: Tensor, engine: Engine, symbols: Symbols) -> Tensor:
    """[B, T + 1, E]: the probability with which the token now there was drawn; NaN where it is masked."""
    confidence_BTE = torch.full(state_BTE.shape, torch.nan)
    for step in range(state_BTE.shape[1] - 1):
        before_BE, after_BE = state_BTE[:, step], state_BTE[:, step + 1]
        masked_BE = after_BE == symbols.mask_id
        row_M, number_M = ((before_BE != after_BE) & ~masked_BE).nonzero(as_tuple=True)
        at = (row_M, number_M)
        confidence_BTE[:, step + 1] = confidence_BTE[:, step].masked_fill(masked_BE, torch.nan)
        if len(at[0]):
            hidden_MH = engine.hidden(rollouts.trace, rollouts.group_B, before_BE, at)
            logq_MV = categorical.log_probs(engine.logits(hidden_MH), engine.law.truncation)
            token_M1 = after_BE[at][:, None].to(logq_MV.device)
            confidence_BTE[at[0], step + 1, at[1]] = logq_MV.gather(-1, token_M1)[:, 0].exp().float().cpu()
    return confidence_BTE


def frame(number: int, state_2E: Tensor, confidence_E: Tensor, symbols: Symbols) -> dict[str, Any]:
    """The state after `number` steps; `state_2E` are the one before the last of them, and this one."""
    ids = state_2E[1].tolist()
    parts = cells(ids, lambda run: decode(run, symbols))
    filled = (state_2E[0] != state_2E[1]) & (state_2E[1] != symbols.mask_id)
    return {
        "step": number,
        "text": "".join(parts),
        "masked": [i for i, token in enumerate(ids) if token == symbols.mask_id],
        "filled": filled.nonzero()[:, 0].tolist(),
        "confidence": [two_digits(c) for c in confidence_E.tolist()],
        "end": next((place for place, token in enumerate(ids) if token in symbols.end_ids), None),
        **({"cells": parts} if any(len(part) != 1 for part in parts) else {}),
    }


def decode(ids: Sequence[int], symbols: Symbols) -> str:
    """Text with the end of sequence shown."""
    runs = groupby(ids, key=lambda i: i in symbols.end_ids)
    return "".join(END * len(list(run)) if ends else symbols.decode(list(run)) for ends, run in runs)
