r"""The evidence lower bound of the random-order law, by random masks (LLaDA, Nie et al. 2025, arXiv:2502.09992).

    ELBO = E_k E_M [ L/k  sum_{i in M} log p(x_i | x with M masked) ],     k ~ U{1..L},  M one of the subsets of size k

Its expectation is the mean, over all orders, of log p along the order: at most log pi of the sampler that reveals one position a
step in random order. For other samplers it is a surrogate. `samples` masks are averaged; with `stratified` their sizes are spread
evenly over 1..L, each still uniform; with `antithetic` every mask comes with its complement, and k is drawn so that each half is
unbiased (ESPO, arXiv:2512.03759): k ~ U{0..L}, weights (L+1)/k and (L+1)/(L-k). The weights of such a pair add up to L+1 in most
draws and to half of it where one half is empty, while those of a single mask always add up to L.

A decision is the whole text. `per: token` divides it by L: then ratios are ESPO's exp(Delta/L), and its KL is divided by L too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.randomness import Draws, uniform_at
from relgrad.core.settings import Strict
from relgrad.estimators.passes import Answers, Passes, Texts, as_one, random_subset, weighted_sums


class Elbo(Strict):
    """A recipe's `estimator` section of this kind, and the surrogate."""

    own_loss: ClassVar[str | None] = None
    per_token: ClassVar[bool] = False
    kind: Literal["elbo"] = "elbo"
    samples: int = Field(2, ge=1, description="masks of a text; with `antithetic`, pairs")
    stratified: bool = Field(True, description="spread the sizes of a text's masks evenly")
    antithetic: bool = Field(False, description="every mask with its complement")
    per: Literal["text", "token"] = Field("text", description="divide by the number of tokens, as ESPO's ratio does")

    @property
    def count(self) -> int:
        """See passes.Plan."""
        return self.samples * (2 if self.antithetic else 1)

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """See passes.Plan."""
        masked, weights = list[Tensor](), list[Tensor]()
        for mask_BE, size_B in random_masks(texts, draws, self.samples, self.stratified, smallest=not self.antithetic):
            halves = [(mask_BE, size_B)]
            if self.antithetic:
                halves.append((texts.written_BE & ~mask_BE, texts.length_B - size_B))
            for half_BE, half_B in halves:
                whole_B = texts.length_B + (1 if self.antithetic else 0)
                weight_B = whole_B / half_B.clamp(min=1) / self.count
                masked.append(half_BE | ~texts.written_BE)
                weights.append(half_BE * weight_B[:, None])
        weight_BKE = torch.stack(weights, 1)
        if self.per == "token":
            weight_BKE = weight_BKE / texts.length_B.clamp(min=1)[:, None, None]
        return Passes(torch.stack(masked, 1), weight_BKE)

    def decisions(self, positions: int) -> int:
        """See passes.Plan."""
        return 1

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """See passes.Plan."""
        decision_KE = as_one(self.count, answers.positions)
        return weighted_sums(logp_M, answers, decision_KE, 1)


def random_masks(
    texts: Texts, draws: Draws, samples: int, stratified: bool, smallest: bool
) -> list[tuple[Tensor, Tensor]]:
    """`samples` times (bool [B, E] masked positions of the text, int64 [B] how many); sizes are uniform over 1..L, or 0..L where
    not `smallest` is at least 1."""
    written_BE, length_B = texts.written_BE, texts.length_B
    each = len(written_BE) // max(len(draws), 1)
    sizes_B = length_B + (0 if smallest else 1)
    first_B = draws.rand(each).flatten(0, 1)
    masks = []
    for number in range(samples):
        own_B = draws.rand(each).flatten(0, 1)
        share_B = (first_B + number / samples) % 1 if stratified else own_B
        size_B = (share_B * sizes_B).long().clamp(max=(sizes_B - 1).clamp(min=0)) + int(smallest)
        size_B = torch.minimum(size_B, length_B)
        masks.append((random_subset(written_BE, size_B, uniform_at(texts.place_BE, draws)), size_B))
    return masks
