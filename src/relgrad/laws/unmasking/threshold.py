r"""Threshold-parallel decoding: all drafts of at least this confidence stay (Fast-dLLM, arXiv:2505.22618; SDAR's dynamic decoding).

    x_j ~ q_j for all j in M,   A = the drafts with p_j(x_j) >= threshold
    |A| >= quota:   S = A                P = prod_{i in S} q_i(x_i)  prod_{j not in S} sum_v q_j(v) 1[p_j(v) < threshold]
    otherwise:      S = the quota of most confident drafts, with P as low_confidence.py has it

The fallback guarantees progress; with quota 1 it is Fast-dLLM's. Steps end when nothing is masked, so texts take different numbers
of them. P jumps where a confidence crosses the threshold.
"""

from __future__ import annotations

import math

from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking.low_confidence import LowConfidence


def threshold_law(truncation: Truncation, threshold: float, *, tempered: bool) -> LowConfidence:
    """The law of this threshold, a probability in (0, 0.999]. Raises ValueError for another."""
    if not 0 < threshold <= 0.999:
        raise ValueError(
            f"threshold={threshold:g}: a probability in (0, 0.999]; confidences are told apart by a tenth of a percent"
        )
    return LowConfidence(truncation, tempered, math.log(threshold))
