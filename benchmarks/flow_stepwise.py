"""The straightforward way of one Flow-GRPO update: one step of one trajectory at a time, logits at every position.

Written from a description of what billy-enrizky/openbrowser-ai (infra/training/flow_matching) does in one update, on relgrad's
network and law, so that both ways share every kernel:

    x_1L      prompt and noise of one rollout, S times through the network; after each step two dense states are kept
    p_1LV     softmax at all L positions, prompt included; x_1 ~ multinomial at all of them; editable ones move to it with
              probability 1 - e
    logp      log(e + (1 - e) p_c) where a position stayed, log((1 - e) p_v) where it moved, summed over editable positions
    L         -A logp + beta k3(logp, logp_ref), one backward pass per step and rollout; logp_ref by a second network

e is the stay factor of laws/ctmc.py's kernel `mixture`. Left out because they only cost time there: rows filled up to the network's
length, one-hot rates, guards against NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.laws.schedule import Scheduler
from relgrad.networks.fsdfm.network import DiT
from relgrad.objectives.divergences import k3

MAX_GRAD_NORM = 1.0
ScoreRows = Callable[[Tensor], Tensor]
"""Written ids [G, E] -> rewards [G]."""


class Step(NamedTuple):
    """A step as it is kept: its number, and all ids before and after it, [1, L] each."""

    number: int
    before_1L: Tensor
    after_1L: Tensor


class Stepwise:
    """`update` is one optimizer step: AdamW without weight decay, gradients clipped to norm MAX_GRAD_NORM.

    excluded_V   True for ids that are never written
    steps        S
    positions    E, written behind every prompt
    """

    def __init__(
        self,
        model: DiT,
        reference: DiT,
        excluded_V: Tensor,
        score: ScoreRows,
        *,
        mask_id: int | None,
        steps: int,
        positions: int,
        copies: int,
        beta: float,
        learning_rate: float,
    ) -> None:
        self.model, self.reference, self.excluded_V, self.reward = model.eval(), reference.eval(), excluded_V, score
        self.steps, self.positions, self.copies, self.beta = steps, positions, copies, beta
        self.mask_id = mask_id
        times_S = torch.arange(steps, dtype=torch.float64) / steps
        self.stay_S = Scheduler().stay_factor(times_S, 1 / steps).tolist()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    def update(self, prompts: Sequence[Sequence[int]]) -> None:
        """One step on these prompts' ids."""
        rollouts = len(prompts) * self.copies
        for ids in prompts:
            group = [self.trajectory(ids) for _ in range(self.copies)]
            written_GE = torch.cat([steps[-1].after_1L[:, len(ids) :] for steps in group])
            advantage_G = self.credit(self.reward(written_GE)).tolist()
            for steps, advantage in zip(group, advantage_G, strict=True):
                for step in steps:
                    (self.loss(step, len(ids), advantage) / rollouts).backward()
        self.apply()

    def credit(self, reward_G: Tensor) -> Tensor:
        """Advantages [G]: centred in the group."""
        return reward_G - reward_G.mean()

    @torch.no_grad()
    def trajectory(self, ids: Sequence[int]) -> list[Step]:
        """One rollout, step by step."""
        source = (~self.excluded_V).nonzero()[:, 0] if self.mask_id is None else torch.tensor([self.mask_id])
        noise = source[torch.randint(len(source), (self.positions,))]
        x_1L = torch.cat([torch.tensor(ids), noise])[None]
        editable_1L = torch.arange(x_1L.shape[1])[None] >= len(ids)
        kept = []
        for number in range(self.steps):
            p_LV = self.probabilities(self.model, x_1L, number)
            drawn_1L = torch.multinomial(p_LV, 1).T
            moves_1L = editable_1L & self.live(x_1L) & (torch.rand(x_1L.shape) < 1 - self.stay_S[number])
            before_1L, x_1L = x_1L.clone(), torch.where(moves_1L, drawn_1L, x_1L)
            kept.append(Step(number, before_1L, x_1L.clone()))
        return kept

    def probabilities(self, network: DiT, x_1L: Tensor, number: int) -> Tensor:
        """[L, V] at every position."""
        time_1 = torch.tensor([number / self.steps])
        logits_LV = network.logits(network.hidden(x_1L, time_1)[0])
        return torch.softmax(logits_LV.masked_fill(self.excluded_V, -torch.inf), -1)

    def logp(self, network: DiT, step: Step, prompt: int) -> Tensor:
        """Log-probability of a step, a scalar in nats."""
        p_LV = self.probabilities(network, step.before_1L, step.number)
        before_L, after_L, stay = step.before_1L[0], step.after_1L[0], self.stay_S[step.number]
        current_L = p_LV.gather(-1, before_L[:, None])[:, 0]
        moved_L = (1 - stay) * p_LV.gather(-1, after_L[:, None])[:, 0]
        chance_L = torch.where(before_L == after_L, stay + (1 - stay) * current_L, moved_L)
        chance_L = torch.where(self.live(before_L), chance_L, 1.0)
        return chance_L[prompt:].log().sum()

    def live(self, ids: Tensor) -> Tensor:
        """Where ids may still change: everywhere, or at masks."""
        return torch.ones_like(ids, dtype=torch.bool) if self.mask_id is None else ids == self.mask_id

    def loss(self, step: Step, prompt: int, advantage: float) -> Tensor:
        """The module's L of one step."""
        logp = self.logp(self.model, step, prompt)
        loss = -advantage * logp
        if self.beta:
            with torch.no_grad():
                reference = self.logp(self.reference, step, prompt)
            loss = loss + self.beta * k3(logp, reference)
        return loss

    def apply(self) -> None:
        """Clip and apply the gradients, then clear them."""
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
