r"""REINFORCE on left-to-right log-probabilities of what ReFusion wrote otherwise, as billy-enrizky/openbrowser-ai first had it.

    l_i = log p(x_i | prompt, x_1 .. x_(i-1)),     L = mean_b( -A_b mean_i l_bi + beta mean_i k3(l_bi, l_bi of the reference) )

of the finished text x, read once from left to right without any mask, its first end of sequence included. ReFusion writes slots in
any order, the first token of each at a mask, later ones given the tokens of their slot. So this is the log-probability of
another sampler: it says nothing of which slots were chosen, no mask is in its input, and first tokens are asked for where no slot
begins. The law is called "surrogate".

Writing, files and supervised stages are those of policies/refusion/, so that runs go on from its folders and it from theirs.

In a recipe: `policy: {kind: relgrad.baselines.left_to_right, ...}` with refusion's settings, and
`grpo: {loss_type: grpo, beta: 0.04, use_bias_correction_kl: false}`: of fresh samples its gradient is the L above. By default k3 is
multiplied by the importance ratio, which is 1 there but has a gradient of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Randomness
from relgrad.core.types import CellScores, Example, Prompt, Rollouts, SupervisedLoss
from relgrad.laws import tiled
from relgrad.networks.refusion.layout import PADDING, PROMPT, Places
from relgrad.policies.refusion import settings as refusion_settings
from relgrad.policies.refusion.open import open_parts, settled
from relgrad.policies.refusion.options import SAMPLE_OPTIONS
from relgrad.policies.refusion.policy import RefusionPolicy
from relgrad.trajectories.plan import in_chunks

__all__ = ["SAMPLE_OPTIONS", "LeftToRightPolicy", "Settings", "build", "settled"]

TOKENS = 16_384
"""Tokens of one forward pass over texts that were just written."""


class Settings(refusion_settings.Settings):
    """Those of policies/refusion/; a text is always scored whole and without truncation."""

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if self.train_steps is not None:
            raise ValueError(
                f"train_steps={self.train_steps}: this baseline scores the finished text and none of the steps that wrote it; "
                "leave it out"
            )
        if self.top_p < 1:
            raise ValueError(f"top_p={self.top_p:g}: this baseline knows no truncated law; use top_p: 1")
        return self


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> LeftToRightPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = LeftToRightPolicy(RefusionPolicy(open_parts(settings, seed, start), settings))
    if reference:
        policy.freeze_reference()
    return policy


class LeftToRightPolicy:
    """See the module. A ReFusion policy writes, and keeps the weights; this one scores. A decision is a token of the text.

    Trace: a ReFusion policy's, and the text `text_BE`, int64 with -1 behind its end.
    """

    law: Literal["exact", "surrogate"] = "surrogate"
    costly_entropy: ClassVar[Literal[True]] = True

    def __init__(self, refusion: RefusionPolicy) -> None:
        self.refusion, self.version = refusion, 0
        self.max_decisions = refusion.settings.max_completion_length

    # ------------------------------------------------------------------ what the ReFusion policy does

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        return self.refusion.facts

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """The steps in which texts come about; see RefusionPolicy."""
        return self.refusion.film(prompts, group_size, randomness)

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """See RefusionPolicy."""
        return self.refusion.supervised_loss(examples, randomness)

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.refusion.parameters()

    def after_update(self) -> None:
        """Take the weights of this moment into their moving average, where one is kept."""
        self.refusion.after_update()

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside, texts are written as a ReFusion policy is judged and used."""
        return self.refusion.evaluation()

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self.refusion.freeze_reference()

    def reference(self) -> AbstractContextManager[None]:
        """Score with the frozen start."""
        return self.refusion.reference()

    def save(self, folder: Path) -> None:
        """A ReFusion policy's folder."""
        self.refusion.save(folder)

    def load(self, folder: Path) -> None:
        """Read a ReFusion policy's folder. Raises RelgradError for another network."""
        self.refusion.load(folder)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """Texts as a ReFusion policy writes them, with their left-to-right log-probabilities."""
        return self.as_texts(self.refusion.sample(prompts, group_size, randomness))

    @torch.no_grad()
    def as_texts(self, rollouts: Rollouts) -> Rollouts:
        """A ReFusion policy's rollouts with the tokens of their texts in place of its steps. What it decoded natively has none."""
        if "prompt_ids" not in rollouts.trace:
            return rollouts
        end = [self.refusion.encoder.end_id]
        texts = [
            [*o.ids, *(end if stop == "eos" else [])] for o, stop in zip(rollouts.outputs, rollouts.stop, strict=True)
        ]
        text_BE = pad_sequence(list(map(torch.tensor, texts)), batch_first=True, padding_value=-1).long()
        mask_BT = text_BE >= 0
        logp_BT = torch.zeros(mask_BT.shape)
        ready = dataclasses.replace(
            rollouts,
            behaviour_logp_BT=logp_BT,
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            policy_version=self.version,
            stands_for=1.0,
            trace={**rollouts.trace, "text_BE": text_BE},
        )
        for cells_N2 in self.plan(ready, torch.arange(ready.rows), TOKENS):
            logp_BT[tuple(cells_N2.T)] = self.score(ready, cells_N2).logp_N.float().cpu()
        return ready

    # ------------------------------------------------------------------ scoring

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Cells in order, all of a text together, in chunks of about `budget` tokens, prompts included."""
        cells_N2 = rollouts.cells(rows)
        if not len(cells_N2):
            return []
        row_R, count_R = torch.unique_consecutive(cells_N2[:, 0], return_counts=True)
        cost_R = count_R + rollouts.trace["prompt_length_G"][rollouts.group_B[row_R]]
        end_R = count_R.cumsum(0)
        chunks = in_chunks(torch.stack([end_R - count_R, end_R], 1), cost_R, budget)
        return [cells_N2[int(chunk[0, 0]) : int(chunk[-1, 1])] for chunk in chunks]

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """Log-probability of each token, nats. Raises RelgradError where entropy or the exact KL is wanted."""
        if entropy or reference_kl:
            what = "entropy (grpo.entropy_coef)" if entropy else "exact KL (grpo.kl_estimator=exact)"
            raise RelgradError(f"a surrogate has no {what}: leave it out, or use k2 or k3")
        refusion, trace = self.refusion, rollouts.trace
        refusion.modes.score(dropout=False)
        row_R, local_N = torch.unique(cells_N2[:, 0], return_inverse=True)
        prompt_G = trace["prompt_ids"].long().split(trace["prompt_length_G"].tolist())
        prompts = [prompt_G[group] for group in rollouts.group_B[row_R].tolist()]
        text_RE = trace["text_BE"][row_R]
        ids = [torch.cat([p, text_E[text_E >= 0]]) for p, text_E in zip(prompts, text_RE, strict=True)]
        token_RW = pad_sequence(ids, batch_first=True)
        position_RW = torch.arange(token_RW.shape[1]).expand(token_RW.shape)
        within_RW = position_RW < torch.tensor([len(row) for row in ids])[:, None]
        thread_RW = torch.where(within_RW, PROMPT, PADDING)  # one thread: plain causal attention
        places = Places(token_RW, position_RW, thread_RW, thread_RW, position_RW, within_RW)
        # the output at a place speaks for the next one
        before_N = torch.tensor([len(p) for p in prompts])[local_N] + cells_N2[:, 1] - 1
        hidden_RWH = refusion.network.hidden(places)
        hidden_NH = hidden_RWH[local_N.to(refusion.device), before_N.to(refusion.device)]
        head = refusion.network.head(refusion.laws.tokens.temperature)
        token_N = text_RE[local_N, cells_N2[:, 1]].to(refusion.device)
        return CellScores(tiled.log_probs(hidden_NH, head, token_N)[0].float())
