r"""The loss of BGPO (Lin et al. 2025, arXiv:2510.11683) on the samples of a surrogate, one decision each (estimators/bounds.py).

    L = -mean_b A_b mean_j (1 + e_bj - e'_bj)       where A_b > 0         e: a sample now, e': when the text was written
    L = -mean_b A_b mean_j exp(e_bj - e'_bj)        where A_b < 0

Both are bounds of the ratio exp(mean_j (e_bj - e'_bj)), and never overestimate what is maximised. At equal weights value and
gradient are those of the ELBO's own objective. Nothing is clipped, and there is no divergence term.

In a recipe: `policy: {estimator: {kind: bgpo}}` and `grpo: {loss: relgrad.objectives.bgpo}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import aggregate, corrected, require_defaults


@dataclass(frozen=True)
class BgpoLoss:
    """See the module."""

    estimator: ClassVar[str] = "bgpo"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics). Differentiable in logp_BT."""
        gained_BT = terms.logp_BT - terms.behaviour_logp_BT
        bad_BT = terms.advantage_BT < 0
        bound_BT = torch.where(bad_BT, torch.where(bad_BT, gained_BT, 0.0).exp(), 1 + gained_BT)
        loss = aggregate(corrected(-terms.advantage_BT * bound_BT, terms), terms, "grpo")
        return loss, {"loss": float(loss.detach()), "pg_loss": float(loss.detach())}


def build(settings: Any) -> BgpoLoss:
    """The loss of a `grpo` section. Raises RelgradError for settings that BGPO has no use for."""
    require_defaults("bgpo", settings)
    return BgpoLoss()
