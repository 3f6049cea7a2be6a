"""The exact estimator on a process of three choices whose numbers are written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.exact import Exact, summed
from relgrad.estimators.interface import Wanted


class Two(NamedTuple):
    """Two decisions: the first of two choices, the second of one and of something that no network decides."""

    decision_M: Tensor = torch.tensor([0, 0, 1])
    free_N: Tensor = torch.tensor([0.0, -0.5], dtype=torch.float64)


class Coins:
    """A network of one parameter, the log-probability of heads; every choice came up heads."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.logp = torch.tensor(-1.0, requires_grad=True)
        self.start = torch.tensor(-2.0)
        self.speaks = self.logp

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.speaks = self.start
        yield
        self.speaks = self.logp

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> Two:
        return Two()

    def hidden(self, choices: Two) -> Tensor:
        return self.speaks.expand(3)

    def terms(self, choices: Two, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted) -> Sequence[Tensor]:
        terms = [hidden]
        if wanted.entropy:
            terms.append(torch.tensor([0.1, 0.2, 0.3]))
        if reference_hidden is not None:
            terms.append(hidden - reference_hidden)
        return terms


NOTHING = Rollouts(
    (), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool),
    torch.ones(2, 1, dtype=torch.int64), (None, None), ("eos", "eos"), 0, {},  # type: ignore[arg-type]
)  # fmt: skip


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("kl", [False, True])
def test_choices_add_up_to_decisions_with_what_is_free(entropy: bool, kl: bool) -> None:
    coins = Coins()
    scores = Exact().score(coins, NOTHING, NOTHING.cells(), Wanted(entropy, coins.reference if kl else None))
    assert scores.logp_N.dtype == torch.float32
    assert scores.logp_N.tolist() == [-2.0, -1.5]
    assert (scores.entropy_N is None) != entropy
    assert (scores.kl_N is None) != kl
    if scores.entropy_N is not None:
        assert scores.entropy_N.tolist() == pytest.approx([0.3, 0.3])
    if scores.kl_N is not None:
        assert scores.kl_N.tolist() == [2.0, 1.0]
    scores.logp_N.sum().backward()
    assert coins.logp.grad is not None
    assert float(coins.logp.grad) == 3.0


def test_a_decision_without_choices_is_what_is_free() -> None:
    assert summed(torch.tensor([1.0, 2.0]), torch.tensor([2, 2]), 4).tolist() == [0.0, 0.0, 3.0, 0.0]
