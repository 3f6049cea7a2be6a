r"""Bounds that keep the samples of an ELBO apart: BGPO's, linear in them, and SPG's, which differ by the sign of the advantage.

    e_j = 1/k_j  sum_{i in M_j} log p(x_i | x with M_j masked),     k_j ~ U{1..L}: an unbiased sample of ELBO / L

BGPO (arXiv:2510.11683): a decision is a sample. With objectives/bgpo.py a good text weighs mean_j (1 + e_j - e_j') and a bad one
mean_j exp(e_j - e_j'), bounds of the ratio exp(mean_j (e_j - e_j')), so that every sample is differentiated by itself.

SPG (arXiv:2510.09541): the first decision is the lower bound mean_j e_j, for good texts; the second, for bad ones, mixes it with

    U = mean_{i masked in some M_j}  1/beta log( 1/R sum_j 1[i in M_j] L/k_j p(x_i | x with M_j masked)^beta )

an upper bound in the limit of many samples: omega U + (1 - omega) mean_j e_j. objectives/spg.py takes the one that fits the
advantage.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.randomness import Draws
from relgrad.core.settings import Strict
from relgrad.estimators.elbo import random_masks
from relgrad.estimators.passes import Answers, Passes, Texts, by_pass, weighted_sums


class Bgpo(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = "relgrad.objectives.bgpo"
    per_token: ClassVar[bool] = False
    kind: Literal["bgpo"] = "bgpo"
    samples: int = Field(4, ge=1, description="masks of a text, each a decision")

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return self.samples

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return self.samples

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan."""
        return _samples(texts, draws, self.samples)

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        return weighted_sums(logp_M, answers, by_pass(self.samples, answers.positions), self.samples)


class Spg(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = "relgrad.objectives.spg"
    per_token: ClassVar[bool] = False
    kind: Literal["spg"] = "spg"
    samples: int = Field(2, ge=1, description="R, masks of a text")
    beta: float = Field(1.5, ge=1, description="the upper bound's exponent")
    omega: float = Field(0.5, ge=0, le=1, description="the upper bound's share for texts of negative advantage")

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return self.samples

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return 2

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan."""
        return _samples(texts, draws, self.samples)

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        lower_RK = weighted_sums(logp_M, answers, by_pass(self.samples, answers.positions), self.samples)
        lower_R = lower_RK.mean(-1)
        return torch.stack([lower_R, self.omega * self._upper(logp_M, answers) + (1 - self.omega) * lower_R], -1)

    def _upper(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """U [R], by logsumexp over the passes that mask a position; a text that no pass masks has 0."""
        shape = (answers.rows, self.samples, answers.positions)
        at = (answers.row_M, answers.pass_M, answers.position_M)
        length_R = answers.length_R.to(logp_M)
        # 1/k is the answer's weight, and L/k of these in R passes is what it stands for
        share_M = answers.weight_M.to(logp_M) * length_R[answers.row_M] / self.samples
        asked_RE = torch.zeros(shape, dtype=torch.bool, device=logp_M.device).index_put(at, share_M > 0).any(1)
        level_RKE = torch.full(shape, -torch.inf, dtype=logp_M.dtype, device=logp_M.device)
        level_RKE = level_RKE.index_put(at, share_M.log() + self.beta * logp_M)
        # positions that no pass masks get a finite stand-in, so that the branch not taken has a finite gradient
        level_RKE = torch.where(asked_RE[:, None], level_RKE, 0.0)
        bound_RE = torch.where(asked_RE, level_RKE.logsumexp(1) / self.beta, 0.0)
        return bound_RE.sum(-1) / asked_RE.sum(-1).clamp(min=1)


def _samples(texts: Texts, draws: Draws, samples: int) -> Passes:
    """Masks of sizes spread evenly over 1..L, each position weighing 1/k."""
    masks = random_masks(texts, draws, samples, stratified=True, smallest=True)
    masked_BKE = torch.stack([mask_BE | ~texts.written_BE for mask_BE, _ in masks], 1)
    weight_BKE = torch.stack([mask_BE / size_B.clamp(min=1)[:, None] for mask_BE, size_B in masks], 1)
    return Passes(masked_BKE, weight_BKE)
