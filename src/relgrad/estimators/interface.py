"""What stands between a policy and the estimator of its log-probabilities.

A policy hands its *process* to the estimator: how its decisions come about from what its network says. The estimator decides at
which states the network is asked, and adds up what the law says of the answers. Estimators are objects that can be exchanged: each
has a `law` and a method `score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from relgrad.core.types import CellScores, Rollouts
from relgrad.estimators.passes import Answers


class Wanted(NamedTuple):
    """What is wanted beside log-probabilities.

    entropy    of the law of every decision
    reference  for the KL to a reference: inside `reference()` the network speaks for it. None: no KL
    """

    entropy: bool
    reference: Callable[[], AbstractContextManager[None]] | None

    @property
    def whole_law(self) -> bool:
        """Whether the laws of all choices matter, and not only the probability of what was chosen."""
        return self.entropy or self.reference is not None


class Choices(Protocol):
    """The elementary choices (tokens, positions) that N decisions are made of, M in all; whatever else a process keeps of them.

    decision_M  int64 [M]: which of the decisions each belongs to
    free_N      float64 [N], nats: log-probability of what in each decision does not depend on the network
    """

    @property
    def decision_M(self) -> Tensor: ...

    @property
    def free_N(self) -> Tensor: ...


SomeChoices = TypeVar("SomeChoices", bound=Choices)


class Process(Protocol[SomeChoices]):
    """How decisions come about: the network at the states of a trajectory, and the law of a choice given what the network says."""

    @property
    def device(self) -> torch.device: ...

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> SomeChoices:
        """The choices in the decisions (row, decision) given that depend on the network; of the whole law where it is wanted."""
        ...

    def hidden(self, choices: SomeChoices) -> Tensor:
        """What the network says where the choices were made, differentiable."""
        ...

    def terms(
        self, choices: SomeChoices, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted
    ) -> Sequence[Tensor]:
        """Log-probability, entropy where wanted, exact KL where wanted; each [M], nats. `reference_hidden` is the reference's."""
        ...


class Refills(Protocol):
    """A process whose finished texts can be masked again: what surrogates ask."""

    def refilled(self, rollouts: Rollouts, row_R: Tensor, answers: Answers) -> Tensor:
        """[M]: log p (nats, differentiable) of the tokens that stand at the answers' positions, each pass by itself.

        The passes are those of the trace (passes.py). The law is that of a token as it was drawn: temperature, no truncation.
        """
        ...


class Estimator(Protocol):
    """`law` is "exact" where `score` is the log-probability of what was drawn, and "surrogate" otherwise."""

    law: Literal["exact", "surrogate"]

    def score(self, process: Any, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> CellScores:
        """Log-probabilities of the decisions given, and what else is wanted; see protocols.Policy."""
        ...
