r"""Policy-gradient losses on log-probabilities [B, T] and a finished mask. Pure.

One loss = a *surrogate* per decision, an *aggregation* over decisions, and optional divergence and entropy terms:

    rho_t = exp(log pi - log pi_behaviour)                       token level
    rho   = exp(mean_t(log pi - log pi_behaviour))               sequence level (GSPO, Zheng et al. 2025, arXiv:2507.18071)
    clipped:    -min(rho A, clip(rho, 1-epsilon, 1+epsilon_high) A)    PPO/GRPO; rho capped at delta first (INTELLECT-2)
    cispo:      -sg(min(rho, epsilon_high)) A log pi                   MiniMax-M1, arXiv:2506.13585
    reinforce:  -A log pi                                              Williams 1992

| loss_type | surrogate | aggregation | paper |
|---|---|---|---|
| grpo | clipped | mean over rows of the mean over decisions | Shao et al. 2024, arXiv:2402.03300 |
| bnpo | clipped | sum / decisions of this optimizer step | TRL's name for the local token mean |
| dr_grpo | clipped | sum* / (rows x max_decisions) | Liu et al. 2025, arXiv:2503.20783 |
| dapo | clipped | sum / decisions per optimizer step of the whole generation batch | Yu et al. 2025, arXiv:2503.14476 |
| cispo | cispo | as dapo | MiniMax 2025, arXiv:2506.13585 |
| reinforce | reinforce | mean over rows of the sum* over decisions: the exact policy gradient | Williams 1992 |

*) times `LossTerms.stands_for`, where only a random part of a row's decisions is trained; a mean over that part needs no factor.

Rows and decisions that a sum is divided by are those of the whole optimizer step, whatever part of it is given: losses of parts add
up. (`step_ratio_norm` alone takes statistics over the rows it is given, and wants all of them.)

Definitions, defaults and edge cases follow TRL 1.16, so that the same rollouts give the same loss and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import LossTerms
from relgrad.objectives.divergences import k2, k3

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "reinforce"]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "reinforce")
KlEstimator = Literal["k1", "k2", "k3", "exact"]
CISPO_EPSILON_HIGH = 5.0
SPREAD_FLOOR = 1e-3
"""Spreads of log-ratios below it are rounding noise, and are not blown up."""


def log_ratio(terms: LossTerms, level: Literal["token", "sequence"]) -> Tensor:
    """Log importance weights: [B, T] at token level, [B, 1] (length-normalised) at sequence level."""
    ratio_BT = terms.logp_BT - terms.behaviour_logp_BT
    if level == "token":
        return ratio_BT
    mask_BT = terms.mask_BT.to(ratio_BT.dtype)
    return ((ratio_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1.0))[:, None]


def normalised_by_step(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Log-ratios with mean 0 and one spread at every decision number t, after GRPO-Guard's RatioNorm (arXiv:2510.22319).

        l'_bt = (l_bt - mean_b l_bt) (s + f) / (s_t + f),   s_t = std_b l_bt,   s^2 = mean_t s_t^2,   f = SPREAD_FLOOR

    On samples of the old policy E[l] = -KL(old || new) <= 0, and more so at steps with many choices: without this the clip
    range acts at some steps only, and on one side. A step's gradient is multiplied by the same factor. GRPO-Guard takes mean
    and spread from the Gaussian and also weighs gradients by 1 / dt; here both are measured over the rows and detached. Where
    all ratios are 1, and at decisions of one row only, nothing changes.
    """
    weight_BT = mask_BT.to(log_ratio_BT.dtype)
    count_T = weight_BT.sum(0).clamp(min=1.0)
    detached_BT = log_ratio_BT.detach()
    mean_T = (detached_BT * weight_BT).sum(0) / count_T
    variance_T = ((detached_BT - mean_T).square() * weight_BT).sum(0) / count_T
    several_T = mask_BT.sum(0) > 1
    pooled = variance_T[several_T].mean().sqrt() if bool(several_T.any()) else variance_T.new_zeros(())
    scale_T = torch.where(several_T, (pooled + SPREAD_FLOOR) / (variance_T.sqrt() + SPREAD_FLOOR), 1.0)
    return (log_ratio_BT - torch.where(several_T, mean_T, 0.0)) * scale_T


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho) A); `delta` caps rho from above in the unclipped branch too (two-sided clipping)."""
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    capped = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(capped * advantage, clipped * advantage)


def cispo_surrogate(ratio: Tensor, advantage: Tensor, logp: Tensor, epsilon_high: float) -> Tensor:
    """REINFORCE with a capped, detached importance weight: no decision ever loses its gradient."""
    return -ratio.clamp(max=epsilon_high).detach() * advantage * logp


def aggregate(cell_BT: Tensor, terms: LossTerms, loss_type: LossType) -> Tensor:
    """One scalar from per-decision losses, as the table above says. Rows without decisions contribute 0."""
    mask_BT = terms.mask_BT.to(cell_BT.dtype)
    masked_BT = cell_BT * mask_BT
    if loss_type == "grpo":
        return (masked_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1.0)).sum() / max(terms.rows, 1)
    if loss_type == "bnpo":
        return masked_BT.sum() / terms.decisions
    if loss_type == "dr_grpo":
        return terms.stands_for * masked_BT.sum() / (max(terms.rows, 1) * terms.max_decisions)
    if loss_type in ("dapo", "cispo"):
        return masked_BT.sum() / max(terms.batch_decisions, 1.0)
    return terms.stands_for * masked_BT.sum() / max(terms.rows, 1)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of one recipe. Parameter names, meanings and defaults are TRL's GRPOConfig's.

    epsilon_high        None: equal to `epsilon`; for cispo 5.0 (ScaleRL), since a cap of 0.2 would throw the ratio away
    beta                weight of the divergence from the reference; 0 loads no reference
    kl_estimator        "k3" (TRL), "k2" or "exact" in the loss; "k1" is subtracted from the reward by the loop, not here
    step_ratio_norm     clip ratios that were brought to one scale, decision number by decision number (`normalised_by_step`)
    entropy_coef        weight of the mean entropy per decision, subtracted from the loss
    """

    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    importance_sampling_level: Literal["token", "sequence"] = "token"
    beta: float = 0.0
    kl_estimator: KlEstimator = "k3"
    use_bias_correction_kl: bool = True
    step_ratio_norm: bool = False
    entropy_coef: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """Optional terms the loss must be given: "reference", "entropy", "kl"."""
        needed = set()
        if self.beta and self.kl_estimator in ("k2", "k3"):
            needed.add("reference")
        if self.beta and self.kl_estimator == "exact":
            needed.add("kl")
        if self.entropy_coef:
            needed.add("entropy")
        return frozenset(needed)

    @property
    def upper(self) -> float:
        """epsilon_high after defaults."""
        if self.epsilon_high is not None:
            return self.epsilon_high
        return CISPO_EPSILON_HIGH if self.loss_type == "cispo" else self.epsilon

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        """(scalar loss, metrics in TRL's names). Differentiable in logp_BT, entropy_BT and kl_BT.

        loss = pg_loss + kl_penalty - entropy_coef x mean entropy; `mean_kl` is nats per row, `kl` per decision.
        """
        ratio = log_ratio(terms, self.importance_sampling_level).exp()
        clipped = ratio
        if self.step_ratio_norm:
            clipped = normalised_by_step(log_ratio(terms, "token"), terms.mask_BT).exp()
        cell_BT = self.surrogate(terms, clipped)
        cell_BT = corrected(cell_BT, terms)
        metrics = clip_metrics(terms, clipped, self) if self.loss_type != "reinforce" else {}
        loss = aggregate(cell_BT, terms, self.loss_type)
        metrics |= {"pg_loss": float(loss.detach()), "kl_penalty": 0.0}
        if self.beta and self.kl_estimator != "k1":
            kl_BT = self.divergence(terms, ratio)
            penalty = aggregate(self.beta * kl_BT, terms, self.loss_type)
            loss = loss + penalty
            metrics |= {"kl_penalty": float(penalty.detach()), "kl": masked_mean(kl_BT, terms.mask_BT)}
            metrics["mean_kl"] = terms.stands_for * mean_per_row(kl_BT, terms.mask_BT)
        if self.entropy_coef:
            assert terms.entropy_BT is not None
            entropy = (terms.entropy_BT * terms.mask_BT.to(loss.dtype)).sum() / terms.decisions
            loss = loss - self.entropy_coef * entropy
        metrics["loss"] = float(loss.detach())
        return loss, metrics

    def surrogate(self, terms: LossTerms, ratio: Tensor) -> Tensor:
        """Per-decision policy loss [B, T] (or [B, 1] at sequence level, broadcast by the mask)."""
        if self.loss_type == "cispo":
            return cispo_surrogate(ratio, terms.advantage_BT, terms.logp_BT, self.upper)
        if self.loss_type == "reinforce":
            return -terms.advantage_BT * terms.logp_BT
        return clipped_surrogate(ratio, terms.advantage_BT, self.epsilon, self.upper, self.delta)

    def divergence(self, terms: LossTerms, ratio: Tensor) -> Tensor:
        """Per-decision divergence [B, T] by the chosen estimator."""
        if self.kl_estimator == "exact":
            assert terms.kl_BT is not None
            return terms.kl_BT
        assert terms.reference_logp_BT is not None
        if self.kl_estimator == "k2":
            return k2(terms.logp_BT, terms.reference_logp_BT)
        kl_BT = k3(terms.logp_BT, terms.reference_logp_BT)
        return kl_BT * ratio if self.use_bias_correction_kl else kl_BT


