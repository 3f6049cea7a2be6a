"""What an engine is: one way to run a causal language model, for drawing completions and for scoring them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from relgrad.core.types import CellScores, Rollouts
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal.decode import Generated


class Reference(NamedTuple):
    """What a divergence is measured from: inside `weights` the model holds other weights, and `law` is what it writes by then."""

    weights: AbstractContextManager[None]
    law: Truncation


class Engine(Protocol):
    """Built around one model. `name` is the value of the setting `engine` that asks for it.

    Rollouts are the policy's, with the trace that policy.py describes.
    """

    name: str

    def generate(
        self, prompts: Sequence[Tensor], per_prompt: int, law: Truncation, eos_ids: Tensor, uniform_BT: Tensor
    ) -> Generated:
        """Draw `per_prompt` completions for each prompt [P] (int64 token ids), of at most T tokens; see decode.generate.

        uniform_BT  uniform numbers: decision (b, t) uses entry (b, t), whatever else is in the batch
        """
        ...

    def score(
        self,
        rollouts: Rollouts,
        cells_N2: Tensor,
        law: Truncation,
        *,
        entropy: bool = False,
        reference: Reference | None = None,
    ) -> CellScores:
        """Log-probs (nats, differentiable) of the chosen cells under `law`, over the support recorded in the rollouts.

        Where `reference` is given, so is the exact KL from the law of now to the reference's.
        """
        ...

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """The trainable cells of `rows` in chunks [N, 2] of whole rows, none of which takes more than `budget` tokens.

        A token in the padding counts as one. A row that takes more alone is a chunk of its own.
        """
        ...


def arithmetic(model: Any) -> torch.dtype:
    """The coarsest dtype in which a model computes its activations."""
    return torch.bfloat16 if getattr(model, "is_quantized", False) else model.dtype


def cut(rows: Tensor, budget: int, tokens: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`rows` in their order, cut into the fewest stretches of at most `budget` tokens; a row that exceeds it stands alone.

    tokens  of some rows [n]: int64 [n], what the first 1, 2, ... n of them take together; never falls
    """
    stretches = []
    while len(rows):
        fitting = max(int((tokens(rows) <= budget).sum()), 1)
        stretches.append(rows[:fitting])
        rows = rows[fitting:]
    return stretches
