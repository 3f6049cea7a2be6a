r"""All masked positions are filled in, then some of the block are masked again: drafts by doubt, what stood there before by chance.

    y_i ~ q_i at the masked positions A,   W the positions written before,   quota positions of A and W are masked again:
    w = round(quota |W| / (|A| + |W|)) of W, uniform among the subsets of this size, and the quota - w least confident drafts of A

    P(x') = 1 / C(|W|, w)  prod_{i in A that stay} q_i(y_i)  prod_{j in A that do not} F_j

with confidences, their tie rule and the mass F_j of drafts that fall short as in low_confidence.py: exact, and with the same jumps
in the weights. A draft is judged by its probability when it was drawn (`denoise` of fill-in with `remask: confidence`). What stands
there from earlier steps is not: the probability with which it was drawn belongs to an earlier state, and a step that looked at it
would depend on more than the state before it; that of the network on a token which it sees says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking.confidence import IMPOSSIBLE
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places, log_choose
from relgrad.laws.unmasking.low_confidence import LowConfidence


@dataclass(frozen=True)
class RemaskDoubtful:
    """See the module and interface.Law. The places are all positions of the block, written or not.

    `tempered`: the confidence is that of the law that drafts.
    """

    truncation: Truncation
    tempered: bool = False
    ordered, rewrites, adaptive = False, True, False

    @property
    def drafts(self) -> LowConfidence:
        """What the drafts follow: the most confident stay."""
        return LowConfidence(self.truncation, self.tempered)

    def asks(self, places: Places, uniform_M: Tensor) -> tuple[Tensor, Tensor]:
        """All masked positions; of the written ones some are masked, the others stay as they are."""
        masked_M = places.token_M == MASKED
        again_N = _written_again(places, places.sum((~masked_M).long()))
        again_M = ~masked_M & (places.highest(uniform_M.masked_fill(masked_M, -1.0)) < again_N[places.step_M])
        return masked_M, places.token_M.masked_fill(again_M, MASKED)

    def draw(self, logits_CV: Tensor, places: Places, uniform_C2: Tensor) -> Outcome:
        """A draft everywhere, of which the most confident stay."""
        again_N = _written_again(places, places.whole_N - places.count_N)
        stay_N = places.count_N - (places.quota_N - again_N)
        return self.drafts.draw(logits_CV, places._replace(quota_N=stay_N), uniform_C2)

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        """All positions that were masked before."""
        return places.token_M == MASKED

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
        """Of the drafts: the log-probability in closed form, the others from the outcome."""
        return self.drafts.terms(logits_CV, places, outcome, support_CV, reference_CV, entropy, reference_truncation)

    def free(self, places: Places, outcome: Outcome) -> Tensor:
        """-log C(|W|, w); IMPOSSIBLE where other than w of the written positions are masked again."""
        again_N = places.sum(((places.token_M != MASKED) & (outcome.token_M == MASKED)).long())
        due_N = _written_again(places, places.sum((places.token_M != MASKED).long()))
        return torch.where(again_N == due_N, -self.free_entropy(places), IMPOSSIBLE)

    def free_entropy(self, places: Places) -> Tensor:
        """log C(|W|, w)."""
        written_N = places.sum((places.token_M != MASKED).long())
        return log_choose(written_N, _written_again(places, written_N))


def _written_again(places: Places, written_N: Tensor) -> Tensor:
    """int64 [N]: w, how many of the written positions are masked again; the other quota - w are at most the drafts there are."""
    return (places.quota_N * written_N.double() / places.whole_N.clamp(min=1)).round().long()
