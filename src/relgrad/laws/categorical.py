r"""The categorical law: softmax with temperature, top-k and top-p, sampled and scored by one definition.

    p = softmax(z / tau),   S = support(p; top_k, top_p),   pi(v) = p(v) 1[v in S] / sum_{u in S} p(u)

`top_p` keeps the shortest prefix of the descending probabilities whose mass reaches top_p (Holtzman et al. 2020,
arXiv:1904.09751); `top_k` the k most probable entries; with both, top_k first. Ties are broken by the lower index.
A truncated support moves with the parameters, so it is recorded when the decision is drawn and held fixed in every
later score: then the importance ratio is a ratio of two probabilities on the same set (likelihoods, section 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.laws.precision import at_least_float32

BLOCK = 64
"""Entries per block of the two-level inversion."""


@dataclass(frozen=True)
class Truncation:
    """Temperature > 0, top_k >= 0 (0: all), 0 < top_p <= 1 (1: all)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature}: must be > 0; at 0 the law is deterministic and has no policy gradient"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be >= 0 (0 keeps every entry)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1] (1 keeps every entry)")

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    def support(self, logits_NV: Tensor) -> Tensor:
        """bool [N, V]: True for the entries the law can draw; all True without truncation."""
        if not self.truncates:
            return torch.ones_like(logits_NV, dtype=torch.bool)
        scaled_NV = at_least_float32(logits_NV) / self.temperature
        sorted_NV, order_NV = torch.sort(scaled_NV, dim=-1, descending=True, stable=True)
        keep_NV = torch.ones_like(sorted_NV, dtype=torch.bool)
        if self.top_k > 0:
            keep_NV[:, self.top_k :] = False
        if self.top_p < 1:
            probs_NV = torch.softmax(sorted_NV.masked_fill(~keep_NV, -torch.inf), dim=-1)
            keep_NV &= probs_NV.cumsum(-1) - probs_NV < self.top_p
        return torch.zeros_like(keep_NV).scatter_(-1, order_NV, keep_NV)


def log_probs(logits_NV: Tensor, law: Truncation, support_NV: Tensor | None = None) -> Tensor:
    """float32 [N, V]: log pi of every entry, -inf outside the support.

    `support_NV` is the support recorded at sampling time; without it, the law's own at these logits.
    """
    scaled_NV = at_least_float32(logits_NV) / law.temperature
    if law.truncates:
        support_NV = law.support(logits_NV) if support_NV is None else support_NV
        scaled_NV = scaled_NV.masked_fill(~support_NV, -torch.inf)
    return torch.log_softmax(scaled_NV, dim=-1)


def sample(
    logits_NV: Tensor, law: Truncation, generator: torch.Generator | None = None, uniform_N: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw one entry per row by inverting the cumulative distribution: one uniform number per row, not one per entry.

    Returns (token_N int64, logp_N float32 nats, support_NV bool or None where nothing is truncated). The uniform
    numbers come from `generator`, or are given as `uniform_N` in [0, 1).
    """
    scaled_NV = at_least_float32(logits_NV)
    if law.temperature != 1.0:
        scaled_NV = scaled_NV / law.temperature
    support_NV = law.support(logits_NV) if law.truncates else None
    if support_NV is not None:
        scaled_NV = scaled_NV.masked_fill(~support_NV, -torch.inf)
    if uniform_N is None:
        uniform_N = torch.rand(logits_NV.shape[0], generator=generator, device=logits_NV.device)
    prob_NV = torch.softmax(scaled_NV, dim=-1)
    token_N = invert(prob_NV, uniform_N)
    # softmax adds up one by one and is off by 1e-5 over a large vocabulary; the pairwise sum takes that out again
    logp_N = prob_NV.gather(-1, token_N[:, None])[:, 0].log() - prob_NV.sum(-1).log()
    return token_N, logp_N, support_NV


def invert(mass_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The entry of each row whose stretch of the cumulative mass holds the point `uniform_N` (in [0, 1)) of the total.

    In two levels: blocks of BLOCK entries first, then the entries of one
    block, so that only V / BLOCK + BLOCK numbers are summed up one after the other. An entry without mass is never drawn.
    """
    return invert_many(mass_NV, uniform_N[:, None])[:, 0]


def invert_many(mass_NV: Tensor, uniform_NK: Tensor) -> Tensor:
    """K draws [N, K] from every row at once; see `invert`. The rows are not copied K times.

    A row of NaN, where no entry holds the point, gets the last one: its log-probability, NaN too, tells whoever records it.
    """
    rows, vocabulary = mass_NV.shape
    if vocabulary % BLOCK:
        mass_NV = torch.nn.functional.pad(mass_NV, (0, -vocabulary % BLOCK))
    block_NJB = mass_NV.view(rows, mass_NV.shape[1] // BLOCK, BLOCK)
    cumulative_NJ = block_NJB.sum(-1).cumsum(-1)
    point_NK = _below(uniform_NK * cumulative_NJ[:, -1:], cumulative_NJ[:, -1:])
    block_NK = torch.searchsorted(cumulative_NJ, point_NK, right=True).clamp(max=cumulative_NJ.shape[1] - 1)
    inside_NKB = block_NJB[torch.arange(rows, device=mass_NV.device)[:, None], block_NK]
    before_NK = cumulative_NJ.gather(-1, block_NK) - inside_NKB.sum(-1)
    within_NKB = inside_NKB.cumsum(-1)
    point_NK1 = _below((point_NK - before_NK).clamp(min=0)[..., None], within_NKB[..., -1:])
    entry_NK = torch.searchsorted(within_NKB, point_NK1, right=True)[..., 0]
    token_NK = (block_NK * BLOCK + entry_NK).clamp(max=vocabulary - 1)
    return land_on_mass(token_NK, mass_NV) if mass_NV.is_cuda else token_NK


def _below(point: Tensor, total: Tensor) -> Tensor:
    """`point`, strictly below `total`: then an entry whose cumulative mass exceeds it exists, and has mass itself."""
    return torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))


def land_on_mass(token_NK: Tensor, mass_NV: Tensor) -> Tensor:
    """`token_NK`, with the most probable entry in place of one without mass.

    A parallel cumulative sum rounds neighbours differently, so that it can step up by one unit in the last place at an
    entry that adds nothing, and a uniform number can fall right there. A sequential sum (CPU) cannot.
    """
    has_mass_NK = mass_NV.gather(-1, token_NK) > 0
    return torch.where(has_mass_NK, token_NK, mass_NV.argmax(-1, keepdim=True))
