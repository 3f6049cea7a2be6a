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
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.randomness import Draws, uniform_at
from relgrad.core.settings import Strict
from relgrad.laws import categorical
from relgrad.laws.categorical import Truncation
from relgrad.trajectories.film import Frames

LogitsOf = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(ids_BL, length_B, row_M, position_M) -> logits [M, V], -inf for ids that are never written."""
WrongOf = Callable[[Tensor, Tensor], Tensor]
"""(ids_BL, length_B) -> probability [B, L] that the token at a position is wrong."""


class Denoise(Strict):
    """How a text is written in several steps; `masking_ratios` has a share for every step but the first, which fills all."""

    steps: int = Field(8, ge=1, le=10_000, description="forward passes; 1: all positions at once")
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


@torch.no_grad()
def denoise(
    start_BL: Tensor,
    length_B: Tensor,
    mask_id: int,
    law: Truncation,
    settings: Denoise,
    logits_of: LogitsOf,
    wrong_of: WrongOf | None,
    draws: Draws,
) -> Frames:
    """Fill in the masked positions of B padded texts in `settings.steps` steps; `wrong_of` is read for "critic" alone.

    `draws` are those of the prompts; the rows of a prompt stand together, equally many of each. Every step draws a number for every
    editable position of every row, and so does every masking again; with one step they are those of single-step sampling. What a
    row becomes does not depend on the other prompts.
    """
    editable_BL = start_BL == mask_id
    count_B = editable_BL.sum(-1)
    ids_BL, confidence_BL = start_BL.clone(), torch.full(start_BL.shape, torch.nan)
    frames = [(ids_BL.clone(), confidence_BL.clone())]
    for step in range(settings.steps):
        at = (ids_BL == mask_id).nonzero(as_tuple=True)
        uniform_BL = uniform_at(editable_BL, draws)
        if len(at[0]):
            ids_BL[at], confidence_BL[at] = draw(logits_of(ids_BL, length_B, *at), law, uniform_BL[at])
        frames.append((ids_BL.clone(), confidence_BL.clone()))
        if step == settings.steps - 1:
            break
        uniform_BL = uniform_at(editable_BL, draws)
        doubt_BL = _doubt(settings, ids_BL, length_B, confidence_BL, wrong_of)
        chance = 1.0 if doubt_BL is None else settings.randomness_strength
        priority_BL = chance * uniform_BL + (0.0 if doubt_BL is None else (1 - chance) * doubt_BL)
        again_BL = highest(priority_BL, editable_BL, (settings.ratios[step] * count_B.double()).round().long())
        ids_BL[again_BL], confidence_BL[again_BL] = mask_id, torch.nan
        frames.append((ids_BL.clone(), confidence_BL.clone()))
    return Frames(torch.stack([i.int() for i, _ in frames]), torch.stack([c.half() for _, c in frames]))


def draw(logits_MV: Tensor, law: Truncation, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens int64 [M], their probabilities float32 [M]) on the CPU, as single-step sampling draws them."""
    prob_MV = categorical.log_probs(logits_MV, law).exp()
    token_M = categorical.invert(prob_MV, uniform_M.to(prob_MV.device))
    return token_M.cpu(), prob_MV.gather(-1, token_M[:, None])[:, 0].float().cpu()


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
