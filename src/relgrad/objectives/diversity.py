r"""The diversity of a set of samples, and the credit by which it is raised. Pure.

K texts of one prompt with distances d_ij have the diversity D = mean over pairs i < j of d_ij. D is computed from texts, a constant
to autograd: subtracted from a loss it changes no gradient. Its expectation over the samples has one, by the score function:

    grad E[D] = E[ (1/K) sum_i A_i grad log pi(y_i) ],     A_i = 2 (dbar_i - D_-i)
    dbar_i = mean of d_ij over j,    D_-i = mean over the pairs without i

Exactly: (2/K) dbar_i are the pairs of D that sample i is in, the others do not depend on it, and neither does D_-i, which only
lowers the variance. For K >= 3 it is A_i = 2 K / (K - 2) (dbar_i - D): centring by the group's mean gives (K - 2) / K of the
gradient, a third at K = 3, and nothing at K = 2. There no pair is without i, and D_-i is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_to_others(distance_KK: Tensor) -> Tensor:
    """dbar [K]: the mean distance of each sample to the others. The diagonal does not count. Raises ValueError for K < 2."""
    count = len(distance_KK)
    if count < 2:
        raise ValueError(f"diversity of {count} samples: at least 2 are needed")
    apart_KK = distance_KK - torch.diag(distance_KK.diagonal())
    return apart_KK.sum(-1) / (count - 1)


def mean_distance(distance_KK: Tensor) -> Tensor:
    """D, a scalar: the mean distance of two of the samples. Raises ValueError for K < 2."""
    return mean_to_others(distance_KK).mean()


def leave_one_out(distance_KK: Tensor) -> Tensor:
    """A [K], the credit above, for symmetric distances. Raises ValueError for K < 2."""
    to_others_K = mean_to_others(distance_KK)
    count = len(to_others_K)
    if count == 2:
        return 2 * to_others_K
    pairs = count * (count - 1) / 2
    own_K = to_others_K * (count - 1)  # the sum over the pairs of each sample
    without_K = (to_others_K.mean() * pairs - own_K) / (pairs - (count - 1))
    return 2 * (to_others_K - without_K)
