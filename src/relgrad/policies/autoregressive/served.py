"""Completions that a server wrote for the policy: what it can be asked for, and what it wrote as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.errors import RelgradError
from relgrad.core.types import Written
from relgrad.networks.causal.adapted import is_adapted
from relgrad.networks.causal.decode import Generated
from relgrad.policies.autoregressive.settings import Settings


def require_servable(model: Any, settings: Settings) -> None:
    """Raise RelgradError for a policy whose completions no server can write."""
    if not is_adapted(model):
        raise RelgradError(
            "grpo.remote: a server is given the policy's weights as an adapter, and this policy trains all of them "
            "(policy.lora: null). Add a lora section, or leave grpo.remote out"
        )
    if settings.top_p < 1 or settings.top_k:
        raise RelgradError(
            f"grpo.remote with policy.top_p={settings.top_p:g} and policy.top_k={settings.top_k}: a server does not say which "
            "tokens it could have drawn, so that what it wrote cannot be scored. Set "
            "top_p to 1 and top_k to 0, or leave grpo.remote out"
        )


def generated_elsewhere(rows: Sequence[Written]) -> Generated:
    """What was written, padded to its longest row. No truncated support: every token could be drawn."""
    token_BT = pad_sequence([torch.tensor(row.ids, dtype=torch.int64) for row in rows], batch_first=True)
    logp_BT = pad_sequence([torch.tensor(row.logp, dtype=torch.float32) for row in rows], batch_first=True)
    length_B, ended_B = torch.tensor([len(row.ids) for row in rows]), torch.tensor([row.ended for row in rows])
    return Generated(token_BT, logp_BT, length_B, ended_B, None)
