r"""The supervised loss of discrete flow matching: E_{t, x_t} sum_i l(p(. | x_t)_i, x_1^i, x_t^i) over the editable positions.

t is uniform, x_t drawn as noise_path.py says, l the cross-entropy or the generalised KL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from relgrad.core.randomness import Draws
from relgrad.core.types import SupervisedLoss
from relgrad.policies.flow.supervised.cross_entropy import cross_entropy
from relgrad.policies.flow.supervised.generalised_kl import generalised_kl
from relgrad.policies.flow.supervised.noise_path import Network, Noised, Path

DataLoss = Literal["cross_entropy", "generalised_kl"]
DATA_LOSSES: dict[DataLoss, Callable[[Tensor, Noised, Path], Tensor]] = {
    "cross_entropy": cross_entropy,
    "generalised_kl": generalised_kl,
}


def flow_matching_loss(
    network: Network,
    ids_BL: Tensor,
    editable_BL: Tensor,
    path: Path,
    kind: DataLoss,
    draws: Draws,
) -> SupervisedLoss:
    """The loss summed over the editable positions. `ids_BL` is the clean text, `editable_BL` False at prompt and padding.

    One time per row. Nats (of the generalised KL: an estimate of its integral over t); `nll` is the cross-entropy, whichever the
    loss is. Raises RelgradError for a row without an editable position.
    """
    noised = path.noise(ids_BL, editable_BL, draws.spread(), draws)
    logits_NV = network(noised.x_BL, noised.time_B.float(), None, noised.at)
    total = DATA_LOSSES[kind](logits_NV, noised, path).sum()
    nll = total.detach() if kind == "cross_entropy" else cross_entropy(logits_NV.detach(), noised, path).sum()
    return SupervisedLoss(total, len(noised.label_N), float(nll))
