"""Tiny policies for the contract tests on networks of every family: "a", "b" and the end, few positions, with every order.

`untouched` asks the family's own code, called as its own sampler calls it, on a model of its own with the policy's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import Toy
from relgrad.core.types import Prompt, Rollouts
from relgrad.networks.causal.encode import Encoder
from relgrad.networks.masked import tiny
from relgrad.networks.masked.load import random_network
from relgrad.networks.masked.names import to_own
from relgrad.networks.masked.network import LibraryNetwork
from relgrad.policies.unmasking.parts import Opened
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.published import PublishedStore
from relgrad.policies.unmasking.settings import Law, Settings
from relgrad.policies.unmasking.tokens import TokenizerSymbols
from relgrad.policies.unmasking.toy import enumerate_all, keys, plain_step, reward
from relgrad.trajectories.states import unpack_states

MASK, ENTRIES, BLOCK = 3, 6, 2
"""The mask is an id without a token, and there are more logits than ids."""
PROMPTS = (Prompt("ab", id=0), Prompt("a", id=1), Prompt("bba", id=2))
FAMILIES = {
    "llada": ("llada", False),
    "llada-own-code": ("llada", True),
    "dream": ("dream", False),
    "dream-own-code": ("dream", True),
    "sdar-cached": ("sdar", False),
    "sdar-own-code": ("sdar", True),
    "llada2-own-code": ("llada2", True),
}
"""Networks: family, and whether its own code runs."""
ORDERS: dict[str, dict[str, Any]] = {
    "random": {},
    "plackett_luce": {"order_temperature": 0.5},
    "low_confidence": {},
    "threshold": {"threshold": 0.6},
    "ancestral": {},
    "remask": {"start_ratio": 0.5, "end_ratio": 0.5},
}


def tokenizer() -> Any:
    """One token a character: the end, "a", "b"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="b"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def network(family: str, own_code: bool) -> LibraryNetwork:
    """A random network, the same every time, whose laws are far from uniform."""
    own = tiny.sizes(family, 32, 1) | {
        "vocab_size": ENTRIES,
        "mask_token_id": MASK,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    own |= {"embedding_size": ENTRIES} if family == "llada" else {"block_size": BLOCK}
    return random_network(family, own, own_code=own_code)


def make(name: str, order: str, **options: Any) -> Callable[[], Toy]:
    """A constructor of the toy of a network with an order of unmasking, in two blocks of two positions."""

    def build() -> Toy:
        family, own_code = FAMILIES[name]
        steps = {"max_completion_length": 4, "block_length": BLOCK, "steps": 4} | options
        settings = Settings(model="toy", device="cpu", law=Law(order=order, **ORDERS[order]), **steps)
        net = network(family, own_code)
        encoder = Encoder(tokenizer(), settings, net.length, entries=ENTRIES, end_ids=(0,), end_id=0)
        symbols = TokenizerSymbols(encoder, MASK, ENTRIES)
        policy = UnmaskingPolicy(Opened(net, symbols, PublishedStore(net, symbols, "toy")), settings)
        policy.freeze_reference()
        jumps = order in ("low_confidence", "threshold")
        return Toy(
            policy,
            PROMPTS,
            lambda prompt: enumerate_all(policy, prompt),
            keys,
            reward,
            untouched=lambda rollouts: untouched(policy, rollouts),
            jumps=jumps,
        )

    return build


@torch.no_grad()
def untouched(policy: UnmaskingPolicy, rollouts: Rollouts) -> Tensor:
    """[B, T]: log-probabilities of rollouts by the family's own code, every prompt alone."""
    logp_BT = torch.zeros(rollouts.mask_BT.shape)
    trace = dict(rollouts.trace)
    for group, prompt in enumerate(rollouts.prompts):
        row_R = (rollouts.group_B == group).nonzero()[:, 0]
        states = unpack_states(trace, row_R)
        order_RE = trace["order_BE"][row_R].long() if "order_BE" in trace else torch.zeros_like(states[:, 0]).long()
        alone = policy.read([prompt])
        for step in range(logp_BT.shape[1]):
            before, after = states[:, step].long(), states[:, step + 1].long()
            logp_R = plain_step(policy, alone, before, after, order_RE, step, own_logits)[0]
            logp_BT[row_R, step] = logp_R.float()
    return logp_BT * rollouts.mask_BT


def own_logits(policy: UnmaskingPolicy, prompt_L: Tensor, state_UE: Tensor) -> Tensor:
    """See toy.network_logits: by the family's own code, called as its own sampler calls it."""
    net = policy.network
    assert isinstance(net, LibraryNetwork)
    family, pairs = net.family.name, () if net.own_code or net.family.library is None else net.family.library.renamed
    model = tiny.own_model(family, {k: v for k, v in net.config.items() if k not in ("auto_map", "architectures")})
    model.load_state_dict({to_own(n, pairs): t for n, t in net.language_model.state_dict().items()})
    ids_UL = torch.cat([prompt_L.expand(len(state_UE), -1), state_UE], 1)
    place_L = torch.arange(ids_UL.shape[1])
    visible = (place_L[:, None] // BLOCK >= place_L // BLOCK)[None, None].expand(len(ids_UL), -1, -1, -1)
    inputs: dict[str, dict[str, Any]] = {
        "llada": {},
        "dream": {"attention_mask": "full", "position_ids": place_L[None]},
        "sdar": {"attention_mask": visible, "position_ids": place_L[None]},
        "llada2": {"attention_mask": visible.float().log(), "position_ids": place_L.expand_as(ids_UL)},
    }
    logits_ULV: Tensor = model(input_ids=ids_UL, **inputs[family]).logits
    if family == "dream":
        logits_ULV = torch.cat([logits_ULV[:, :1], logits_ULV[:, :-1]], 1)
    return logits_ULV[:, len(prompt_L) :]


def toys() -> dict[str, Callable[[], Toy]]:
    """Every network with every order, by name."""
    return {f"{name}-{order}": make(name, order) for name in FAMILIES for order in ORDERS}
