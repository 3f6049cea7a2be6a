r"""The loss of SPG (Wang et al. 2025, arXiv:2510.09541): good texts raise a lower bound of log pi, bad ones lower an upper bound.

    L = -mean_b A_b l_b,      l_b = first decision where A_b > 0, second decision where A_b < 0      (estimators/bounds.py)

A lower bound that is lowered says nothing of log pi: it can fall without end while log pi stays. There is no ratio and no
divergence term.

In a recipe: `policy: {estimator: {kind: spg}}` and `grpo: {loss: relgrad.objectives.spg}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import aggregate, corrected, require_defaults


@dataclass(frozen=True)
class SpgLoss:
    """See the module."""

    estimator: ClassVar[str] = "spg"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics). Differentiable in logp_BT. Raises ValueError where rows have other than two decisions."""
        if terms.logp_BT.shape[1] != 2:
            raise ValueError(
                f"grpo.loss=relgrad.objectives.spg takes the two bounds of policy.estimator.kind=spg, and these rows have "
                f"{terms.logp_BT.shape[1]} decisions"
            )
        upper_T = torch.arange(2, device=terms.logp_BT.device) == 1
        bound_BT = torch.where((terms.advantage_BT < 0) == upper_T, terms.logp_BT, 0.0)
        loss = aggregate(corrected(-terms.advantage_BT * bound_BT, terms), terms, "reinforce")
        return loss, {"loss": float(loss.detach()), "pg_loss": float(loss.detach())}


def build(settings: Any) -> SpgLoss:
    """The loss of a `grpo` section. Raises RelgradError for settings that SPG has no use for."""
    require_defaults("spg", settings)
    return SpgLoss()
