r"""The log-probability of a trajectory, decision by decision, each under the law at the very state in which it was taken.

    log pi(tau) = sum_t log P(x_{t+1} | x_t),    log P(x_{t+1} | x_t) = free_t + sum_m log p_m(choice m | x_t)

The choices m of a decision (the positions of a step) are independent given its state; what the network does not decide is `free`.
Exact where the process says the law that was sampled. Entropies and divergences add up in the same way.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relgrad.core.types import CellScores, Rollouts
from relgrad.estimators.interface import Process, SomeChoices, Wanted


class Exact:
    """See the module. One pass of the network over the states of the decisions, and one more for a reference."""

    law: Literal["exact", "surrogate"] = "exact"

    def score(self, process: Process[SomeChoices], rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> CellScores:
        """Log-probabilities of the decisions (row, decision) given, float32, and what else is wanted."""
        choices = process.choices(rollouts, cells_N2, wanted)
        hidden, reference_hidden = process.hidden(choices), None
        if wanted.reference is not None:
            with torch.no_grad(), wanted.reference():
                reference_hidden = process.hidden(choices)
        terms = process.terms(choices, hidden, reference_hidden, wanted)
        sums = [summed(term_M, choices.decision_M, len(cells_N2)) for term_M in terms]
        logp_N = (sums[0] + choices.free_N.to(process.device)).float()
        entropy_N = sums[1].float() if wanted.entropy else None
        return CellScores(logp_N, entropy_N, sums[-1].float() if wanted.reference is not None else None)


def summed(value_M: Tensor, decision_M: Tensor, decisions: int) -> Tensor:
    """float64 [N]: the values of each decision's choices, added up; differentiable."""
    zeros_N = torch.zeros(decisions, dtype=torch.float64, device=value_M.device)
    return zeros_N.index_add(0, decision_M.to(value_M.device), value_M.double())
