r"""Writing a text in several steps: fill all holes, make the most doubtful positions holes again, fill those, and so on.

    x_0 has all its editable positions masked;  step i = 0 .. S-1:
        y_i ~ pi(. | x_i) at the masked positions of x_i, independently (one forward pass)
        x_{i+1} = y_i with k_{i+1} editable positions masked again              (i < S - 1; y_{S-1} is the text)

    k_i = round(share_i * editable positions),   share_i = start + (end - start) * i / (S - 1)         "linear"

Masked again are the k positions of highest priority (1 - s) * doubt + s * u, with u uniform and s `randomness_strength`.
The doubt is 1 - pi(token), as it was when the token was drawn ("confidence"; Chang et al. 2022, arXiv:2202.04200), or a
critic's probability that the token is wrong ("critic"); with "random" the priority is u. Given text never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.settings import Strict
from relgrad.laws import categorical
from relgrad.laws.categorical import Truncation

LogitsOf = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(ids_BL, length_B, row_M, position_M) -> logits [M, V], -inf for ids that are never written."""
WrongOf = Callable[[Tensor, Tensor], Tensor]
"""(ids_BL, length_B) -> probability [B, L] that the token at a position is wrong."""


class Denoise(Strict):
    """How a text is written in several steps; `masking_ratios` has a share for every step but the first, which fills all."""

    steps: int = Field(8, ge=1, description="forward passes; 1: all positions at once")
    schedule: Literal["linear", "custom"] = "linear"
    start_ratio: float = Field(0.95, ge=0, le=1)
    end_ratio: float = Field(0.05, ge=0, le=1)
    masking_ratios: tuple[float, ...] = ()
    remask: Literal["confidence", "critic", "random"] = "confidence"
    randomness_strength: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _legal(self) -> Denoise:
        if self.schedule == "custom" and len(self.masking_ratios) != self.steps - 1:
            raise ValueError(
                f"masking_ratios has {len(self.masking_ratios)} shares, but steps={self.steps} needs {self.steps - 1}: one "
                "for every step after the first"
            )
        if self.schedule == "linear" and self.masking_ratios:
            raise ValueError("masking_ratios needs schedule=custom")
        if not all(0 <= ratio <= 1 for ratio in self.masking_ratios):
            raise ValueError(f"masking_ratios={list(self.masking_ratios)}: every share must be in [0, 1]")
        return self

    @property
    def ratios(self) -> tuple[float, ...]:
        """The share of the editable positions that is masked again before each step but the first."""
        if self.schedule == "custom":
            return self.masking_ratios
        slope = (self.end_ratio - self.start_ratio) / max(self.steps - 1, 1)
        return tuple(self.start_ratio + slope * i for i in range(1, self.steps))


@dataclass(frozen=True)
class Frames:
    """Every state of B texts: the start, then by turns what a step filled and what was masked again after it.

    ids_FBL         int32 [2 steps, B, L]; the last frame is the finished text
    confidence_FBL  float16 [2 steps, B, L]; the probability with which the token there was drawn, NaN where it is masked,
                    given or padding
    """

    ids_FBL: Tensor
    confidence_FBL: Tensor


@torch.no_grad()
def denoise(
    start_BL: Tensor,
    length_B: Tensor,
    mask_id: int,
    law: Truncation,
    settings: Denoise,
    logits_of: LogitsOf,
    wrong_of: WrongOf | None,
    generator: torch.Generator,
) -> Frames:
    """Fill in the masked positions of B padded texts in `settings.steps` steps; `wrong_of` is read for "critic" alone.

    A row has 2 steps - 1 random numbers per editable position, drawn up front; with one step they are those of single-step
    sampling. What a row becomes depends on the other rows by the place of its numbers in the stream, and not otherwise.
    """
    editable_BL = start_BL == mask_id
    rank_BL = editable_BL.cumsum(-1) - 1
    count_B = editable_BL.sum(-1)
    uniform_BDT = torch.rand(len(start_BL), 2 * settings.steps - 1, int(count_B.max()), generator=generator)
    ids_BL, confidence_BL = start_BL.clone(), torch.full(start_BL.shape, torch.nan)
    seen = [(ids_BL.clone(), confidence_BL.clone())]
    for step in range(settings.steps):
        at = (ids_BL == mask_id).nonzero(as_tuple=True)
        if len(at[0]):
            uniform_M = uniform_BDT[at[0], 2 * step, rank_BL[at]]
            ids_BL[at], confidence_BL[at] = draw(logits_of(ids_BL, length_B, *at), law, uniform_M)
        seen.append((ids_BL.clone(), confidence_BL.clone()))
        if step == settings.steps - 1:
            break
        uniform_BL = uniform_BDT[:, 2 * step + 1].gather(1, rank_BL.clamp(min=0))
        doubt_BL = _doubt(settings, ids_BL, length_B, confidence_BL, wrong_of)
        chance = 1.0 if doubt_BL is None else settings.randomness_strength
        priority_BL = chance * uniform_BL + (0.0 if doubt_BL is None else (1 - chance) * doubt_BL)
        again_BL = highest(priority_BL, editable_BL, (settings.ratios[step] * count_B.double()).round().long())
        ids_BL[again_BL], confidence_BL[again_BL] = mask_id, torch.nan
        seen.append((ids_BL.clone(), confidence_BL.clone()))
    return Frames(torch.stack([i.int() for i, _ in seen]), torch.stack([c.half() for _, c in seen]))


def draw(logits_MV: Tensor, law: Truncation, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens int64 [M], their probabilities float32 [M]) on the CPU, as single-step sampling draws them."""
    prob_MV = categorical.log_probs(logits_MV, law).exp()
    token_M = categorical.invert(prob_MV, uniform_M.to(prob_MV.device))
    return token_M.cpu(), prob_MV.gather(-1, token_M[:, None])[:, 0].cpu()


def _doubt(
    settings: Denoise, ids_BL: Tensor, length_B: Tensor, confidence_BL: Tensor, wrong_of: WrongOf | None
) -> Tensor | None:
    """[B, L] in [0, 1], anything outside the editable positions; None where nothing but chance decides."""
    if settings.remask == "random":
        return None
    if settings.remask == "confidence":
        return 1 - confidence_BL
    assert wrong_of is not None, "remask=critic without a critic"
    return wrong_of(ids_BL, length_B)


def highest(priority_BL: Tensor, allowed_BL: Tensor, count_B: Tensor) -> Tensor:
    """bool [B, L]: the `count_B` allowed positions of highest priority in each row; of equals the first.

    `count_B` is at most the number of allowed positions.
    """
    order_BL = priority_BL.masked_fill(~allowed_BL, -torch.inf).argsort(stable=True, dim=-1, descending=True)
    chosen_BL = torch.arange(order_BL.shape[1])[None] < count_B[:, None]
    return torch.zeros_like(allowed_BL).scatter(1, order_BL, chosen_BL)
