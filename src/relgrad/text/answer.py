"""What a row holds: the prompt, then `size` positions to generate: the answer, and the end of sequence up to the end.

    [prompt][answer][EOS][EOS] ... [EOS]        an answer of `size` tokens or more has none

The network writes a fixed number of positions, so it must also learn what follows the answer. Here every position after it is
EOS and is trained like any other; the text of a row ends at its first EOS. No padding token is needed (GPT-2's vocabulary has
none), and "how long is the answer" is learned as "where does EOS begin".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError


class Rows(NamedTuple):
    """`ids_BL`, `editable_BL` (True where the network writes) and `valid_BL` (False behind shorter rows)."""

    ids_BL: Tensor
    editable_BL: Tensor
    valid_BL: Tensor


def rows(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], size: int, eos_id: int) -> Rows:
    """Clean rows for training. Raises RelgradError for an answer that has an EOS inside."""
    for number, answer in enumerate(answers):
        if eos_id in answer:
            raise RelgradError(
                f"answer {number} has the end of sequence (id {eos_id}) inside: its text would end there"
            )
    whole = [[*p, *a, *([eos_id] * (size - len(a)))] for p, a in zip(prompts, answers, strict=True)]
    start_B, length_B = torch.tensor([len(p) for p in prompts]), torch.tensor([len(w) for w in whole])
    longest = int(length_B.max())
    ids_BL = torch.tensor([[*w, *([eos_id] * (longest - len(w)))] for w in whole])
    position_L = torch.arange(longest)
    valid_BL = position_L < length_B[:, None]
    return Rows(ids_BL, valid_BL & (position_L >= start_B[:, None]), valid_BL)


def until_end(ids: Sequence[int], eos_id: int) -> list[int]:
    """The tokens before the first EOS; all where there is none."""
    ids = list(ids)
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