def corrected(cell_BT: Tensor, terms: LossTerms) -> Tensor:
    """Per-decision losses, those that another than the current policy drew weighted by their correction."""
    return cell_BT if terms.correction_BT is None else cell_BT * terms.correction_BT


def truncated_importance_weights(
    logp_BT: Tensor, engine_logp_BT: Tensor, mask_BT: Tensor, *, cap: float = 2.0
) -> Tensor:
    """min(pi_trainer / pi_engine, cap) per decision, detached: corrects rollouts whose engine computed other log-probs.

    TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"). 1 outside the mask.
    """
    weight_BT = (logp_BT - engine_logp_BT).exp().clamp(max=cap).detach()
    return torch.where(mask_BT, weight_BT, torch.ones_like(weight_BT))


def shaped_weights(logp_BT: Tensor, gamma: float | Tensor) -> Tensor:
    """d/dlog p of p / (p + gamma) = gamma p / (p + gamma)^2 per decision, detached: policy shaping of LUFFY (Yan et al. 2025,
    arXiv:2504.14945).

    A decision that somebody else chose, by unknown probabilities, is learnt as if its surrogate were -A p / (p + gamma). The
    weight is 1 / 4 at p = gamma, about p / gamma far below, and falls to gamma / (1 + gamma)^2 at p = 1, so that what is known
    already teaches little.
    """
    p_BT = logp_BT.exp()
    return (gamma * p_BT / (p_BT + gamma).square()).detach()


