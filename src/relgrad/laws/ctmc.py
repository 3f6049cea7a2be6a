r"""The law of one Euler step of discrete flow matching: a position stays, or jumps to another token. Sample or score. Pure.

With p = softmax(logits) over the tokens that may be drawn, c the current token, q = 1 - p_c, and a *hazard* a >= 0 of the step:

    kernel       stay                        jump to v != c                      hazard a
    mixture      e^-a + (1 - e^-a) p_c       (1 - e^-a) p_v                      -log((1 - kappa_{t+h}) / (1 - kappa_t))
    rate         e^(-a q)                    (1 - e^(-a q)) p_v / q              h kappa' / (1 - kappa)
    cumulative   e^(-a q)                    (1 - e^(-a q)) p_v / q              as mixture
    all, last    p_c                         p_v                                 infinite

`mixture` draws x_1 ~ p first and is exact at every step size; `rate` takes an Euler step on the total rate (Gat et al. 2024,
arXiv:2407.15595); `cumulative` is that of FS-DFM's few-step student. They agree to first order in h only. The last step, which
ends at t = 1, draws from p: with `mixture` by itself, with the others as Apple's sampler does it.

From the source `mask`, c is the mask or final. The mask has p_c = 0, so that it stays with e^-a whatever the network says, under
every kernel; what is unmasked stays. So only newly unmasked tokens carry a gradient.

Positions are independent: everything is [N], or [N, V] over tokens. Logits are divided by the temperature, and -inf for tokens that
may not be drawn (the mask always; at least two must be left). Nothing is clamped. In log space no formula divides by q:

    log((1 - e^(-a q)) / q) = log a + g(a q),   g(x) = log((1 - e^-x) / x),   log q = logsumexp_{v != c} log p_v

and branches that are not taken see safe arguments only ("double where"), since 0 x inf is NaN in a backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relgrad.laws import categorical
from relgrad.laws.precision import at_least_float32
from relgrad.laws.schedule import Scheduler
from relgrad.objectives.divergences import categorical_kl

Kernel = Literal["mixture", "rate", "cumulative"]
Source = Literal["uniform", "mask"]
SERIES = 0.03
"""Below it g is its Taylor series: the next term, x^4/2880, is under 3e-10."""


@dataclass(frozen=True)
class Law:
    """Kernel and source. `mask_id` is the mask's id where the source is the mask, and None otherwise."""

    kernel: Kernel = "mixture"
    source: Source = "uniform"
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if (self.source == "mask") != (self.mask_id is not None):
            raise ValueError(
                f"source={self.source!r} with mask_id={self.mask_id}: the source `mask`, and no other, has a mask"
            )

    def live(self, token_N: Tensor) -> Tensor:
        """bool [N]: positions that may change: all, or those still masked."""
        return torch.ones_like(token_N, dtype=torch.bool) if self.mask_id is None else token_N == self.mask_id

    def depends(self, token_N: Tensor, next_N: Tensor) -> Tensor:
        """bool [N]: positions whose log-probability depends on the network: all, or those newly unmasked."""
        return self.live(token_N) if self.mask_id is None else self.live(token_N) & (next_N != self.mask_id)


def hazard(kernel: Kernel, scheduler: Scheduler, t: Tensor, h: Tensor | float) -> Tensor:
    """The hazard of steps from t to t + h, as the table above has it; infinite where the step ends at 1. Give t as float64."""
    stay = scheduler.stay_factor(t, h)
    if kernel != "rate":
        return -torch.log(stay)
    return torch.where(stay == 0, torch.inf, scheduler.slope(t) * h / scheduler.left(t))


def sample(law: Law, logits_NV: Tensor, token_N: Tensor, hazard_N: Tensor, uniform_N2: Tensor) -> Tensor:
    """int64 [N]: the next tokens. `uniform_N2` in [0, 1): the first number decides whether to draw, the second what."""
    last_N, finite_N = _last(hazard_N)
    logits_NV = at_least_float32(logits_NV)
    chance_N = finite_N
    if law.kernel != "mixture" and law.mask_id is None:  # these kernels draw another token, or none
        logits_NV, log_q_N = _without_current(logits_NV, token_N, last_N)
        chance_N = finite_N * log_q_N.exp()
    drawn_N = categorical.invert(torch.softmax(logits_NV, -1), uniform_N2[:, 1])
    draws_N = last_N | (uniform_N2[:, 0] < -torch.expm1(-chance_N))
    return torch.where(draws_N & law.live(token_N), drawn_N, token_N)


def unmasks(law: Law, token_N: Tensor, hazard_N: Tensor, uniform_N: Tensor) -> Tensor:
    """bool [N]: which positions `sample` will unmask; the source `mask` tells without logits. `uniform_N`: its first numbers."""
    last_N, finite_N = _last(hazard_N)
    return law.live(token_N) & (last_N | (uniform_N < -torch.expm1(-finite_N)))


