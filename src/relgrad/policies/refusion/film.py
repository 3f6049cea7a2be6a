"""How a text came about as a film: at every planning step which slots were written, and how probable every token was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.policies.refusion.schedule import Schedule
from relgrad.policies.refusion.steps import Steps
from relgrad.text.vocabulary import BLANK
from relgrad.trajectories.film import cells, two_digits

END = "∎"
"""How the end of sequence is shown to people."""
Decode = Callable[[Sequence[int]], str]


@torch.no_grad()
def describe(
    rollouts: Rollouts,
    states_BTE: Tensor,
    confidence_BTE: Tensor,
    forwards_B: Tensor,
    end_ids: Sequence[int],
    decode: Decode,
) -> list[dict[str, Any]]:
    """A film per row, as trajectories/film.py describes them, of the positions that are written.

    A frame for the start and one for every state after it. `filled` are the positions a step wrote, also behind the end;
    `confidence` the probability with which each token was drawn, None where masked, and where it is not known (native decoding).
    Further keys:

    logp    of a frame: log-probability of the whole step in nats; None for the start, and where it is not known
    end     of a frame: the first end of sequence, None where there is none
    tokens_per_forward
            of the film: tokens of the text, its end included, over forward passes
    """
    films: list[dict[str, Any]] = []
    for row, group in enumerate(rollouts.group_B.tolist()):
        decided = [0, *(rollouts.mask_BT[row].nonzero()[:, 0] + 1).tolist()]
        shown = decided if rollouts.mask_BT[row].any() else list(range(states_BTE.shape[1]))
        frames = []
        for number, step in enumerate(shown):
            pair = states_BTE[row, max(step - 1, 0)], states_BTE[row, step]
            shot = frame(number, *pair, confidence_BTE[row, step], end_ids, decode)
            has_decision = step > 0 and bool(rollouts.mask_BT[row, step - 1])
            frames.append({**shot, "logp": float(rollouts.behaviour_logp_BT[row, step - 1]) if has_decision else None})
        films.append({
            "prompt": rollouts.prompts[group].text,
            "source": "mask",
            "final": rollouts.outputs[row].text,
            "ids": list(rollouts.outputs[row].ids),
            "tokens_per_forward": round(int(rollouts.size_BT[row].sum()) / max(int(forwards_B[row]), 1), 3),
            "frames": frames,
        })  # fmt: skip
    return films


@torch.no_grad()
def states(rollouts: Rollouts, steps: Steps, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """([B, T + 1, E] the tokens before each step and after the last, -1 where masked; [B, T + 1, E] the probability with which each
    was drawn, NaN where masked; [B] forward passes over what was written and its masks)."""
    cells_N2 = rollouts.cells()
    wanted = Wanted(False, None)
    choices = steps.choices(rollouts, cells_N2, wanted)
    (term_M,) = steps.terms(choices, steps.hidden(choices), None, wanted)
    p_A = term_M[len(term_M) - len(choices.target_A) :].exp().float().cpu()
    rows, count = rollouts.mask_BT.shape
    states_BTE = torch.full((rows, count + 1, schedule.positions), -1)
    confidence_BTE = torch.full(states_BTE.shape, torch.nan)
    slot_BTK, token_BTKS = (rollouts.trace[name].long() for name in ("slot_BTK", "token_BTKS"))
    decision_A, slot_A, number_A = (token_BTKS[cells_N2[:, 0], cells_N2[:, 1]] >= 0).nonzero(as_tuple=True)
    row_A, step_A = cells_N2[decision_A].T
    position_A = slot_BTK[row_A, step_A, slot_A] * schedule.size + number_A
    for step in range(count):
        states_BTE[:, step + 1], confidence_BTE[:, step + 1] = states_BTE[:, step], confidence_BTE[:, step]
        now_A = step_A == step
        at = (row_A[now_A], torch.full_like(row_A[now_A], step + 1), position_A[now_A])
        states_BTE[at], confidence_BTE[at] = choices.target_A[now_A], p_A[now_A]
    passes_BT = (token_BTKS >= 0).sum(-1).amax(-1)  # the plan's, and one for every token of a slot but its last
    return states_BTE, confidence_BTE, passes_BT.sum(-1)


def frame(
    number: int, before_E: Tensor, state_E: Tensor, confidence_E: Tensor, end_ids: Sequence[int], decode: Decode
) -> dict[str, Any]:
    """The state after `number` steps, and the one before the last of them."""
    ids = state_E.tolist()

    def shown(run: Sequence[int]) -> str:
        signs = (BLANK if i < 0 else END if i in end_ids else "" for i in run)
        return "".join(
            sign * len(part) if sign else decode([i for _, i in part])
            for sign, part in ((s, list(p)) for s, p in groupby(zip(signs, run, strict=True), key=lambda pair: pair[0]))
        )

    parts = cells(ids, shown)
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    return {
        "step": number,
        "text": "".join(parts),
        "masked": [place for place, token in enumerate(ids) if token < 0],
        "filled": (before_E != state_E).nonzero()[:, 0].tolist(),
        "confidence": [two_digits(c) for c in confidence_E.tolist()],
        "end": ends[0] if ends else None,
        **({"cells": parts} if any(len(part) != 1 for part in parts) else {}),
    }
