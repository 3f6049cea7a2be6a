r"""Coupled masks: everything masked, and a random mask beside its complement (coupled-GRPO of DiffuCoder, arXiv:2506.20639).

    t ~ U(t_min, t_max);  u_i ~ U(0, 1);   M = {u_i < t},  its complement has the others
    l_i = ( log p(x_i | all masked) + w_i log p(x_i | the mask that holds i) ) / 2,    w_i = 1/t in M and 1/(1-t) outside

Every token is asked about twice, so that none goes without a gradient. In expectation the weights add up to 1.5, not to 1: the
published scale, which the clip range was tuned for. A decision is a token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.randomness import Draws, uniform_at
from relgrad.core.settings import Strict
from relgrad.estimators.passes import Answers, Passes, Texts, by_token, weighted_sums


class Coupled(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = None
    per_token: ClassVar[bool] = True
    kind: Literal["coupled"] = "coupled"
    t_min: float = Field(0.2, gt=0, lt=1, description="smallest share of masked positions")
    t_max: float = Field(0.8, gt=0, lt=1, description="largest share of masked positions")

    @model_validator(mode="after")
    def _in_order(self) -> Coupled:
        if self.t_min > self.t_max:
            raise ValueError(f"t_min={self.t_min:g} must not exceed t_max={self.t_max:g}")
        return self

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return 3

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan."""
        written_BE = texts.written_BE
        each = len(written_BE) // max(len(draws), 1)
        t_B1 = self.t_min + (self.t_max - self.t_min) * draws.rand(each, 1).flatten(0, 1)
        inside_BE = uniform_at(texts.place_BE, draws) < t_B1
        everything_BE = torch.ones_like(written_BE)
        masked_BKE = torch.stack([everything_BE, inside_BE | ~written_BE, ~inside_BE | ~written_BE], 1)
        weight_BKE = torch.stack([everything_BE.float(), inside_BE / t_B1, ~inside_BE / (1 - t_B1)], 1) / 2
        return Passes(masked_BKE, weight_BKE * written_BE[:, None])

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return positions

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        decision_KE = by_token(3, answers.positions)
        return weighted_sums(logp_M, answers, decision_KE, answers.positions)
