r"""Steps of the trajectory merged: T steps in fewer passes (d2-StepMerge, arXiv:2509.21474; TraceRL's shrinkage, arXiv:2509.06949).

    l_i = log p(x_i | the state before the first step of i's segment)

The steps are cut into `segments` runs of equal length; TraceRL's shrinkage s is segments = T / s. With one step a segment it is
what the tokens of an exact trajectory score, without the choice of positions; with one segment it is the mean field. A decision is
a token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.randomness import Draws
from relgrad.core.settings import Strict
from relgrad.estimators.passes import Answers, Passes, Texts, by_token, weighted_sums


class MergedSteps(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = None
    per_token: ClassVar[bool] = True
    kind: Literal["merged_steps"] = "merged_steps"
    segments: int = Field(2, ge=1, description="passes of a text (StepMerge's N)")

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return self.segments

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan. Nothing is drawn."""
        segment_BE = (texts.step_BE * self.segments) // max(texts.steps, 1)
        pass_K1 = torch.arange(self.segments)[:, None]
        later_BKE = (segment_BE[:, None] >= pass_K1) | ~texts.written_BE[:, None]
        now_BKE = (segment_BE[:, None] == pass_K1) & texts.written_BE[:, None]
        return Passes(later_BKE, now_BKE.float())

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return positions

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        decision_KE = by_token(self.segments, answers.positions)
        return weighted_sums(logp_M, answers, decision_KE, answers.positions)
