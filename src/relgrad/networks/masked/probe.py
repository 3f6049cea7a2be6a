"""Whether a model of transformers really looks to both sides, asked of the model itself before it is used.

Architectures that do not attend through transformers' common interface never hear of what a position may see: they stay causal, or
look at padding, and everything else works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError

if TYPE_CHECKING:
    from relgrad.networks.masked.network import LibraryNetwork

LENGTH = 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Relative change of an output that rounding explains, where a row is computed beside a longer one."""


@torch.no_grad()
def require_both_sides(network: LibraryNetwork, name: str) -> None:
    """Raise RelgradError where a position does not see a later one of its block, or sees padding, or the model cannot run so."""
    length = LENGTH if network.block is None else network.block
    ids_1L = torch.arange(1, length + 1, device=network.device)[None] % network.vocabulary_size
    try:
        alone_1LH = _hidden(network, ids_1L, length)
        other_1L = ids_1L.clone()
        other_1L[0, -1] = (ids_1L[0, -1] + 1) % network.vocabulary_size
        changed = _hidden(network, other_1L, length)[0, 0] - alone_1LH[0, 0]
        longer_1L = torch.nn.functional.pad(ids_1L, (0, length), value=2 % network.vocabulary_size)
        beside_1LH = _hidden(network, longer_1L, length)[:, :length]
    except (ValueError, NotImplementedError, TypeError) as error:
        raise RelgradError(
            f"model {name!r}: {type(network.language_model).__name__} cannot attend to both sides: {error}"
        ) from error
    if length > 1 and not bool(changed.any()):
        raise RelgradError(
            f"model {name!r}: in {type(network.language_model).__name__} a position does not see what comes after it, so that it "
            "cannot fill in masks. Llama, Qwen, Phi, GPT-2 and others that attend through transformers' common interface can"
        )
    gap = float((beside_1LH - alone_1LH).abs().max() / alone_1LH.abs().max().clamp(min=1e-6))
    if gap > TOLERANCE[alone_1LH.dtype]:
        raise RelgradError(
            f"model {name!r}: {type(network.language_model).__name__} looks at padding (its outputs change by {gap:.2g} beside a "
            "longer text), so that what it says would depend on the batch. Llama, Qwen, Phi, GPT-2 and others that attend through "
            "transformers' common interface do not"
        )


def _hidden(network: LibraryNetwork, ids_1L: Tensor, valid: int) -> Tensor:
    """[1, L, H]: the outputs for a row of which the first `valid` positions are text."""
    valid_1L = torch.arange(ids_1L.shape[1], device=ids_1L.device)[None] < valid
    return network.outputs(ids_1L, valid_1L)
