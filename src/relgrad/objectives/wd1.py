r"""The loss of wd1 (Tang et al. 2025, arXiv:2507.08838): a weighted likelihood in place of a ratio.

    L = -mean over rows of  K_b (softmax(A)_b - softmax(-A)_b) sum_t l_bt        softmax over the K_b rows of the row's group

With policy.estimator.kind=mean_field the l are the mean field of tokens. No old policy, no reference, no clip. The published code
takes the softmax over the rows that a device happens to hold; here it is over the group that is compared.

In a recipe: `grpo: {loss: relgrad.objectives.wd1, scale_rewards: none}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import aggregate, corrected, require_defaults


@dataclass(frozen=True)
class Wd1Loss:
    """See the module."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics). Differentiable in logp_BT; wants whole groups, whose rows have one advantage each."""
        weight_B1 = weights(terms.advantage_BT[:, 0], terms.group_B)[:, None]
        loss = aggregate(corrected(-weight_B1 * terms.logp_BT, terms), terms, "reinforce")
        return loss, {"loss": float(loss.detach()), "pg_loss": float(loss.detach())}


def weights(advantage_B: Tensor, group_B: Tensor | None) -> Tensor:
    """[B]: softmax(A) - softmax(-A) over each group, times its rows; without groups all rows are one.

    A mean over rows is then a mean over groups, where these are of one size.
    """
    if group_B is None:
        same_BB = advantage_B.new_ones(len(advantage_B), len(advantage_B), dtype=torch.bool)
    else:
        same_BB = (group_B[:, None] == group_B[None]).to(advantage_B.device)
    good_BB, bad_BB = (
        torch.softmax((sign * advantage_B).expand(same_BB.shape).masked_fill(~same_BB, -torch.inf), -1)
        for sign in (1.0, -1.0)
    )
    return (good_BB - bad_BB).diagonal() * same_BB.sum(-1)


def build(settings: Any) -> Wd1Loss:
    """The loss of a `grpo` section. Raises RelgradError for settings that wd1 has no use for."""
    require_defaults("wd1", settings, ("credit",))
    return Wd1Loss()