def free_log_prob(law: Law, token_N: Tensor, next_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float32 [N], without gradient: log-probability of steps that do not depend on the network (see `Law.depends`).

    Staying masked: -a. Staying unmasked: 0. -inf for what cannot happen.
    """
    stays_N = torch.where(law.live(token_N), -hazard_N.float(), torch.zeros_like(hazard_N, dtype=torch.float32))
    return torch.where(token_N == next_N, stays_N, -torch.inf)


def log_prob(law: Law, logits_NV: Tensor, token_N: Tensor, next_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float32 [N], nats: log-probability of going from `token_N` to `next_N`, differentiable in the logits.

    Where a step happened with probability 0 it is -inf; everywhere else value and gradient are finite.
    """
    last_N, finite_N = _last(hazard_N)
    logits_NV = at_least_float32(logits_NV)
    total_N = logits_NV.logsumexp(-1)
    depends_N, stayed_N = law.depends(token_N, next_N), token_N == next_N
    drawn_N = logits_NV.gather(-1, next_N[:, None])[:, 0] - total_N
    drawn_N = torch.where(depends_N, drawn_N, torch.zeros_like(drawn_N))  # the mask itself has logit -inf
    stay_N, jump_N = _stay_and_jump(law, logits_NV, total_N, drawn_N, token_N, finite_N, last_N)
    logp_N = torch.where(last_N, drawn_N, torch.where(stayed_N, stay_N, jump_N + drawn_N))
    return torch.where(depends_N, logp_N, free_log_prob(law, token_N, next_N, hazard_N))


def log_transition(law: Law, logits_NV: Tensor, token_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float32 [N, V], nats: log-probability of every next token; -inf for those that cannot follow. Rows have mass 1."""
    last_N, finite_N = _last(hazard_N)
    live_N, logp_NV = law.live(token_N), torch.log_softmax(at_least_float32(logits_NV), -1)
    current_NV = torch.zeros_like(logp_NV, dtype=torch.bool).scatter_(-1, token_N[:, None], True)
    at_current_N = logp_NV.gather(-1, token_N[:, None])[:, 0]
    stay_N, jump_N = _stay_and_jump(
        law, logp_NV, torch.zeros_like(at_current_N), at_current_N, token_N, finite_N, last_N
    )
    euler_NV = torch.where(current_NV, stay_N[:, None], jump_N[:, None] + logp_NV)
    moving_NV = torch.where(last_N[:, None], logp_NV, euler_NV)
    resting_NV = torch.full_like(logp_NV, -torch.inf).masked_fill(current_NV, 0.0)
    return torch.where(live_N[:, None], moving_NV, resting_NV)


def entropy(law: Law, logits_NV: Tensor, token_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float32 [N], nats, differentiable: entropy of the next token."""
    log_NV = log_transition(law, logits_NV, token_N, hazard_N)
    finite_NV = torch.where(log_NV.isfinite(), log_NV, torch.zeros_like(log_NV))
    return -(torch.where(log_NV.isfinite(), finite_NV.exp(), 0.0) * finite_NV).sum(-1)


def kl(law: Law, logits_NV: Tensor, reference_NV: Tensor, token_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float32 [N], nats: exact KL of the next token's law from that of the reference's logits, differentiable in the first."""
    return categorical_kl(
        log_transition(law, logits_NV, token_N, hazard_N),
        log_transition(law, reference_NV, token_N, hazard_N).detach(),
    )


def _last(hazard_N: Tensor) -> tuple[Tensor, Tensor]:
    """(bool [N]: steps that end at t = 1; float32 [N]: the hazards, with 1 in place of infinity)."""
    last_N = hazard_N.isinf()
    return last_N, hazard_N.float().masked_fill(last_N, 1.0)


def _stay_and_jump(
    law: Law, logits_NV: Tensor, total_N: Tensor, stay_p_N: Tensor, token_N: Tensor, finite_N: Tensor, last_N: Tensor
) -> tuple[Tensor, Tensor]:
    """([N] log P(stay), [N] log P(jump to v) - log p_v) of steps that are not the last. `stay_p_N` is log p_c where c stays."""
    if law.mask_id is not None:
        return -finite_N, _log_chance(finite_N)
    if law.kernel == "mixture":
        jump_N = _log_chance(finite_N)
        return torch.logaddexp(-finite_N, jump_N + stay_p_N), jump_N
    _, log_rest_N = _without_current(logits_NV, token_N, last_N, total_N)
    exponent_N = finite_N * log_rest_N.exp()
    return -exponent_N, finite_N.log() + _log_mean_decay(exponent_N)


def _log_chance(hazard_N: Tensor) -> Tensor:
    """log(1 - e^-a); -inf at 0."""
    return torch.log(-torch.expm1(-hazard_N))


def _log_mean_decay(x_N: Tensor) -> Tensor:
    """g(x) = log((1 - e^-x) / x), 0 at 0, with finite slope everywhere."""
    small_N, large_N = x_N.clamp(max=SERIES), x_N.clamp(min=SERIES)
    series_N = small_N * (small_N / 24 - 0.5)
    return torch.where(x_N < SERIES, series_N, torch.log(-torch.expm1(-large_N) / large_N))


def _without_current(
    logits_NV: Tensor, token_N: Tensor, last_N: Tensor, total_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(logits with -inf at the current token, but not at the last step; [N] log q, as the sum over what is left)."""
    total_N = logits_NV.logsumexp(-1) if total_N is None else total_N
    at_current_N1 = logits_NV.gather(-1, token_N[:, None])
    out_N1 = torch.where(last_N[:, None], at_current_N1, torch.full_like(at_current_N1, -torch.inf))
    rest_NV = logits_NV.scatter(-1, token_N[:, None], out_N1)
    return rest_NV, rest_NV.logsumexp(-1) - total_N
