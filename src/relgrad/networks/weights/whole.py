"""Weights that are kept beside the trained ones are whole: a parameter that is sharded over processes is refused."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from relgrad.core.errors import RelgradError

Named = Iterable[tuple[str, torch.nn.Parameter]]


def require_whole(parameters: Named, kept: str) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters as a list. `kept` is what is kept of them, for the message.

    Other weights are put in place by giving a parameter other storage. FSDP2 gathers its parameters from storage of its own, so
    that a sharded one (a DTensor) would go on computing with the trained weights: a KL to the start that is 0 for ever. Raises
    RelgradError naming the first of them.
    """
    named = list(parameters)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return named  # there are no sharded parameters without processes
    from torch.distributed.tensor import DTensor

    for name, parameter in named:
        if isinstance(parameter, DTensor) or isinstance(parameter.data, DTensor):
            raise RelgradError(
                f"parameter {name!r} is sharded over several processes (a DTensor), and {kept} needs whole weights. Leave FSDP2's "
                "fully_shard out: with torchrun every process holds all weights, and relgrad adds their gradients. Or do without "
                "it: grpo.beta=0 needs no frozen start, policy.ema_decay=0 no moving average"
            )
    return named
