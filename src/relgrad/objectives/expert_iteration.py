r"""The loss of expert iteration (Anthony et al. 2017, arXiv:1705.08439): cross-entropy on what was found to be right.

    L = -mean over rows of  1[A_b > 0] sum_t l_bt

Rows better than their group are imitated, whoever drew them and however likely they were; all others teach nothing. There is no
ratio, no clip and no weight. A group whose rows are all right has no advantages, and nothing to add.

In a recipe: `grpo: {loss: relgrad.objectives.expert_iteration}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import aggregate, require_defaults


@dataclass(frozen=True)
class ExpertIterationLoss:
    """See the module."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics). Differentiable in logp_BT."""
        better_BT = (terms.advantage_BT > 0).to(terms.logp_BT.dtype)
        loss = aggregate(-better_BT * terms.logp_BT, terms, "reinforce")
        return loss, {"loss": float(loss.detach()), "pg_loss": float(loss.detach())}


def build(settings: Any) -> ExpertIterationLoss:
    """The loss of a `grpo` section. Raises RelgradError for settings that it has no use for."""
    require_defaults("expert_iteration", settings)
    return ExpertIterationLoss()
