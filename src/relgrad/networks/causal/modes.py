"""Which layers are in training mode: dropout in supervised losses, recomputed activations where a gradient is taken.

Both are decided at the moment of use. A layer of transformers that recomputes its activations forgets its keys and values when it
does so, so it must not while completions are drawn; and its own training mode, which asks for it, also turns on the
dropout written into the layer's own forward, so the layer itself is run in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from relgrad.core.errors import RelgradError


class Modes:
    """Those of one model. Everything that is not named here is always in evaluation mode.

    A mode stays until the next is set, because a backward pass with gradient checkpointing runs the forward again.
    """

    def __init__(self, model: Any, *, recompute: bool) -> None:
        """`recompute` turns gradient checkpointing on. Raises RelgradError where the model does not support it."""
        self._dropout = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
        self._recomputed = _recomputed_layers(model) if recompute else []

    def draw(self) -> None:
        """For drawing completions: no dropout, nothing recomputed."""
        self._set(dropout=False, recompute=False)

    def score(self, *, dropout: bool) -> None:
        """For scoring: with or without dropout; activations recomputed where gradients are taken at this moment."""
        self._set(dropout=dropout, recompute=torch.is_grad_enabled())

    def _set(self, *, dropout: bool, recompute: bool) -> None:
        for layer in self._dropout:
            layer.training = dropout
        for layer in self._recomputed:
            layer.training = recompute


def _recomputed_layers(model: Any) -> list[Any]:
    """The layers that recompute their activations while they are in training mode, made to run in evaluation mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise RelgradError(
            f"gradient_checkpointing: true: {error} Set it to false, and lower micro_batch_tokens"
        ) from None
    flagged = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    layers = [m for m in flagged if isinstance(m, GradientCheckpointingLayer)] or flagged
    for layer in layers:
        layer._gradient_checkpointing_func = partial(_in_evaluation_mode, layer, layer._gradient_checkpointing_func)
    return layers


def _in_evaluation_mode(layer: Any, checkpoint: Callable[..., Any], forward: Callable[..., Any], *inputs: Any) -> Any:
    """`checkpoint(forward, *inputs)`; the layer is in evaluation mode while `forward` runs, also when it runs again."""

    def run(*again: Any) -> Any:
        mode, layer.training = layer.training, False
        try:
            return forward(*again)
        finally:
            layer.training = mode

    return checkpoint(run, *inputs)
