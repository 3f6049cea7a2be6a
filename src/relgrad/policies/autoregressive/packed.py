"""From rollouts of the autoregressive policy to one flat row of tokens: which tokens, in which layout, scored where."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.laws import tiled
from relgrad.networks.causal import shared_prompt


@dataclass(frozen=True)
class Packed:
    """The rows that some cells need, as one flat row of tokens, and where each cell's hidden state lies in it."""

    token_N: Tensor
    layout: shared_prompt.PackedLayout
    hidden_N: Tensor
    target_N: Tensor
    support: tiled.Support | None

    @staticmethod
    def of(rollouts: Rollouts, cells_N2: Tensor, device: torch.device) -> Packed:
        trace, group_B = rollouts.trace, rollouts.group_B
        row_N, step_N = cells_N2[:, 0], cells_N2[:, 1]
        # a row's tokens are needed up to the one before its last chosen decision
        needed_B = torch.zeros(rollouts.rows, dtype=torch.int64).scatter_reduce(0, row_N, step_N, "amax")
        rows = row_N.unique()
        rows = rows[group_B[rows].argsort(stable=True)]
        prompts, row_prompt = group_B[rows].unique_consecutive(return_inverse=True)
        prompt_length_G = trace["prompt_length_G"]
        start_G = prompt_length_G.cumsum(0) - prompt_length_G
        length = needed_B[rows]
        layout = shared_prompt.PackedLayout(
            prompt_length_G[prompts].tolist(), length.tolist(), row_prompt.tolist(), device
        )
        prompt_index = start_G[prompts].repeat_interleave(prompt_length_G[prompts]) + layout.prompts.position.cpu()
        width = trace["token_BT"].shape[1]
        token_index = rows.repeat_interleave(length) * width + layout.completions.position.cpu()
        token_N = torch.cat([trace["prompt_ids"][prompt_index], trace["token_BT"].flatten()[token_index]]).long()
        # decision t of a row is predicted at its token t-1; decision 0 at the last token of the prompt
        first_of_row = torch.zeros(rollouts.rows, dtype=torch.int64)
        first_of_row[rows] = layout.prompts.total + length.cumsum(0) - length
        last_of_prompt = torch.zeros(rollouts.rows, dtype=torch.int64)
        last_of_prompt[rows] = (prompt_length_G[prompts].cumsum(0) - 1)[row_prompt]
        hidden_N = torch.where(step_N == 0, last_of_prompt[row_N], first_of_row[row_N] + step_N - 1)
        support = None
        if "support_index" in trace:
            cell_of_BT = (rollouts.mask_BT.flatten().cumsum(0) - 1).view_as(rollouts.mask_BT)
            support = tiled.Support(trace["support_offset"], trace["support_index"]).take(cell_of_BT[row_N, step_N])
            support = tiled.Support(support.offset_N1.to(device), support.entry_M.to(device))
        target_N = trace["token_BT"][row_N, step_N].long()
        return Packed(token_N.to(device), layout, hidden_N.to(device), target_N.to(device), support)
