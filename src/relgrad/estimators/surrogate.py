"""A surrogate of a trajectory's log-probability: a finished text looked at in passes (passes.py), not in the steps it came by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import CellScores, Rollouts
from relgrad.estimators.interface import Refills, Wanted
from relgrad.estimators.passes import Answers, Plan, Texts


class Surrogate:
    """Scores by a plan. What it logs and clips is no likelihood of what was drawn, and `law` says so."""

    law: Literal["exact", "surrogate"] = "surrogate"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def mask(self, texts: Texts) -> Tensor:
        """bool [B, T]: which decisions there are. A text of nothing has none."""
        positions = texts.written_BE.shape[1]
        if self.plan.per_token:
            return texts.written_BE
        return texts.written_BE.any(-1, keepdim=True).expand(-1, self.plan.decisions(positions)).clone()

    def score(self, process: Refills, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> CellScores:
        """The surrogate's value at the decisions (row, decision) given, float32, nats.

        Raises RelgradError where entropy or the exact KL is wanted, which a surrogate does not have.
        """
        if wanted.whole_law:
            what = "entropy (grpo.entropy_coef)" if wanted.entropy else "exact KL (grpo.kl_estimator=exact)"
            raise RelgradError(f"a surrogate has no {what}: leave it out, use k2 or k3, or policy.estimator.kind=exact")
        row_R, local_N = torch.unique(cells_N2[:, 0], return_inverse=True)
        answers = Answers.of(rollouts.trace, row_R)
        values_RT = self.plan.values(process.refilled(rollouts, row_R, answers), answers)
        at = (local_N.to(values_RT.device), cells_N2[:, 1].to(values_RT.device))
        return CellScores(values_RT[at].float())
