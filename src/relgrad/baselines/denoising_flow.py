r"""Advantage times denoising loss, as billy-enrizky/openbrowser-ai has it. It is no policy gradient, and kept to be compared with.

    score = -GKL,   GKL = mean_i l(p(. | x_t)_i, x_1^i, x_t^i),   i over the tokens of the finished text x_1
    KL    = mean_i KL( p(. | x_s)_i || p_ref(. | x_s)_i )

with l the generalised KL (models/flow_losses/generalised_kl.py, unbounded), t and s independent and uniform on [1e-4, 1 - 1e-4],
and x_t, x_s freshly noised from x_1: one of each per rollout, so that a row has one decision. With `loss_type: reinforce` and the
exact KL the loop's loss is the original's,

    L = mean_b( A_b GKL_b + beta KL_b ).

-GKL is one sample of a bound on log p(x_1), weighted by kappa' / (1 - kappa), which reaches 10^4. It is not the log-probability of
the steps that wrote x_1, and where A < 0, L has no lower bound. So the law is called "surrogate": its scores are no probabilities.

Sampling, files and supervised stages are those of policies/flow.py, so that runs go on from its folders and it from theirs. As
there, the prompt is clean: the original noises it here because its supervised training does so too. Dropout is off.

In a recipe: `policy: {kind: relgrad.baselines.denoising_flow, ...}` with flow's settings, and
`grpo: {loss_type: reinforce, beta: 0.05, kl_estimator: exact}`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from relgrad.core.types import CellScores, Prompt, Rollouts
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.flow import open as _flow_open
from relgrad.policies.flow import policy as flow
from relgrad.policies.flow.engine import Engine
from relgrad.policies.flow.open import Opened
from relgrad.policies.flow.supervised.generalised_kl import generalised_kl
from relgrad.policies.flow.supervised.noise_path import At, Noised
from relgrad.trajectories import states as _flow_states

MARGIN = 1e-4
"""Times lie so far from 0 and 1."""
DRAWS = 2
"""Noised copies of a text: one for the loss, one for the divergence."""


class Settings(flow.Settings):
    """Those of policies/flow.py; a rollout is always scored once and whole, so `train_steps` and `branch_steps` must stay out."""

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        for name in ("train_steps", "branch_steps"):
            if (count := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}={count}: this baseline scores the finished text and none of the steps that wrote it; leave it out"
                )
        return self


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> DenoisingPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = DenoisingPolicy(_flow_open.open_parts(settings, seed, start), settings)
    if reference:
        policy.freeze_reference()
    return policy


class DenoisingPolicy(flow.FlowPolicy):
    """See the module. Trace: a flow policy's, and for the two draws of every row `time_B2` and `noised_B2E`."""

    law: Literal["exact", "surrogate"] = "surrogate"

    def __init__(self, parts: Opened, settings: flow.Settings) -> None:
        super().__init__(parts, settings)
        self._plain = Engine(self.model, self.symbols, self.step_law, temperature=1.0)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator) -> Rollouts:
        """Trajectories as a flow policy draws them, then times and noise."""
        return self.noised(super().sample(prompts, group_size, generator), generator)

    @torch.no_grad()
    def noised(self, rollouts: Rollouts, generator: torch.Generator) -> Rollouts:
        """A flow policy's rollouts with the two draws, their steps put together to one decision. An empty text has none."""
        clean_BE, text_BE = self._text(rollouts.trace, torch.arange(rollouts.rows))
        draws = []
        for _ in range(DRAWS):
            uniform_B = torch.rand(rollouts.rows, generator=generator, dtype=torch.float64)
            time_B = MARGIN + (1 - 2 * MARGIN) * uniform_B
            draws.append(self.path.noise(clean_BE, torch.ones_like(text_BE), time_B, generator))
        drawn = {
            "time_B2": torch.stack([d.time_B for d in draws], 1),
            "noised_B2E": torch.stack([d.x_BL for d in draws], 1).to(rollouts.trace["start_BE"]),
        }
        length_B1, logp_B1 = text_BE.sum(-1, keepdim=True), torch.zeros(rollouts.rows, 1)
        rollouts = dataclasses.replace(
            rollouts,
            behaviour_logp_BT=logp_B1,
            mask_BT=length_B1 > 0,
            size_BT=length_B1,
            trace={**rollouts.trace, **drawn},
        )
        for cells_N2 in self.plan(rollouts, torch.arange(rollouts.rows), flow.ROWS):
            logp_B1[cells_N2[:, 0], 0] = self.score(rollouts, cells_N2).logp_N.cpu()
        return rollouts

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """-GKL of each row, and where asked its KL; the entropy is that of p(. | x_t), averaged as GKL is."""
        self.model.eval()
        if not len(cells_N2):  # of a row with an empty text
            nothing_N = torch.zeros(0, device=self.device)
            return CellScores(nothing_N, nothing_N if entropy else None, nothing_N if reference_kl else None)
        trace, row_N = rollouts.trace, cells_N2[:, 0]
        clean_NE, text_NE = self._text(trace, row_N)
        row_M, number_M = text_NE.nonzero(as_tuple=True)
        at, share_M = (row_M, number_M), (1 / text_NE.sum(-1).double())[row_M].to(self.device)

        def mean(value_M: Tensor) -> Tensor:
            zeros_N = torch.zeros(len(row_N), dtype=torch.float64, device=self.device)
            return zeros_N.index_add(0, row_M.to(self.device), value_M.double() * share_M).float()

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
        trace, steps = rollouts.trace, self.settings.sampling_steps
        time_N, state_NE = trace["time_B2"][row_N, draw], trace["noised_B2E"][row_N, draw].long()
        return self._plain.hidden(trace, rollouts.group_B[row_N], state_NE, (time_N * steps).float(), steps, at)

    def _text(self, trace: Mapping[str, Tensor], row_R: Tensor) -> tuple[Tensor, Tensor]:
        """(x_1: the text, then the end of sequence up to the end; True where the text is), both [R, E]."""
        final_RE = _flow_states.read(trace, row_R)[:, -1]
        text_RE = (final_RE == self.symbols.end_id).cumsum(-1) == 0
        return torch.where(text_RE, final_RE, self.symbols.end_id), text_RE

    def _denoising(
        self, hidden_MH: Tensor, current_M: Tensor, label_M: Tensor, time_M: Tensor, entropy: bool
    ) -> tuple[Tensor, ...]:
        """(generalised KL, entropy of p where asked), each [M]."""
        logits_MV = self._plain.logits(hidden_MH)
        number_M = torch.arange(len(hidden_MH), device=self.device)
        every = Noised(current_M[:, None], time_M, (number_M, torch.zeros_like(number_M)), current_M, label_M)
        loss_M = generalised_kl(logits_MV, every, self.path, math.inf)
        if not entropy:
            return (loss_M,)
        log_MV = logits_MV.detach().log_softmax(-1)
        return loss_M, -(log_MV.exp() * torch.where(log_MV.isfinite(), log_MV, 0.0)).sum(-1)

    def _divergence(self, hidden_MH: Tensor, start_MH: Tensor, current_M: Tensor) -> tuple[Tensor]:
        """([M]: KL(p || p_ref), 0 at positions that never change again,)."""
        with torch.no_grad(), self.reference():
            start_MV = self._plain.logits(start_MH).log_softmax(-1)
        kl_M = categorical_kl(self._plain.logits(hidden_MH).log_softmax(-1), start_MV)
        return (torch.where(self.step_law.live(current_M), kl_M, 0.0),)
