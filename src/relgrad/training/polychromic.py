r"""A set-level objective beside the supervised loss: the diversity of what the policy writes.

    L = CE(targets) - lambda E[D],       grad E[D] by leave-one-out credit, see objectives/diversity.py

Every `every` steps the policy writes K completions of some of the step's prompts; their log-probabilities, weighted by their
credit, are differentiated. lambda = 0 draws nothing and is supervised training, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Policy
from relgrad.core.randomness import Draws, generator
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Example, Rollouts
from relgrad.objectives.diversity import leave_one_out, mean_distance
from relgrad.training.optimizer import require_finite


class PolychromicSettings(Strict):
    """A recipe's `polychromic` section. `n` is of the n-grams of words; `encoder` of embeddings."""

    weight: float = Field(0.3, ge=0, description="lambda: nats per target token that one unit of diversity is worth")
    every: int = Field(1, ge=1, description="steps from one set of completions to the next")
    num_prompts: int = Field(
        4, ge=1, description="prompts of a step that completions are written for; at most its examples"
    )
    num_generations: int = Field(4, ge=2, description="K, completions per prompt")
    distance: Literal["ngram", "embedding"] = "ngram"
    n: int = Field(2, ge=1, description="words of an n-gram")
    encoder: Annotated[str | None, NamesFiles()] = Field(
        None, description="folder of the encoder of embeddings; null: all-MiniLM-L6-v2"
    )
    micro_batch_tokens: int = Field(8192, ge=1, description="memory budget of one scoring chunk, in tokens")


class SetDiversity:
    """The term of one recipe; a `Beside` of training/sft.py. Randomness depends on (seed, step, prompt) only.

    distances  texts [K] to their distances [K, K], float64, symmetric

    Raises RelgradError for a policy that scores by a surrogate.
    """

    def __init__(
        self,
        policy: Policy,
        settings: PolychromicSettings,
        distances: Callable[[Sequence[str]], Tensor],
        *,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        if policy.law == "surrogate":
            raise RelgradError(
                "polychromic with a policy that scores by a surrogate: its values are no log-probabilities, and the weight would "
                "mean something else. Use the policy's exact law (policy.estimator.kind=exact)"
            )
        self.policy, self.settings, self.distances, self.seed, self.ranks = policy, settings, distances, seed, ranks

    def __call__(self, step: int, examples: Sequence[Example], scale: float) -> dict[str, float]:
        """Add `scale` times this process's share of the gradient of -lambda D to .grad; figures of the whole step.

        Raises NonFinite where the loss is no number.
        """
        settings = self.settings
        if not settings.weight or step % settings.every:
            return {}
        started = time.perf_counter()
        prompts = [example.prompt for example in examples[: settings.num_prompts]]
        share = self.ranks.share(len(prompts))
        draws = Draws.of(generator(self.seed, "polychromic", step), len(prompts))
        sums = torch.zeros(3, dtype=torch.float64)
        if len(share):
            own = prompts[share.start : share.stop]
            with torch.no_grad():
                rollouts = self.policy.sample(own, settings.num_generations, draws.part(share.start, len(own)))
            credit_B, diversity = self.credit(rollouts)
            rows = len(prompts) * settings.num_generations
            loss = self._climb(rollouts, credit_B, scale * settings.weight / rows)
            sums += torch.tensor([diversity, float((rollouts.size_BT * rollouts.mask_BT).sum()), loss / scale])
        diversity, tokens, loss = self.ranks.sum(sums).tolist()
        require_finite(torch.tensor(loss), "the loss of diversity", step)
        return {
            "diversity": diversity / len(prompts),
            "diversity/mean_length": tokens / (len(prompts) * settings.num_generations),
            "time/diversity": time.perf_counter() - started,
        }

    def credit(self, rollouts: Rollouts) -> tuple[Tensor, float]:
        """(credit [B] of every row, the sum of the prompts' diversities)."""
        credit_B, total = torch.zeros(rollouts.rows), 0.0
        for group in range(len(rollouts.prompts)):
            rows = (rollouts.group_B == group).nonzero()[:, 0]
            distance_KK = self.distances([rollouts.outputs[row].text for row in rows.tolist()])
            credit_B[rows] = leave_one_out(distance_KK).float()
            total += float(mean_distance(distance_KK))
        return credit_B, total

    def _climb(self, rollouts: Rollouts, credit_B: Tensor, factor: float) -> float:
        """Differentiate -factor x sum of credit x log pi, chunk by chunk; rows without credit are not computed. The loss."""
        total, weight = 0.0, rollouts.stands_for * factor
        rows = (credit_B != 0).nonzero()[:, 0]
        for cells_N2 in self.policy.plan(rollouts, rows, self.settings.micro_batch_tokens) if len(rows) else ():
            logp_N = self.policy.score(rollouts, cells_N2).logp_N
            loss = -weight * (credit_B[cells_N2[:, 0]].to(logp_N.device) * logp_N).sum()
            loss.backward()
            total += float(loss.detach())
        return total
