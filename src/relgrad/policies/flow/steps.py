"""The steps of a flow policy, from noise to text: drawn, and described to an estimator (estimators/interface.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.exact import summed
from relgrad.estimators.interface import Wanted
from relgrad.laws import ctmc
from relgrad.laws.ctmc import Kernel
from relgrad.laws.schedule import Scheduler
from relgrad.policies.flow.engine import Engine
from relgrad.trajectories.states import states_around

ROWS = 16_384
"""Tokens of one forward pass while sampling."""


class Positions(NamedTuple):
    """The choices of N steps: M editable positions whose next token depends on the network.

    trace                      the prompts of the groups, see Engine.hidden
    group_N, step_N, state_NE  of every step: its prompt, its number, and the state before it; a row has `steps` steps
    decision_M, number_M       of every choice: its step, and which editable position it is
    before_M, after_M          its tokens before and after the step
    hazard_M                   the step's hazard
    free_N                     log-probability of what the other positions of each step did
    """

    trace: Mapping[str, Tensor]
    group_N: Tensor
    step_N: Tensor
    state_NE: Tensor
    steps: int
    decision_M: Tensor
    number_M: Tensor
    before_M: Tensor
    after_M: Tensor
    hazard_M: Tensor
    free_N: Tensor


class Steps:
    """The engine, and how fast tokens jump: the hazard of every step, from kernel and scheduler."""

    def __init__(self, engine: Engine, kernel: Kernel, scheduler: Scheduler) -> None:
        self.engine, self.device = engine, engine.device

        @cache
        def hazards(steps: int) -> Tensor:
            time_S = torch.arange(steps, dtype=torch.float64) / steps
            return ctmc.hazard(kernel, scheduler, time_S, 1 / steps).float()

        self.hazards = hazards
        """float32 [S] for a number of steps S (laws/ctmc.py)."""

    # ------------------------------------------------------------------ drawn

    def advance(
        self,
        trace: Mapping[str, Tensor],
        group_R: Tensor,
        before_RE: Tensor,
        step: int,
        steps: int,
        uniform_RE2: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """([R, E] states after step number `step` of `steps`, [R] its log-probability). `trace` has the prompts of the groups."""
        law, masked = self.engine.law, self.engine.symbols.masked
        after_RE, logp_R = before_RE.clone(), torch.zeros(len(before_RE), dtype=torch.float64)
        hazard_RE = self.hazards(steps)[step].expand(before_RE.shape)
        drawn_RE = torch.ones_like(before_RE, dtype=torch.bool)
        if masked:
            drawn_RE = ctmc.unmasks(law, before_RE, hazard_RE, uniform_RE2[..., 0])
        width = int(trace["prompt_length_G"].max()) + before_RE.shape[1]
        for piece in torch.arange(len(before_RE)).split(max(ROWS // width, 1)):
            row_M, number_M = drawn_RE[piece].nonzero(as_tuple=True)
            step_N = torch.full((len(piece),), step)
            hidden_MH = self.engine.hidden(trace, group_R[piece], before_RE[piece], step_N, steps, (row_M, number_M))
            row_M = piece[row_M]
            columns = (t[row_M, number_M] for t in (before_RE, hazard_RE, uniform_RE2))
            next_M, logp_M = self.engine.by_pieces(self.engine.draw, hidden_MH, *columns)
            after_RE[row_M, number_M] = next_M.cpu()
            logp_R += summed(logp_M.cpu(), row_M, len(before_RE))
        return after_RE, (logp_R + self._free(before_RE, after_RE, hazard_RE, drawn_RE)).float()

    def _free(self, before_NE: Tensor, after_NE: Tensor, hazard_NE: Tensor, needed_NE: Tensor) -> Tensor:
        """float64 [N]: log-probability of what positions did that do not need the network."""
        free_NE = ctmc.free_log_prob(self.engine.law, before_NE, after_NE, hazard_NE)
        return torch.where(needed_NE, 0.0, free_NE.double()).sum(-1)

    # ------------------------------------------------------------------ described to an estimator

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> Positions:
        """The positions of the steps (row, step) given whose outcome depends on the network; of a whole law all that may change."""
        trace, steps = rollouts.trace, rollouts.mask_BT.shape[1]
        before_NE, after_NE = states_around(trace, cells_N2)
        step_N = cells_N2[:, 1]
        hazard_NE = self.hazards(steps)[step_N][:, None].expand(before_NE.shape)
        law = self.engine.law
        needed_NE = law.live(before_NE) if wanted.whole_law else law.depends(before_NE, after_NE)
        decision_M, number_M = needed_NE.nonzero(as_tuple=True)
        at = (decision_M, number_M)
        free_N = self._free(before_NE, after_NE, hazard_NE, needed_NE)
        return Positions(
            trace, rollouts.group_B[cells_N2[:, 0]], step_N, before_NE, steps, decision_M, number_M,
            before_NE[at], after_NE[at], hazard_NE[at], free_N,
        )  # fmt: skip

    def hidden(self, choices: Positions) -> Tensor:
        """[M, H]: the network's output at the positions."""
        at = (choices.decision_M, choices.number_M)
        return self.engine.hidden(choices.trace, choices.group_N, choices.state_NE, choices.step_N, choices.steps, at)

    def terms(
        self, choices: Positions, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted
    ) -> Sequence[Tensor]:
        """Log-probability, entropy where wanted, exact KL where wanted, each [M]."""
        columns = choices.before_M, choices.after_M, choices.hazard_M
        return self.engine.by_pieces(self.engine.terms, hidden, *columns, reference_hidden, wanted)
