"""What a step of masked diffusion is to its law: masked positions of a block on one side, what became of them on the other.

Steps of many texts are handled together: N steps with M positions in all. A position's logits are a row [V], -inf for ids that are
never written (the mask among them). Random numbers are uniform in [0, 1) and given: two for every position.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation

MASKED = -1
"""The token of a position that is masked."""


class Places(NamedTuple):
    """The positions that N steps may change, M in all, step by step and from left to right.

    step_M   int64: which of the steps each belongs to
    token_M  int64: what stands there before the step, MASKED (-1) where it is masked
    quota_N  int64: how many positions a step reveals; of `remask`, how many are masked after it
    left_N   int64: how many steps the block has left, this one counted
    whole_N  int64: how many positions each step has; `only` leaves positions out, and this as it is
    """

    step_M: Tensor
    token_M: Tensor
    quota_N: Tensor
    left_N: Tensor
    whole_N: Tensor

    @property
    def steps(self) -> int:
        return len(self.quota_N)

    @property
    def count_N(self) -> Tensor:
        """int64 [N]: positions of each step."""
        return torch.bincount(self.step_M, minlength=self.steps)

    @property
    def number_M(self) -> Tensor:
        """int64 [M]: 0, 1, ... within each step."""
        count_N = self.count_N
        first_N = count_N.cumsum(0) - count_N
        return torch.arange(len(self.step_M), device=self.step_M.device) - first_N[self.step_M]

    def only(self, chosen_M: Tensor) -> Places:
        """The chosen positions (bool [M]) of the same steps."""
        return self._replace(step_M=self.step_M[chosen_M], token_M=self.token_M[chosen_M])

    def part(self, first: int, last: int) -> Places:
        """Steps first .. last - 1, with their positions."""
        inside_M = (self.step_M >= first) & (self.step_M < last)
        steps = (column_N[first:last] for column_N in (self.quota_N, self.left_N, self.whole_N))
        return Places(self.step_M[inside_M] - first, self.token_M[inside_M], *steps)

    def to(self, device: torch.device) -> Places:
        """The same on another device."""
        return Places(*(tensor.to(device) for tensor in self))

    def sum(self, value_M: Tensor) -> Tensor:
        """[N]: what the positions of each step add up to; differentiable."""
        return value_M.new_zeros(self.steps).index_add(0, self.step_M, value_M)

    def table(self, value_M: Tensor, padding: float) -> Tensor:
        """[N, K]: the values of each step in a row, K of the step with the most positions; differentiable."""
        width = int(self.count_N.max()) if len(self.step_M) else 0
        empty_NK = value_M.new_full((self.steps, width), padding)
        return empty_NK.index_put((self.step_M, self.number_M), value_M)

    def highest(self, value_M: Tensor) -> Tensor:
        """int64 [M]: the rank of every position in its step, 0 at the highest value; of equals the left one is first."""
        order_NK = self.table(value_M, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank_NK = torch.empty_like(order_NK).scatter_(
            1, order_NK, torch.arange(order_NK.shape[1], device=order_NK.device).expand_as(order_NK)
        )
        return rank_NK[self.step_M, self.number_M]


class Outcome(NamedTuple):
    """What a step made of its positions.

    token_M  int64: what stands there after the step, MASKED (-1) where it is masked
    order_M  int64: the how manyeth of its step it was, 0 first; 0 everywhere for laws that reveal a step's positions together
    """

    token_M: Tensor
    order_M: Tensor

    def only(self, chosen_M: Tensor) -> Outcome:
        """Of the chosen positions (bool [M])."""
        return Outcome(self.token_M[chosen_M], self.order_M[chosen_M])


class Law(Protocol):
    """How one step comes about.

    truncation  temperature and support of the tokens that are drawn
    ordered     whether `Outcome.order_M` is part of what is drawn
    rewrites    whether positions that are written already may be masked again: then these are among the places too
    adaptive    whether the law itself decides how many positions a step reveals, and `quota_N` is the least
    """

    @property
    def truncation(self) -> Truncation: ...

    @property
    def ordered(self) -> bool: ...

    @property
    def rewrites(self) -> bool: ...

    @property
    def adaptive(self) -> bool: ...

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """(bool [M] positions whose logits `draw` needs, int64 [M] what the others hold after the step).

        Laws that choose positions without the network choose them here, by the first uniform number of each.
        """
        ...

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """The outcome at the positions that `asks` named (C of them), whose places and uniform numbers these are."""
        ...

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        """bool [M]: positions whose logits the log-probability of this outcome depends on; those that `asks` named."""
        ...

    def terms(
        self,
        logits_CV: Tensor,
        places: Places,
        outcome: Outcome,
        support_CV: Tensor | None,
        reference_CV: Tensor | None = None,
        entropy: bool = False,
        reference_truncation: Truncation | None = None,
    ) -> list[Tensor]:
        """[N] each, nats: log-probability, entropy where wanted, KL to the law of the reference's logits where these are given.

        `reference_truncation` is the reference's; None: the law's own.

        All arguments are of the positions that `needs` named; `support_CV` is the recorded support, None where none was recorded.
        Differentiable in `logits_CV`. Entropy and KL are conditional ones along the choices that were made (the KL of an order's
        second position is that given its first one, and so on): their expectation is that of the step. Where a law has no closed
        form they are estimates from the one outcome; see confidence.from_sample.
        """
        ...

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """float64 [N], nats: log-probability of what does not depend on the network, of all M places."""
        ...

    def free_entropy(self, places: Places) -> Tensor:
        """float64 [N], nats: entropy of what does not depend on the network."""
        ...


def log_choose(count_N: Tensor, taken_N: Tensor) -> Tensor:
    """float64 [N]: the logarithm of the number of ways to take so many of a count."""
    count_N, taken_N = count_N.double(), taken_N.double()
    return torch.lgamma(count_N + 1) - torch.lgamma(taken_N + 1) - torch.lgamma(count_N - taken_N + 1)
