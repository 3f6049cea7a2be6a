r"""The supervised loss of masked diffusion: a bound on -log p(answer) (MDLM, arXiv:2406.07524; LLaDA, arXiv:2502.09992).

    l = (L / k) sum_{i masked} -log p(x_i | x with the masked positions hidden),    k uniform on 1 .. L,   k of L positions masked

is the 1/t-weighted loss at t = k / L. Its mean over k and the masks is -E log p(x) of one position after the other in random order,
an upper bound on the negative log-likelihood of the answer, with less noise than by masking every position with probability t. The
prompt is clean, as in generation. The answer fills its positions up to the last one with ends of sequence, which are learned like
any other token (text/answer.py): where they begin is how long the answer is. The k of a batch are spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from relgrad.core.randomness import Draws
from relgrad.core.types import SupervisedLoss
from relgrad.text.answer import Rows

LogitsAt = Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]
"""(ids_BL, at) -> logits [M, V] at the positions `at` (row, column), -inf for ids that are never written."""


def masked_loss(logits_at: LogitsAt, rows: Rows, mask_id: int, draws: Draws) -> SupervisedLoss:
    """The loss summed over rows, in nats, and the number of their positions; all tensors on the CPU but the logits.

    `draws` are those of the rows: one number for k and one for every position.
    """
    size_B = rows.editable_BL.sum(-1)
    masked_B = (draws.spread() * size_B).long().clamp(max=size_B - 1) + 1
    order_BL = torch.full(rows.ids_BL.shape, torch.inf)
    order_BL[rows.editable_BL] = draws.rand_each(size_B.tolist())
    rank_BL = order_BL.argsort(-1).argsort(-1)
    row_M, column_M = ((rank_BL < masked_B[:, None]) & rows.editable_BL).nonzero(as_tuple=True)
    at = (row_M, column_M)
    logits_MV = logits_at(rows.ids_BL.index_put(at, torch.tensor(mask_id)), at)
    label_M = rows.ids_BL[at].to(logits_MV.device)
    loss_M = functional.cross_entropy(logits_MV, label_M, reduction="none")
    weight_M = (size_B / masked_B)[at[0]].to(loss_M)
    total = (loss_M * weight_M).sum()
    return SupervisedLoss(total, int(size_B.sum()), float(total.detach()))
