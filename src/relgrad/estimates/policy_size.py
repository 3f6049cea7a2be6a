"""A policy's size: what its weights take, and how prompts and completions become positions of its network.

Every kind of policy that can be estimated offers `size(settings, start) -> PolicySize` in its package (protocols are asked for by
isinstance, as everywhere).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from relgrad.estimates.transformer import Transformer


@dataclass(frozen=True)
class Lengths:
    """Of a group: its prompt, its completions (each at its limit, or as long as a target is), and how many of them there are."""

    prompt: float
    completion: float
    each: int = 1


@dataclass(frozen=True)
class Passes:
    """What the network computes for one group.

    positions  that go through it, padding aside
    calls      one after the other
    at_once    the most positions of one call
    context    positions that each one sees
    decisions  positions whose distribution over the vocabulary is computed
    cached     positions whose keys and values are kept meanwhile
    logits_at_once
               decisions whose whole distribution is in memory at once; 0 where it is computed in tiles
    """

    positions: float
    calls: float
    at_once: float
    context: float
    decisions: float
    cached: float = 0.0
    logits_at_once: float = 0.0


@dataclass(frozen=True)
class PolicySize:
    """See the module.

    trained        parameters with a gradient
    weight_bytes   of one frozen weight; of one that is trained where nothing is frozen
    number_bytes   of one number while the network computes
    adapted        whether what is trained stands beside frozen weights (LoRA)
    averaged       whether a moving average of what is trained is kept
    recomputed     gradient checkpointing
    draw, score    passes of one group, without and with a gradient
    learn          passes of one supervised example
    chunk_tokens   what one group, or the least piece of it, counts in `micro_batch_tokens`: (whole group, least piece)
    """

    network: Transformer
    trained: int
    weight_bytes: float
    number_bytes: int
    adapted: bool
    draw: Callable[[Lengths], Passes]
    score: Callable[[Lengths], Passes]
    learn: Callable[[Lengths], Passes]
    chunk_tokens: Callable[[Lengths], tuple[float, float]]
    averaged: bool = False
    recomputed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """All of them, an adapter's included."""
        return self.network.parameters + (self.trained if self.adapted else 0)


@runtime_checkable
class Sized(Protocol):
    """A module of a kind of policy that can say its size without building anything."""

    def size(self, settings: Any, start: Path | None) -> PolicySize:
        """Raises RelgradError where there is no estimate."""
        ...

    def lengths(self, settings: Any, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
        """Lengths of these prompts and targets, in the policy's own symbols; without targets (empty ones), at the limit."""
        ...


WEIGHTS = {"4bit": 0.56, "8bit": 1.06}
"""Bytes of a quantised weight with its scales (one float32 in 64 weights, with 4 bits quantised once more: QLoRA,
arXiv:2305.14314), embeddings and norms aside."""
NUMBERS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def weight_bytes(dtype: str, quantize: str | None, network: Transformer) -> float:
    """Bytes of one weight on average: matrices of layers are quantised, the others are kept as `dtype` says."""
    if quantize is None:
        return float(NUMBERS[dtype])
    inside = network.layers * network.layer_weights
    return (inside * WEIGHTS[quantize] + (network.parameters - inside) * NUMBERS[dtype]) / network.parameters
