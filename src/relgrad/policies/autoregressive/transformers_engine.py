"""The engine of every other architecture: transformers' own generate() and forward, under the same law."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.types import CellScores, Rollouts
from relgrad.laws import categorical, tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal.decode import Generated
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.autoregressive.engine import Reference, cut


class TransformersEngine:
    """See engine.Engine. Nothing is asked of the model but that transformers can run it."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Tensor], per_prompt: int, law: Truncation, eos_ids: Tensor, uniform_BT: Tensor
    ) -> Generated:
        """See engine.Engine. A logits processor draws the token by our law and leaves `model.generate()` no choice."""
        from transformers import GenerationConfig, LogitsProcessorList

        pad = int(eos_ids[0])
        ids, attention = _left_padded([p for p in prompts for _ in range(per_prompt)], pad)
        drawn: list[tuple[Tensor, Tensor, Tensor | None]] = []

        def draw(_: Tensor, scores: Tensor) -> Tensor:
            token, logp, support = categorical.sample(scores, law, uniform_N=uniform_BT[:, len(drawn)])
            drawn.append((token, logp, support))
            return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

        # what a model's own generation config asks for (suppressed tokens, penalties, minimum lengths) is no part of the law
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            self.model.generate(
                ids, attention_mask=attention, max_new_tokens=uniform_BT.shape[1], do_sample=False, pad_token_id=pad,
                eos_token_id=eos_ids.tolist(), logits_processor=LogitsProcessorList([draw]),
            )  # fmt: skip
        finally:
            self.model.generation_config = own
        return _generated(drawn, eos_ids, law)

    def score(
        self,
        rollouts: Rollouts,
        cells_N2: Tensor,
        law: Truncation,
        *,
        entropy: bool = False,
        reference: Reference | None = None,
    ) -> CellScores:
        """See engine.Engine. One right-padded batch, the model's own logits at the chosen cells only."""
        row_N, step_N = cells_N2[:, 0], cells_N2[:, 1]
        support_NV = self._support(rollouts, row_N, step_N) if law.truncates else None
        target_N1 = rollouts.trace["token_BT"][row_N, step_N].long().to(self.model.device)[:, None]
        log_p_NV = categorical.log_probs(self._logits(rollouts, row_N, step_N), law, support_NV)
        entropy_N = None
        if entropy:
            entropy_N = -(log_p_NV.exp() * log_p_NV.masked_fill(log_p_NV == -torch.inf, 0.0)).sum(-1)
        kl_N = None
        if reference is not None:
            with torch.no_grad(), reference.weights:
                log_q_NV = categorical.log_probs(self._logits(rollouts, row_N, step_N), reference.law, support_NV)
            kl_N = categorical_kl(log_p_NV, log_q_NV)
        return CellScores(log_p_NV.gather(-1, target_N1)[:, 0], entropy_N, kl_N)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """See engine.Engine. Every row is padded, its prompt included, to the longest of the chunk: like beside like."""
        trace = rollouts.trace
        length_B = trace["prompt_length_G"][rollouts.group_B] + trace["length_B"] - 1

        def tokens(rows: Tensor) -> Tensor:
            return torch.arange(1, len(rows) + 1) * length_B[rows].cummax(0).values

        rows = rows[rollouts.mask_BT[rows].any(-1)]
        rows = rows[length_B[rows].argsort(stable=True)]
        return [rollouts.cells(stretch) for stretch in cut(rows, budget, tokens)]

    def _support(self, rollouts: Rollouts, row_N: Tensor, step_N: Tensor) -> Tensor:
        """bool [N, V]: what each chosen cell could draw when it was drawn."""
        cell_of_BT = (rollouts.mask_BT.flatten().cumsum(0) - 1).view_as(rollouts.mask_BT)
        support = tiled.Support(rollouts.trace["support_offset"], rollouts.trace["support_index"])
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        return support.take(cell_of_BT[row_N, step_N]).dense(0, len(row_N), vocabulary).to(self.model.device)

    def _logits(self, rollouts: Rollouts, row_N: Tensor, step_N: Tensor) -> Tensor:
        """Logits [N, V] that predict decision (row, step), from one padded forward over the rows concerned."""
        trace, device = rollouts.trace, self.model.device
        rows, index_N = row_N.unique(return_inverse=True)
        prompts = trace["prompt_ids"].long().split(trace["prompt_length_G"].tolist())
        row_prompts = [prompts[g] for g in rollouts.group_B[rows].tolist()]
        full = [
            torch.cat([p, trace["token_BT"][b, : int(trace["length_B"][b]) - 1].long()])
            for p, b in zip(row_prompts, rows.tolist(), strict=True)
        ]
        ids = pad_sequence(full, batch_first=True).to(device)
        attention = pad_sequence([torch.ones_like(f) for f in full], batch_first=True).to(device)
        at_N = torch.tensor([len(p) for p in row_prompts])[index_N] + step_N - 1
        # logits from the first chosen position on, where the model can leave the others out
        first, options = int(at_N.min()), {}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = ids.shape[1] - first
        logits_BLV = self.model(input_ids=ids, attention_mask=attention, use_cache=False, **options).logits
        at_N = at_N - (first if options else 0)
        return logits_BLV[index_N.to(device), at_N.to(device)]


def _left_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """The rows' ids and their attention mask, int64 [B, longest]."""
    longest, device = max(len(r) for r in rows), rows[0].device
    ids = torch.stack([torch.cat([r.new_full((longest - len(r),), pad), r]) for r in rows])
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return ids, (torch.arange(longest, device=device)[None] >= longest - lengths[:, None]).long()


def _generated(drawn: Sequence[tuple[Tensor, Tensor, Tensor | None]], eos_ids: Tensor, law: Truncation) -> Generated:
    """Step by step (tokens, log-probs, support), for all rows to the end, as rows that end where they drew an end."""
    token_BT = torch.stack([t for t, _, _ in drawn], 1)
    is_end = torch.isin(token_BT, eos_ids)
    ended_B = is_end.any(1)
    length_B = torch.where(ended_B, is_end.int().argmax(1) + 1, token_BT.shape[1])
    inside = torch.arange(token_BT.shape[1], device=token_BT.device)[None] < length_B[:, None]
    support = None
    if law.truncates:
        allowed_BTV = torch.stack([s for _, _, s in drawn if s is not None], 1)
        support = tiled.Support.pack(allowed_BTV[inside])
    logp_BT = torch.stack([p for _, p, _ in drawn], 1).float().masked_fill(~inside, 0.0)
    return Generated(token_BT.masked_fill(~inside, 0), logp_BT, length_B, ended_B, support)
