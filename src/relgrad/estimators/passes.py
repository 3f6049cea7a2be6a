r"""The passes of a surrogate: states at which it asks the network about a finished text, and how much each answer counts.

    surrogate of decision d = sum over passes k and positions i of d:  weight_ki log p(x_i | x with the positions of pass k masked)

Every surrogate of masked diffusion but SPG's upper bound is such a sum; they differ in what is masked, in the weights, and in what
they call a decision. Passes are drawn once, when the text was written, and kept in its trace: policy, old policy and reference look
at the same states, so that at equal weights ratios are 1 and divergences 0 (common random numbers; likelihoods, section 5).

    trace["masked_BKE"]  bool [B, K, E]: the written positions that are masked in each of K passes
    trace["weight_BKE"]  float32 [B, K, E]: 0 where a position is given, or masked and not asked about
    trace["answer_B"]    int64 [B]: the tokens of each text
    trace["veiled_BL"]   bool [B, L]: positions of the prompt that are masked too, in every pass; only where a surrogate wants it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from relgrad.core.randomness import Draws


class Texts(NamedTuple):
    """Finished texts whose passes are drawn; all of a prompt's stand next to each other.

    place_BE     bool: positions that could be written; the same ones for all texts of a prompt
    written_BE   bool: positions that hold a token of the text; behind them nothing was ever written
    step_BE      int64: the step in which the token that stands there was written; -1 where none was
    steps        T, the steps of a trajectory
    prompt_BL    bool: positions of the prompt
    """

    place_BE: Tensor
    written_BE: Tensor
    step_BE: Tensor
    steps: int
    prompt_BL: Tensor

    @property
    def length_B(self) -> Tensor:
        """int64 [B]: written positions."""
        return self.written_BE.sum(-1)


class Passes(NamedTuple):
    """See the module."""

    masked_BKE: Tensor
    weight_BKE: Tensor
    veiled_BL: Tensor | None = None

    def trace(self, texts: Texts) -> dict[str, Tensor]:
        """As the trace of these texts keeps them."""
        kept = {"masked_BKE": self.masked_BKE, "weight_BKE": self.weight_BKE.float(), "answer_B": texts.length_B}
        return kept if self.veiled_BL is None else kept | {"veiled_BL": self.veiled_BL}

    @staticmethod
    def of(trace: Mapping[str, Tensor]) -> Passes:
        """What `trace` made."""
        return Passes(trace["masked_BKE"], trace["weight_BKE"], trace.get("veiled_BL"))


class Answers(NamedTuple):
    """What the network was asked about R texts: M positions of their passes.

    row_M, pass_M, position_M  where each stands
    weight_M                   float32: how much its log-probability counts
    length_R                   int64: the tokens of each text
    positions                  E
    """

    row_M: Tensor
    pass_M: Tensor
    position_M: Tensor
    weight_M: Tensor
    length_R: Tensor
    positions: int

    @property
    def rows(self) -> int:
        return len(self.length_R)

    @staticmethod
    def of(trace: Mapping[str, Tensor], row_R: Tensor) -> Answers:
        """Of the chosen rows of a trace, whose passes they are."""
        weight_RKE = trace["weight_BKE"][row_R]
        row_M, pass_M, position_M = weight_RKE.nonzero(as_tuple=True)
        weight_M = weight_RKE[row_M, pass_M, position_M]
        return Answers(row_M, pass_M, position_M, weight_M, trace["answer_B"][row_R], weight_RKE.shape[2])


class Plan(Protocol):
    """A surrogate: which passes it wants, and what its decisions are.

    count      K, passes of a text
    per_token  whether every written position is a decision
    own_loss   the module of the loss that it needs; None where any loss will do
    """

    per_token: ClassVar[bool]
    own_loss: ClassVar[str | None]

    @property
    def count(self) -> int: ...

    def decisions(self, positions: int) -> int:
        """T, the decisions of a text of so many positions."""
        ...

    def passes(self, texts: Texts, draws: Draws) -> Passes:
        """The passes of finished texts. A prompt's random numbers are its own."""
        ...

    def values(self, logp_M: Tensor, answers: Answers) -> Tensor:
        """[R, T]: the decisions of R texts, from the log-probabilities (nats) of the answers; differentiable."""
        ...


def weighted_sums(logp_M: Tensor, answers: Answers, decision_KE: Tensor, decisions: int) -> Tensor:
    """[R, T], float64: the weighted log-probabilities of each decision, added up."""
    decision_M = decision_KE.to(answers.pass_M.device)[answers.pass_M, answers.position_M]
    zeros_RT = torch.zeros(answers.rows * decisions, dtype=torch.float64, device=logp_M.device)
    values_M = answers.weight_M.to(logp_M.device).double() * logp_M.double()
    return zeros_RT.index_add(0, (answers.row_M * decisions + decision_M).to(logp_M.device), values_M).view(
        -1, decisions
    )


def by_token(count: int, positions: int) -> Tensor:
    """int64 [K, E]: every position is a decision, in whatever pass."""
    return torch.arange(positions).expand(count, -1)


def as_one(count: int, positions: int) -> Tensor:
    """int64 [K, E]: the whole text is one decision."""
    return torch.zeros(count, positions, dtype=torch.int64)


def by_pass(count: int, positions: int) -> Tensor:
    """int64 [K, E]: every pass is a decision."""
    return torch.arange(count)[:, None].expand(-1, positions)


def random_subset(written_BE: Tensor, size_B: Tensor, uniform_BE: Tensor) -> Tensor:
    """bool [B, E]: `size_B` of the written positions of each text, every subset equally likely."""
    order_BE = uniform_BE.masked_fill(~written_BE, 2.0).argsort(-1)
    rank_BE = torch.empty_like(order_BE).scatter_(-1, order_BE, torch.arange(order_BE.shape[1]).expand_as(order_BE))
    return rank_BE < size_B[:, None]
