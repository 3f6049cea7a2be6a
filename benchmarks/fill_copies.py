"""The seeds' way of one GRPO step on a diffusion GPT: every prompt is copied k times, and every copy is computed.

Written from a description of what JinxCodesAI/nano_gpt (branch feature/grpo_v2, grpo/) does in one micro-step, on relgrad's
network, so that both ways share every kernel:

    X_BL      the prompts, each k times                                   B = prompts x k
    z_BLV     one forward pass with gradient, logits at all L positions
    x_BL      drawn row by row in a Python loop: logits of the masked positions, special ids at -inf, softmax, multinomial
    A_B       r - mean of its group, then centred and divided by its standard deviation over the batch
    s_B       sum over masked positions of log_softmax(z)[x], over all ids and at temperature 1; the log-softmax of all positions
    s_ref_B   the same by a second network, on all B rows, without gradient
    L         -mean(s A) + beta mean(s - s_ref)

Left out because they only cost time there: the cross-entropy against dummy targets and the debug prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from relgrad.core.types import Prompt
from relgrad.networks.diffusion_gpt.network import GPT
from relgrad.text.vocabulary import Vocabulary

MAX_GRAD_NORM = 1.0
ScoreRows = Callable[[Tensor, Tensor], Tensor]
"""(masked ids [B, L], filled ids [B, L]) -> rewards [B]."""


class Copies:
    """`update` is one optimizer step: AdamW without weight decay, gradients clipped to norm MAX_GRAD_NORM.

    prompts_at_once   prompts of one micro-batch; their gradients are accumulated, with a standard deviation each
    """

    def __init__(
        self,
        model: GPT,
        reference: GPT,
        vocabulary: Vocabulary,
        score: ScoreRows,
        *,
        copies: int,
        prompts_at_once: int,
        beta: float,
        learning_rate: float,
    ) -> None:
        self.model, self.reference, self.vocabulary = model.train(), reference.eval(), vocabulary
        self.reward = score
        self.copies, self.prompts_at_once, self.beta = copies, prompts_at_once, beta
        self.adam = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)

    def update(self, prompts: Sequence[Prompt]) -> None:
        """One step on these prompts."""
        pieces = [prompts[i : i + self.prompts_at_once] for i in range(0, len(prompts), self.prompts_at_once)]
        for piece in pieces:
            masked_BL = self.copy(piece)
            logits_BLV, filled_BL = self.sample(masked_BL)
            advantage_B = self.credit(self.reward(masked_BL, filled_BL))
            loss = self.loss(logits_BLV, masked_BL, filled_BL, advantage_B) / len(pieces)
            loss.backward()
        self.apply()

    def copy(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, L]: the masked ids of every prompt, `copies` times. All prompts have one length."""
        return torch.tensor([p.columns["masked_ids"] for p in prompts]).repeat_interleave(self.copies, 0)

    def logits(self, network: GPT, masked_BL: Tensor) -> Tensor:
        """[B, L, V] at every position of every row."""
        return network.logits(network.hidden(masked_BL))

    def sample(self, masked_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] with gradient, and ids [B, L] with every masked position filled in."""
        logits_BLV = self.logits(self.model, masked_BL)
        filled_BL = masked_BL.clone()
        for row in range(len(masked_BL)):
            spots = (masked_BL[row] == self.vocabulary.mask_id).nonzero(as_tuple=True)[0]
            spot_logits = logits_BLV[row, spots].detach().clone()
            spot_logits[:, self.vocabulary.base :] = -torch.inf
            drawn = torch.multinomial(torch.softmax(spot_logits, -1), 1)
            filled_BL[row, spots] = drawn[:, 0]
        return logits_BLV, filled_BL

    def credit(self, reward_B: Tensor) -> Tensor:
        """Advantages [B]: centred in the group, then standardised over the batch."""
        group_GK = reward_B.view(-1, self.copies)
        centred_B = (group_GK - group_GK.mean(-1, keepdim=True)).flatten()
        return (centred_B - centred_B.mean()) / (centred_B.std() + 1e-8)

    def loss(self, logits_BLV: Tensor, masked_BL: Tensor, filled_BL: Tensor, advantage_B: Tensor) -> Tensor:
        """The module's L. The reference is computed where beta is not 0."""
        logp_B = self.row_logp(logits_BLV, masked_BL, filled_BL)
        loss = -(logp_B * advantage_B).mean()
        if self.beta:
            with torch.no_grad():
                reference_B = self.row_logp(self.logits(self.reference, masked_BL), masked_BL, filled_BL)
            loss = loss + self.beta * (logp_B - reference_B).mean()
        return loss

    def row_logp(self, logits_BLV: Tensor, masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
        """[B], nats: log-probability of a row's fills."""
        logp_BLV = torch.log_softmax(logits_BLV, -1)
        logp_BL = logp_BLV.gather(-1, filled_BL[..., None])[..., 0]
        return (logp_BL * (masked_BL == self.vocabulary.mask_id)).sum(-1)

    def apply(self) -> None:
        """Clip and apply the gradients, then clear them."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
