r"""Advantage times denoising loss, as billy-enrizky/openbrowser-ai has it. It is no policy gradient, and kept to be compared with.

    score = -GKL,   GKL = mean_i l(p(. | x_t)_i, x_1^i, x_t^i),   i over the tokens of the finished text x_1
    KL    = mean_i KL( p(. | x_s)_i || p_ref(. | x_s)_i )

with l the generalised KL (flow/supervised/generalised_kl.py, unbounded), t and s independent and uniform on [1e-4, 1 - 1e-4],
and x_t, x_s freshly noised from x_1: one of each per rollout, so that a row has one decision. With `loss_type: reinforce` and the
exact KL the loop's loss is the original's,

    L = mean_b( A_b GKL_b + beta KL_b ).

-GKL is one sample of a bound on log p(x_1), weighted by kappa' / (1 - kappa), which reaches 10^4. It is not the log-probability of
the steps that wrote x_1, and where A < 0, L has no lower bound. So the law is called "surrogate": its scores are no probabilities.

Sampling, files and supervised stages are those of policies/flow/, so that runs go on from its folders and it from theirs. As
there, the prompt is clean: the original noises it here because its supervised training does so too. Dropout is off.

In a recipe: `policy: {kind: relgrad.baselines.denoising_flow, ...}` with flow's settings, and
`grpo: {loss_type: reinforce, beta: 0.05, kl_estimator: exact}`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Example, Prompt, Rollouts, SupervisedLoss
from relgrad.estimators.exact import summed
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.flow import settings as flow_settings
from relgrad.policies.flow.engine import Engine
from relgrad.policies.flow.open import open_parts
from relgrad.policies.flow.options import SAMPLE_OPTIONS
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.steps import ROWS
from relgrad.policies.flow.supervised.generalised_kl import generalised_kl
from relgrad.policies.flow.supervised.noise_path import At, Noised
from relgrad.trajectories.states import unpack_states

__all__ = ["SAMPLE_OPTIONS", "DenoisingPolicy", "Settings", "build"]

MARGIN = 1e-4
"""Times lie so far from 0 and 1."""
DRAWS = 2
"""Noised copies of a text: one for the loss, one for the divergence."""


class Settings(flow_settings.Settings):
    """Those of policies/flow/; a rollout is always scored once and whole, so `train_steps` and `branch_steps` must stay out."""

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        for name, count in (("train_steps", self.train_steps), ("branch_steps", self.branch_steps)):
            if count is not None:
                raise ValueError(
                    f"{name}={count}: this baseline scores the finished text and none of the steps that wrote it; leave it out"
                )
        return self


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> DenoisingPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = DenoisingPolicy(FlowPolicy(open_parts(settings, seed, start), settings))
    if reference:
        policy.freeze_reference()
    return policy


class DenoisingPolicy:
    """See the module. A flow policy writes, and keeps the weights; this one scores.

    Trace: a flow policy's, and for the two draws of every row `time_B2` and `noised_B2E`.
    """

    law: Literal["exact", "surrogate"] = "surrogate"
    max_decisions = 1
    costly_entropy: ClassVar[Literal[True]] = True

    def __init__(self, flow: FlowPolicy) -> None:
        self.flow, self.version = flow, 0
        self._plain = Engine(flow.model, flow.symbols, flow.engine.law, temperature=1.0)

    # ------------------------------------------------------------------ what the flow policy does

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        return self.flow.facts

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """The steps in which texts come about; see FlowPolicy."""
        return self.flow.film(prompts, group_size, randomness)

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """See FlowPolicy."""
        return self.flow.supervised_loss(examples, randomness)

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.flow.parameters()

    def after_update(self) -> None:
        """Take the weights of this moment into their moving average, where one is kept."""
        self.flow.after_update()

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside, texts are written as a flow policy is judged and used."""
        return self.flow.evaluation()

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self.flow.freeze_reference()

    def reference(self) -> AbstractContextManager[None]:
        """Score with the frozen start."""
        return self.flow.reference()

    def save(self, folder: Path) -> None:
        """A flow policy's folder."""
        self.flow.save(folder)

    def load(self, folder: Path) -> None:
        """Read a flow policy's folder. Raises RelgradError for another network, vocabulary or process."""
        self.flow.load(folder)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """See FlowPolicy: every cell is a row of the forward pass."""
        return self.flow.plan(rollouts, rows, budget)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """Trajectories as a flow policy draws them, then times and noise."""
        draws = Draws.of(randomness, len(prompts))
        return self.noised(self.flow.sample(prompts, group_size, draws), draws)

    @torch.no_grad()
    def noised(self, rollouts: Rollouts, draws: Draws) -> Rollouts:
        """A flow policy's rollouts with the two draws, their steps put together to one decision. An empty text has none.

        `draws` are those of the prompts, whose rows stand together, equally many of each.
        """
        path, each = self.flow.path, rollouts.rows // len(draws)
        clean_BE, text_BE = self._text(rollouts.trace, torch.arange(rollouts.rows))
        drawn = []
        for _ in range(DRAWS):
            uniform_B = draws.rand(each, dtype=torch.float64).flatten()
            time_B = MARGIN + (1 - 2 * MARGIN) * uniform_B
            drawn.append(path.noise(clean_BE, torch.ones_like(text_BE), time_B, draws))
        both = {
            "time_B2": torch.stack([d.time_B for d in drawn], 1),
            "noised_B2E": torch.stack([d.x_BL for d in drawn], 1).to(rollouts.trace["start_BE"]),
        }
        length_B1, logp_B1 = text_BE.sum(-1, keepdim=True), torch.zeros(rollouts.rows, 1)
        rollouts = dataclasses.replace(
            rollouts,
            behaviour_logp_BT=logp_B1,
            mask_BT=length_B1 > 0,
            size_BT=length_B1,
            policy_version=self.version,
            trace={**rollouts.trace, **both},
        )
        for cells_N2 in self.plan(rollouts, torch.arange(rollouts.rows), ROWS):
            logp_B1[cells_N2[:, 0], 0] = self.score(rollouts, cells_N2).logp_N.cpu()
        return rollouts

    # ------------------------------------------------------------------ scoring

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """-GKL of each row, and where asked its KL; the entropy is that of p(. | x_t), averaged as GKL is."""
        self.flow.model.eval()
        if not len(cells_N2):  # of a row with an empty text
            nothing_N = torch.zeros(0, device=self._plain.device)
            return CellScores(nothing_N, nothing_N if entropy else None, nothing_N if reference_kl else None)
        trace, row_N = rollouts.trace, cells_N2[:, 0]
        clean_NE, text_NE = self._text(trace, row_N)
        row_M, number_M = text_NE.nonzero(as_tuple=True)
        at, share_M = (row_M, number_M), (1 / text_NE.sum(-1).double())[row_M].to(self._plain.device)

        def mean(value_M: Tensor) -> Tensor:
            return summed(value_M.double() * share_M, row_M, len(row_N)).float()

        columns = (trace["noised_B2E"][row_N, 0][at].long(), clean_NE[at], trace["time_B2"][row_N, 0][row_M], entropy)
        loss_M, *entropy_M = self._plain.by_pieces(self._denoising, self._hidden(rollouts, row_N, 0, at), *columns)
        kl_N = None
        if reference_kl:
            hidden_MH, current_M = self._hidden(rollouts, row_N, 1, at), trace["noised_B2E"][row_N, 1][at].long()
            with torch.no_grad(), self.reference():
                start_MH = self._hidden(rollouts, row_N, 1, at)
            (kl_M,) = self._plain.by_pieces(self._divergence, hidden_MH, start_MH, current_M)
            kl_N = mean(kl_M)
        return CellScores(-mean(loss_M), mean(entropy_M[0]) if entropy else None, kl_N)

    def _hidden(self, rollouts: Rollouts, row_N: Tensor, draw: int, at: At) -> Tensor:
        """[M, H]: what the network says at `at` of one of the rows' two noised texts. A student is told the sampler's step."""
        trace, steps = rollouts.trace, self.flow.settings.sampling_steps
        time_N, state_NE = trace["time_B2"][row_N, draw], trace["noised_B2E"][row_N, draw].long()
        return self._plain.hidden(trace, rollouts.group_B[row_N], state_NE, (time_N * steps).float(), steps, at)

    def _text(self, trace: Mapping[str, Tensor], row_R: Tensor) -> tuple[Tensor, Tensor]:
        """(x_1: the text, then the end of sequence up to the end; True where the text is), both [R, E]."""
        final_RE = unpack_states(trace, row_R)[:, -1]
        text_RE = (final_RE == self.flow.symbols.end_id).cumsum(-1) == 0
        return torch.where(text_RE, final_RE, self.flow.symbols.end_id), text_RE

    def _denoising(
        self, hidden_MH: Tensor, current_M: Tensor, label_M: Tensor, time_M: Tensor, entropy: bool
    ) -> tuple[Tensor, ...]:
        """(generalised KL, entropy of p where asked), each [M]."""
        logits_MV = self._plain.logits(hidden_MH)
        number_M = torch.arange(len(hidden_MH), device=self._plain.device)
        every = Noised(current_M[:, None], time_M, (number_M, torch.zeros_like(number_M)), current_M, label_M)
        loss_M = generalised_kl(logits_MV, every, self.flow.path, math.inf)
        if not entropy:
            return (loss_M,)
        log_MV = logits_MV.detach().log_softmax(-1)
        return loss_M, -(log_MV.exp() * torch.where(log_MV.isfinite(), log_MV, 0.0)).sum(-1)

    def _divergence(self, hidden_MH: Tensor, start_MH: Tensor, current_M: Tensor) -> tuple[Tensor]:
        """([M]: KL(p || p_ref), 0 at positions that never change again,)."""
        with torch.no_grad(), self.reference():
            start_MV = self._plain.logits(start_MH).log_softmax(-1)
        kl_M = categorical_kl(self._plain.logits(hidden_MH).log_softmax(-1), start_MV)
        return (torch.where(self._plain.law.live(current_M), kl_M, 0.0),)
