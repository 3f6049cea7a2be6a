"""Networks behind the interface of masked networks."""

from __future__ import annotations

import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.masked.diffusion_gpt import MaskedGPT
from relgrad.networks.masked.interface import PROMPT, MaskedNetwork


def gpt(**options) -> GPT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=1, n_head=2, n_embd=8, **options)).eval()


def test_diffusion_gpt_says_what_its_own_forward_says():
    model = gpt()
    network: MaskedNetwork = MaskedGPT(model, mask_id=4)
    ids_BL = torch.tensor([[0, 1, 4, 4], [2, 4, 5, 5]])
    valid_BL = torch.tensor([[True] * 4, [True, True, False, False]])
    block_BL = torch.tensor([[PROMPT, PROMPT, 0, 1], [PROMPT, 0, 0, 0]])
    logits_BLV = network.logits(network.hidden(ids_BL, valid_BL, block_BL))
    assert (network.length, network.vocabulary_size, network.mask_id, network.module) == (8, 7, 4, model)
    torch.testing.assert_close(logits_BLV[0], model.logits(model.hidden(ids_BL[:1]))[0])
    torch.testing.assert_close(logits_BLV[1, :2], model.logits(model.hidden(ids_BL[1:, :2]))[0])


def test_dropout_is_off_at_first() -> None:
    network = MaskedGPT(gpt(dropout=0.5).train(), mask_id=4)
    ids_BL, valid_BL = torch.tensor([[0, 1, 4, 4]]), torch.ones(1, 4, dtype=torch.bool)
    first, again = (network.hidden(ids_BL, valid_BL, ids_BL) for _ in range(2))
    assert torch.equal(first, again)
    network.dropout(True)
    assert not torch.equal(network.hidden(ids_BL, valid_BL, ids_BL), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"attention_type": "causal"}, "bidirectional"), ({"mode": "token_classifier"}, "token_classifier")],
)
def test_a_network_that_cannot_unmask_is_refused(options, message):
    with pytest.raises(RelgradError, match=message):
        MaskedGPT(gpt(**options), mask_id=4)
