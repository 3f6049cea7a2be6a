"""The input of a network of slots, and what sees what in it.

    [prompt] [slots written, in the order of writing] [masks of the slots not yet written]

Every token has the position it has in the text, wherever it stands in the input, so that attention can be causal and a slot
written late can lie before one written early. What is written in one step is written side by side, in *threads*: the masks by
which the step is planned are one, and each of its slots is one.

    A token sees what stands before it in its own thread, and whatever earlier steps wrote, up to the end of the text as it was
    known before its step.

So masks are seen by nothing but masks behind them, and slots of one step do not see each other, then or later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PROMPT, PADDING = -1, -2
"""The steps of what is not written."""
PLAN = -1
"""The thread of a step's masks; those of its slots are 0, 1, ..."""


class Places(NamedTuple):
    """What stands at the W places of R rows of input, all int64 [R, W] but `kept_RW`.

    token_RW, position_RW  the token, and where it stands in the text
    step_RW, thread_RW     when it was written, and in which thread
    limit_RW               the last position it may see of earlier steps
    kept_RW                bool: whether later steps see it
    """

    token_RW: Tensor
    position_RW: Tensor
    step_RW: Tensor
    thread_RW: Tensor
    limit_RW: Tensor
    kept_RW: Tensor

    @staticmethod
    def prompts(prompts: Sequence[Tensor]) -> Places:
        """Prompts [P] of token ids, padded behind."""
        length_G = torch.tensor([len(prompt) for prompt in prompts])
        token_GP = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        position_GP = torch.arange(token_GP.shape[1]).expand(token_GP.shape)
        within_GP = position_GP < length_G[:, None]
        step_GP = torch.where(within_GP, PROMPT, PADDING)
        return Places(token_GP, position_GP, step_GP, step_GP, position_GP, within_GP)

    @staticmethod
    def written(
        token_RW: Tensor, position_RW: Tensor, thread_RW: Tensor, step: int, limit_R: Tensor, valid_RW: Tensor
    ) -> Places:
        """What one step adds; padding where `valid_RW` is False. Masks are kept from later steps."""
        return Places(
            token_RW,
            position_RW,
            torch.where(valid_RW, step, PADDING),
            torch.where(valid_RW, thread_RW, PADDING),
            limit_R[:, None].expand(token_RW.shape),
            valid_RW & (thread_RW != PLAN),
        )

    def beside(self, other: Places) -> Places:
        """These places, then those."""
        return Places(*(torch.cat(columns, 1) for columns in zip(self, other, strict=True)))

    def first(self, count: int) -> Places:
        """The first `count` places of every row."""
        return Places(*(column[:, :count] for column in self))

    def to(self, device: torch.device | str) -> Places:
        """The same on another device."""
        return Places(*(column.to(device) for column in self))

    def seen(self, queries: int) -> Tensor:
        """bool [R, queries, W]: which places each of the last `queries` places sees.

        Padding sees padding, so that no row of attention is empty, and nothing else sees it.
        """
        width = self.token_RW.shape[1]
        last = slice(width - queries, width)

        def equal(column_RW: Tensor) -> Tensor:
            return column_RW[:, last, None] == column_RW[:, None, :]

        place_W = torch.arange(width, device=self.token_RW.device)
        before_QW = place_W[None, :] <= place_W[last, None]
        own_RQW = equal(self.step_RW) & equal(self.thread_RW) & before_QW
        earlier_RQW = self.step_RW[:, None, :] < self.step_RW[:, last, None]
        settled_RQW = self.position_RW[:, None, :] <= self.limit_RW[:, last, None]
        return own_RQW | (self.kept_RW[:, None, :] & earlier_RQW & settled_RQW)
