"""The engine of the shared prompt: a prompt is computed once for its whole group, in drawing (decode.py) and in scoring.

For architectures that run on the shared-prompt attention (choose.py finds out). Scoring packs all rows without padding; the
vocabulary's distribution is never whole in memory (laws/tiled.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relgrad.core.types import CellScores, Rollouts
from relgrad.laws import tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal import decode, shared_prompt
from relgrad.networks.causal.decode import Generated
from relgrad.policies.autoregressive.engine import Reference, cut
from relgrad.policies.autoregressive.packed import Packed


class SharedEngine:
    """See engine.Engine. The model's attention must be shared_prompt.ATTENTION."""

    name = "shared"

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(
        self, prompts: Sequence[Tensor], per_prompt: int, law: Truncation, eos_ids: Tensor, uniform_BT: Tensor
    ) -> Generated:
        """See engine.Engine."""
        return decode.generate(
            self.model.get_decoder(), self._head(law), prompts, per_prompt,
            law=law, limit=uniform_BT.shape[1], eos_ids=eos_ids, uniform_BT=uniform_BT,
        )  # fmt: skip

    def score(
        self,
        rollouts: Rollouts,
        cells_N2: Tensor,
        law: Truncation,
        *,
        entropy: bool = False,
        reference: Reference | None = None,
    ) -> CellScores:
        """See engine.Engine. The entropy comes at no extra cost."""
        packed = Packed.of(rollouts, cells_N2, self.model.device)
        hidden_NH, head = self._hidden(packed), self._head(law)
        logp_N, entropy_N = tiled.log_probs(hidden_NH, head, packed.target_N, support=packed.support)
        kl_N = None
        if reference is not None:
            with torch.no_grad(), reference.weights:
                reference_NH, reference_head = self._hidden(packed), self._head(reference.law)
                # detached, these are the start's own tensors; the parameters themselves get their weights back
                bias = reference_head.bias_V
                reference_head = reference_head._replace(
                    weight_VH=reference_head.weight_VH.detach(), bias_V=None if bias is None else bias.detach()
                )
            kl_N = tiled.reference_kl(hidden_NH, head, reference_NH, reference_head, packed.support)
        return CellScores(logp_N, entropy_N if entropy else None, kl_N)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """See engine.Engine. Attention pads prompts to the longest prompt, completions to the longest completion.

        A prompt counts once in a chunk, however many of its rows are there.
        """
        group_B, mask_BT = rollouts.group_B, rollouts.mask_BT
        # a row's tokens are needed up to the one before its last decision
        needed_B = (mask_BT * torch.arange(mask_BT.shape[1])).amax(-1)
        prompt_B = rollouts.trace["prompt_length_G"][group_B]

        def tokens(rows: Tensor) -> Tensor:
            groups = group_B[rows]
            prompts = torch.ones_like(groups)
            prompts[1:] = groups[1:] != groups[:-1]
            count = torch.arange(1, len(rows) + 1)
            prompt_width, width = prompt_B[rows].cummax(0).values, needed_B[rows].cummax(0).values
            return prompts.cumsum(0) * prompt_width + count * width

        rows = rows[mask_BT[rows].any(-1)].sort().values
        rows = rows[group_B[rows].argsort(stable=True)]
        return [rollouts.cells(stretch) for stretch in cut(rows, budget, tokens)]

    def _hidden(self, packed: Packed) -> Tensor:
        """The final hidden states [N, H] that predict the chosen cells."""
        flat = shared_prompt.hidden_states(
            self.model.get_decoder(), packed.token_N, packed.layout.position_N, packed.layout
        )
        return flat.index_select(0, packed.hidden_N)

    def _head(self, law: Truncation) -> tiled.Head:
        layer = self.model.get_output_embeddings()
        return tiled.Head(layer.weight, getattr(layer, "bias", None), law.temperature)
