r"""Mean field: one pass over the text with everything masked (diffu-GRPO of d1, Zhao et al. 2025, arXiv:2504.12216).

    l_i = log p(x_i | all masked, prompt with each token masked with probability `prompt_masking`)

It takes the tokens of a text for independent given the prompt: exact where all of them are revealed in one step, and wrong in
direction where tokens depend on each other. A decision is a token. With the loss of objectives/wd1.py it is wd1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.randomness import Draws, uniform_at
from relgrad.core.settings import Strict
from relgrad.estimators.passes import Answers, Passes, Texts, by_token, weighted_sums


class MeanField(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = None
    per_token: ClassVar[bool] = True
    kind: Literal["mean_field"] = "mean_field"
    prompt_masking: float = Field(0.15, ge=0, lt=1, description="share of the prompt's tokens that are masked too")

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return 1

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan."""
        veiled_BL = None
        if self.prompt_masking:
            uniform_BL = uniform_at(texts.prompt_BL, draws)
            veiled_BL = texts.prompt_BL & (uniform_BL < self.prompt_masking)
        masked_BKE = torch.ones_like(texts.written_BE)[:, None]
        return Passes(masked_BKE, texts.written_BE[:, None].float(), veiled_BL)

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return positions

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        decision_KE = by_token(1, answers.positions)
        return weighted_sums(logp_M, answers, decision_KE, answers.positions)
