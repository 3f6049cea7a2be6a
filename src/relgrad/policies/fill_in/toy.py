"""Tiny fill-in policies for the contract tests: three characters, at most three masked positions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import torch

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.laws import categorical, tiled
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.policies.fill_in.policy import FillInPolicy, ended
from relgrad.policies.fill_in.settings import Settings
from relgrad.text.vocabulary import Vocabulary


def make(*, attends_padding: bool = False, **options: Any) -> Callable[[], Toy]:
    """A constructor of one toy with these settings. A network that attends to padding is given samples of several widths."""

    def build() -> Toy:
        settings = Settings(block_size=8, n_layer=2, n_head=2, n_embd=16, **options)
        vocabulary = Vocabulary.of_text("abc")
        sizes = settings.model_dump(include=set(GPTConfig.model_fields))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT(GPTConfig(vocab_size=vocabulary.size, attends_padding=attends_padding, **sizes))
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.4)
        policy = FillInPolicy(model, vocabulary, settings)
        policy.freeze_reference()
        widths: list[dict[str, int]] = [{"width": 8}, {"width": 3}, {}] if attends_padding else [{}, {}, {}]
        texts = ("ab██c", "█", "b█a█bca█")
        prompts = tuple(
            Prompt(text, columns, id=i) for i, (text, columns) in enumerate(zip(texts, widths, strict=True))
        )
        return Toy(policy, prompts, lambda prompt: enumerate_all(policy, prompt), keys, reward)

    return build


def keys(rollouts: Rollouts) -> list[Hashable]:
    """The completed ids of every row."""
    return [output.ids for output in rollouts.outputs]


def reward(output: Output) -> float:
    """How many "a"s there are, less a little for "b"s: learnable, and different for almost every trajectory."""
    return float(output.text.count("a")) - 0.25 * output.text.count("b")


@torch.no_grad()
def enumerate_all(policy: FillInPolicy, prompt: Prompt) -> Rollouts:
    """Every completion with positive probability, scored by one plain forward pass over the prompt alone."""
    ids = policy.encode(prompt)
    masked_GL, length_G, _ = policy.read([prompt])
    positions = [i for i, v in enumerate(ids) if v == policy.vocabulary.mask_id]
    logits_TV = policy.model.logits(policy.model.hidden(masked_GL)[0, positions])[:, : policy.vocabulary.base]
    support_TV = policy.truncation.support(logits_TV)
    logp_TV = categorical.log_probs(logits_TV, policy.truncation, support_TV)
    rows = [
        tokens
        for tokens in itertools.product(range(policy.vocabulary.base), repeat=len(positions))
        if all(bool(support_TV[t, v]) for t, v in enumerate(tokens))
    ]
    token_BT = torch.tensor(rows, dtype=torch.int32)
    logp_BT = logp_TV[torch.arange(len(positions)), token_BT.long()]
    trace = {"masked_GL": masked_GL.int(), "length_G": length_G, "position_GT": torch.tensor([positions]).int(),
             "token_BT": token_BT}  # fmt: skip
    if policy.truncation.truncates:
        support = tiled.Support.pack(support_TV)
        trace["support_offset"], trace["support_index"] = support.offset_N1, support.entry_M
    outputs = []
    for tokens in rows:
        completed = list(ids)
        for position, token in zip(positions, tokens, strict=True):
            completed[position] = token
        outputs.append(Output(policy.vocabulary.decode(completed), tuple(completed)))
    mask_BT = torch.ones_like(token_BT, dtype=torch.bool)
    return Rollouts(
        (prompt,), torch.zeros(len(rows), dtype=torch.int64), logp_BT, mask_BT, mask_BT.long(), tuple(outputs),
        ended(len(rows)), policy.version, trace,
    )  # fmt: skip


def toys() -> dict[str, Any]:
    """Tiny instances for the contract tests, by name."""
    return {
        "rotary": make(),
        "absolute-bias-temperature": make(position_encoding="absolute", bias=True, temperature=0.7),
        "top-p-dropout-configured": make(top_p=0.97, dropout=0.3),
        "top-k-temperature-causal": make(top_k=2, temperature=1.3, attention_type="causal"),
        "attends-padding": make(attends_padding=True),
        "untempered-scoring": make(temperature=0.8, top_p=0.9, scoring="untempered"),
    }
