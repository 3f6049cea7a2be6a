r"""The loss of the original diffusion-GPT trainer, as it was. It is wrong, and kept to be compared with.

    L = -mean_b( A_b sum_t log pi )  +  beta mean_b( sum_t (log pi - log pi_ref) ),     A = (a - mean(a)) / (std(a) + 1e-8)

with a_b the reward minus its group's mean, standardised over all rows of the step (sample std), and REINFORCE in place of
ratios and clipping. The second term is meant as the KL to the reference by k1 and is none: log pi_ref is a constant of the
gradient, which is beta mean_b(grad sum_t log pi) whatever the reference is. On samples of pi that is 0 in expectation, so
nothing is held back; on samples of a sharper law (temperature 0.8 scored at 1, as the original does) it pushes
probability away from likely decisions without end. relgrad's own terms are in divergences.py: k1 in the reward, or k2, k3 or
the exact divergence in the loss.

In a recipe: `grpo: {loss: relgrad.baselines.k1_loss, beta: 0.1, scale_rewards: none}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import LossTerms
from relgrad.objectives.divergences import k1
from relgrad.objectives.losses import masked_mean, mean_per_row

EPSILON = 1e-8


@dataclass(frozen=True)
class K1Loss:
    """See the module. `beta` is the weight of the term that should have been a divergence; 0 leaves it out."""

    beta: float

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"}) if self.beta else frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics); loss = pg_loss + kl_penalty. Assumes advantages per row, centred in their groups."""
        mask_BT = terms.mask_BT.to(terms.logp_BT.dtype)
        loss = -(standardise(terms.advantage_BT[:, 0]) * (terms.logp_BT * mask_BT).sum(-1)).mean()
        metrics = {"pg_loss": float(loss.detach()), "kl_penalty": 0.0}
        if self.beta:
            assert terms.reference_logp_BT is not None
            gap_BT = k1(terms.logp_BT, terms.reference_logp_BT)
            penalty = self.beta * (gap_BT * mask_BT).sum(-1).mean()
            loss = loss + penalty
            metrics |= {"kl_penalty": float(penalty.detach()), "kl": masked_mean(gap_BT, terms.mask_BT)}
            metrics["mean_kl"] = mean_per_row(gap_BT, terms.mask_BT)
        return loss, metrics | {"loss": float(loss.detach())}


def standardise(advantage_B: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) over all rows, with the sample std. Does not feel a scale that all rows share."""
    return (advantage_B - advantage_B.mean()) / (advantage_B.std() + EPSILON)


def build(settings: Any) -> K1Loss:
    """The loss for a recipe's `grpo` section (train.GrpoSettings). Raises RelgradError for settings that would change it."""
    fixed = {
        "scale_rewards": (settings.scale_rewards, ("none", "batch")),
        "credit": (settings.credit, ("row",)),
        "kl_estimator": (settings.kl_estimator, ("k3", "k2")),
        "entropy_coef": (settings.entropy_coef, (0.0,)),
    }
    for name, (value, allowed) in fixed.items():
        if value not in allowed:
            raise RelgradError(
                f"grpo.loss: relgrad.baselines.k1_loss with {name}={value!r}: the original's loss is what it is; {name} may be "
                f"{' or '.join(map(repr, allowed))} (it standardises over the batch and brings its own divergence term)"
            )
    return K1Loss(settings.beta)
