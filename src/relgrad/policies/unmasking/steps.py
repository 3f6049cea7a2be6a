"""The steps of a policy that unmasks, from masks to text: drawn, and described to an estimator (estimators/interface.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.estimators.passes import Answers, Passes
from relgrad.laws.tiled import Support
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places
from relgrad.policies.unmasking.engine import Engine
from relgrad.policies.unmasking.rows import NO_PLACE
from relgrad.policies.unmasking.schedule import Schedule
from relgrad.policies.unmasking.supports import recorded
from relgrad.trajectories.states import states_around, unpack_states

ROWS = 16_384
"""Tokens of one forward pass while sampling."""


class Advanced(NamedTuple):
    """What one step made of R texts.

    state_RE         their states after it
    order_RE         the order of what was revealed, 0 elsewhere; see interface.Outcome
    logp_R           log-probability, float32, nats; 0 where there was no step
    live_R           whether there was one
    row_C, support   supports of the positions that scores need, and whose they are; None where nothing is truncated
    """

    state_RE: Tensor
    order_RE: Tensor
    logp_R: Tensor
    live_R: Tensor
    row_C: Tensor
    support: Support | None


class Chosen(NamedTuple):
    """N steps as an estimator sees them: each is one choice, made of all its positions jointly.

    trace                      the prompts of the groups, see rows.py
    group_N, state_NE          of every step: its prompt, and the state before it
    at, places, outcome        the positions whose logits matter, and what became of them
    support                    the recorded supports there
    free_N, free_entropy_N     of what does not depend on the network
    decision_M                 every step is a choice of its own
    """

    trace: Mapping[str, Tensor]
    group_N: Tensor
    state_NE: Tensor
    at: tuple[Tensor, Tensor]
    places: Places
    outcome: Outcome
    support: Support | None
    free_N: Tensor
    free_entropy_N: Tensor
    decision_M: Tensor


class Steps:
    """The engine, and the schedule that says what a step has to reveal."""

    def __init__(self, engine: Engine, schedule: Schedule) -> None:
        self.engine, self.schedule, self.device = engine, schedule, engine.device

    # ------------------------------------------------------------------ drawn

    def advance(
        self, trace: Mapping[str, Tensor], group_R: Tensor, state_RE: Tensor, step: int, uniform_RE2: Tensor
    ) -> Advanced:
        """Step number `step` of R texts. `trace` has the prompts of the groups."""
        parts = [
            self._advance(trace, group_R[piece], state_RE[piece], step, uniform_RE2[piece])
            for piece in torch.arange(len(state_RE)).split(max(ROWS // trace["row_GL"].shape[1], 1))
        ]
        if len(parts) == 1:
            return parts[0]
        state_RE, order_RE, logp_R, live_R = (torch.cat(c) for c in zip(*(part[:4] for part in parts), strict=True))
        before = [sum(len(part.state_RE) for part in parts[:number]) for number in range(len(parts))]
        row_C = torch.cat([part.row_C + rows for part, rows in zip(parts, before, strict=True)])
        supports = [part.support for part in parts if part.support is not None]
        support = Support.concatenate(supports) if supports else None
        return Advanced(state_RE, order_RE, logp_R, live_R, row_C, support)

    def _advance(
        self, trace: Mapping[str, Tensor], group_R: Tensor, state_RE: Tensor, step: int, uniform_RE2: Tensor
    ) -> Advanced:
        law, there_RE = self.engine.law, trace["place_GE"][group_R] != NO_PLACE
        places, at, live_R = self.schedule.work(law, state_RE, there_RE, torch.full((len(state_RE),), step))
        uniform_M2 = uniform_RE2[at]
        asks_M, token_M = law.asks(places, uniform_M2[:, 0])
        asked = (at[0][asks_M], at[1][asks_M])
        order_M = torch.zeros_like(token_M)
        logp_R, support = torch.zeros(len(state_RE), dtype=torch.float64), None
        if len(asked[0]):
            hidden_CH = self.engine.hidden(trace, group_R, state_RE, asked)
            drawn = self.engine.draw(hidden_CH, places.only(asks_M), uniform_M2[asks_M])
            token_M = token_M.index_put((asks_M,), drawn.outcome.token_M)
            order_M = order_M.index_put((asks_M,), drawn.outcome.order_M)
            logp_R, support = drawn.logp_N.double(), drawn.support
        free_R = law.free(places, Outcome(token_M, order_M))
        logp_R = torch.where(live_R, logp_R + free_R, 0.0).float()
        state_RE = state_RE.index_put(at, torch.where(token_M == MASKED, self.schedule.mask_id, token_M))
        order_RE = torch.zeros_like(state_RE).index_put(at, order_M)
        return Advanced(state_RE, order_RE, logp_R, live_R, asked[0], support)

    # ------------------------------------------------------------------ described to an estimator

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> Chosen:
        """The steps (row, step) given, with the positions whose logits matter."""
        trace, law = rollouts.trace, self.engine.law
        before_NE, after_NE = states_around(trace, cells_N2)
        group_N = rollouts.group_B[cells_N2[:, 0]]
        there_NE = trace["place_GE"][group_N] != NO_PLACE
        places, at, _ = self.schedule.work(law, before_NE, there_NE, cells_N2[:, 1])
        token_M = torch.where(after_NE[at] == self.schedule.mask_id, MASKED, after_NE[at])
        order_M = torch.zeros_like(token_M)
        if law.ordered:
            order_M = trace["order_BE"][cells_N2[:, 0]].long()[at] * (token_M != MASKED)
        outcome = Outcome(token_M, order_M)
        needs_M = law.needs(places, outcome)
        return Chosen(
            trace, group_N, before_NE, (at[0][needs_M], at[1][needs_M]), places.only(needs_M), outcome.only(needs_M),
            recorded(trace, cells_N2, rollouts.mask_BT.shape[1]), law.free(places, outcome), law.free_entropy(places),
            torch.arange(len(cells_N2)),
        )  # fmt: skip

    def refilled(self, rollouts: Rollouts, row_R: Tensor, answers: Answers) -> Tensor:
        """See estimators/interface.Refills. Passes of many texts go through the network together."""
        trace, passes = rollouts.trace, Passes.of(rollouts.trace)
        final_RE = unpack_states(trace, row_R)[:, -1]
        count = passes.masked_BKE.shape[1]
        pass_S, local_M = torch.unique(answers.row_M * count + answers.pass_M, return_inverse=True)
        local_S, row_S = pass_S // count, row_R[pass_S // count]
        masked_SE = passes.masked_BKE[row_S, pass_S % count]
        state_SE = torch.where(masked_SE, self.schedule.mask_id, final_RE[local_S])
        veiled_SL = None if passes.veiled_BL is None else passes.veiled_BL[row_S]
        at = (local_M, answers.position_M)
        hidden_MH = self.engine.hidden(trace, rollouts.group_B[row_S], state_SE, at, veiled_SL)
        return self.engine.token_logp(hidden_MH, final_RE[answers.row_M, answers.position_M])

    def hidden(self, choices: Chosen) -> Tensor:
        """[C, H]: the network's output at the positions whose logits matter."""
        return self.engine.hidden(choices.trace, choices.group_N, choices.state_NE, choices.at)

    def terms(
        self, choices: Chosen, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted
    ) -> Sequence[Tensor]:
        """Log-probability without what is free, entropy where wanted, KL where wanted, each [N]."""
        values = self.engine.terms(hidden, reference_hidden, choices.places, choices.outcome, choices.support, wanted)
        if wanted.entropy:
            values[1] = values[1] + choices.free_entropy_N.to(values[1])
        return values