UNUSED = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "beta", "step_ratio_norm", "entropy_coef",
)  # fmt: skip
"""Settings of a `grpo` section that are for the losses of this file alone."""


def require_defaults(name: str, settings: Any, more: tuple[str, ...] = ()) -> None:
    """Raise RelgradError for settings that the loss of `objectives/{name}.py` would leave out of account."""
    defaults = {key: field.default for key, field in type(settings).model_fields.items()}
    for key in (*UNUSED, *more):
        value = dict(settings)[key]
        if value != defaults[key]:
            raise RelgradError(
                f"grpo.loss=relgrad.objectives.{name} does not know {key}={value!r}: leave it out (its default: {defaults[key]!r})"
            )


def masked_mean(value_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean over the masked decisions, as a float."""
    mask_BT = mask_BT.to(value_BT.dtype)
    return float((value_BT.detach() * mask_BT).sum() / mask_BT.sum().clamp(min=1.0))


def mean_per_row(value_BT: Tensor, mask_BT: Tensor) -> float:
    """Sum over a row's decisions, as a mean over the rows that have any; 0 where none has."""
    total_B = (value_BT.detach() * mask_BT.to(value_BT.dtype)).sum(-1)
    return float(total_B.sum() / mask_BT.any(-1).sum().clamp(min=1))


def clip_metrics(terms: LossTerms, ratio: Tensor, loss: PolicyLoss) -> dict[str, float]:
    """TRL's clip_ratio/*: share of decisions whose gradient the clip removed, by side; and the ratio's own range."""
    ratio = ratio.detach()
    advantage_BT = terms.advantage_BT
    if loss.loss_type == "cispo":
        capped = (ratio > loss.upper) & (advantage_BT > 0)
        return {"cispo_clip_ratio": masked_mean(capped.float().expand_as(terms.logp_BT), terms.mask_BT)}
    low = ((ratio < 1 - loss.epsilon) & (advantage_BT < 0)).float().expand_as(terms.logp_BT)
    high = ((ratio > 1 + loss.upper) & (advantage_BT > 0)).float().expand_as(terms.logp_BT)
    wide = ratio.expand_as(terms.logp_BT)[terms.mask_BT]
    return {
        "clip_ratio/low_mean": masked_mean(low, terms.mask_BT),
        "clip_ratio/high_mean": masked_mean(high, terms.mask_BT),
        "clip_ratio/region_mean": masked_mean(low + high, terms.mask_BT),
        "importance_ratio/min": float(wide.min()) if wide.numel() else 1.0,
        "importance_ratio/max": float(wide.max()) if wide.numel() else 1.0,
    }
