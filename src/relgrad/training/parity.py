"""Whether a policy scores its fresh samples as it drew them: far from it, a run stops before it learns from ratios that are wrong.

    worst = max |log pi(decision), scored - recorded|  <=  FAR x rounding

Rounding is what the policy says that its arithmetic explains (protocols.Rounds), else that of one float32 log-probability. A
policy of 16 bits records log-probabilities that are corrected by weights: of those the mean difference has to be below what
rounding explains.

Where a law jumps (protocols.Jumps), rounding turns a comparison now and then and moves the log-probability of that decision by any
amount. So the mean takes the place of the worst there, and in 16 bits, where a tenth of the decisions can be such, the mean of all
but the largest fifth. The weights of decisions that became all but impossible are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Jumps, Policy, Rounds
from relgrad.core.ranks import Ranks
from relgrad.core.types import CellScores
from relgrad.laws.precision import ROUNDING
from relgrad.training.batch import Batch

FAR = 10.0
"""So many times what rounding explains is no rounding: the largest of a million normal numbers is 5 standard deviations off."""

TURNED = 5
"""In 16 bits one decision in so many may be one whose comparison was turned: twice as many as of laws on networks that are sure."""


def rounding(policy: Policy) -> float:
    """Nats by which drawing and scoring a decision may differ by rounding alone."""
    return policy.rounding if isinstance(policy, Rounds) else ROUNDING[torch.float32]


def jumps(policy: Policy) -> bool:
    """Whether rounding may move single decisions by any amount."""
    return isinstance(policy, Jumps) and policy.jumps


def require_parity(policy: Policy, worst: float, mean: float, step: int) -> None:
    """Raise RelgradError for fresh samples scored far from how they were drawn. Of a surrogate nothing is required."""
    explained = rounding(policy)
    distance, shown = (mean, f"{mean:.3g} nats on average") if jumps(policy) else (worst, f"up to {worst:.3g} nats")
    if policy.law == "exact" and distance > FAR * explained:
        raise RelgradError(_message(step, shown, explained))


def require_engines_agree(policy: Policy, batch: Batch, own_BT: Tensor, step: int) -> None:
    """The same for fresh samples of a policy of 16 bits, which recorded other log-probabilities than it scores, `own_BT`.

    What an engine of another program computes is not known here.
    """
    explained = rounding(policy)
    if explained < ROUNDING[torch.float16] or policy.law != "exact":
        return
    gaps = [torch.zeros(0)]
    first = 0
    for part in batch.parts:
        rows = slice(first, first + part.rollouts.rows)
        first += part.rollouts.rows
        if part.source == "policy" and part.proposal_logp_BT is not None and not bool(part.age_B.any()):
            mask_BT = part.rollouts.mask_BT
            gap_BT = own_BT[rows, : mask_BT.shape[1]] - part.proposal_logp_BT
            gaps.append(gap_BT[mask_BT & batch.mask_BT[rows, : mask_BT.shape[1]] & batch.keep_B[rows, None]].abs())
    gap_N = torch.cat(gaps)
    if jumps(policy):
        gap_N = gap_N.sort().values[: len(gap_N) - len(gap_N) // TURNED]
    if len(gap_N) and float(gap_N.mean()) > explained:
        raise RelgradError(_message(step, f"{float(gap_N.mean()):.3g} nats on average", explained))


class Seen:
    """Parity and entropy of the cells that one step back-propagates."""

    def __init__(self) -> None:
        self.worst, self.gap, self.entropy, self.count = 0.0, 0.0, 0.0, 0

    def add(self, scores: CellScores, recorded_N: Tensor) -> None:
        gap_N = (scores.logp_N.detach().float().cpu() - recorded_N).abs()
        self.worst = max(self.worst, float(gap_N.max()))
        self.gap += float(gap_N.sum())
        self.count += len(gap_N)
        self.entropy += float(-recorded_N.sum() if scores.entropy_N is None else scores.entropy_N.detach().sum())

    def figures(self, ranks: Ranks, fresh: bool) -> dict[str, float]:
        """Over all processes; nothing where no cell was back-propagated. Parity is there where the ratios must be 1."""
        everybody = ranks.numbers(self.worst, self.gap, self.entropy, self.count)
        worst = max(each[0] for each in everybody)
        gap, entropy, count = (sum(each[i] for each in everybody) for i in (1, 2, 3))
        if not count:
            return {}
        parity = {"parity/max_abs": worst, "parity/mean_abs": gap / count} if fresh else {}
        return {"entropy": entropy / count} | parity


def _message(step: int, distance: str, explained: float) -> str:
    return (
        f"step {step + 1}: the policy scores its fresh samples {distance} away from how it drew them, and rounding explains "
        f"{explained:.2g}. Importance ratios and divergences would be wrong, so the step was not taken. Something acts in only one "
        "of the two: check policy.gradient_checkpointing (false), policy.engine (transformers), policy.dtype (float32) and dropout "
        "inside the model's own code; in a policy of your own, that `sample` and `score` share one law"
    )
