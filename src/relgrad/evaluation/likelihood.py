"""The held-out loss: how likely a policy finds targets that it was not trained on. Nothing is drawn, and nothing is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from relgrad.core.protocols import KnowsTargets
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Example


def mean_nll(policy: KnowsTargets, examples: Sequence[Example], at_once: int, ranks: Ranks = ALONE) -> float:
    """-log p of all targets of the examples in nats, by the number of targets; NaN where they have none.

    `at_once` examples are scored together. Every process of `ranks` takes its share of them.
    """
    share = ranks.share(len(examples))
    sums = torch.zeros(2, dtype=torch.float64)
    for first in range(share.start, share.stop, at_once):
        nll, targets = policy.target_nll(examples[first : min(first + at_once, share.stop)])
        sums += torch.tensor([nll, targets], dtype=torch.float64)
    total, count = ranks.sum(sums).tolist()
    return total / count if count else math.nan
