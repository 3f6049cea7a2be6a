"""Tiny autoregressive policies for the contract tests: five-word vocabularies, at most three decisions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.laws import categorical, tiled
from relgrad.policies.autoregressive.build import compose
from relgrad.policies.autoregressive.policy import AutoregressivePolicy
from relgrad.policies.autoregressive.settings import Lora, Settings

LIMIT = 3
WORDS = ("<eos>", "<end>", "a", "b", "c")


def tokenizer(padding_side: str = "right") -> Any:
    """A word-level tokenizer of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="c"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", padding_side=padding_side
    )
    return fast


def network(kind: str = "llama") -> Any:
    """A random two-layer model with logits spread enough that mistakes show."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 4, "vocab_size": len(WORDS), "max_position_embeddings": 32,
             "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            model: Any = LlamaForCausalLM(LlamaConfig(**shape))
        elif kind == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True))
        else:
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=4, n_positions=32,
                                               eos_token_id=0, bos_token_id=None))  # fmt: skip
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4 if "embed" not in name else 0.7)
    return model


def make(kind: str = "llama", padding_side: str = "right", lora: bool = False, **settings: Any) -> Callable[[], Toy]:
    """A constructor of one toy."""

    def build() -> Toy:
        from relgrad.networks.causal import load as causal

        chosen = Settings(
            model="toy", max_completion_length=LIMIT, lora=Lora(r=2, alpha=4) if lora else None, **settings
        )
        model = network(kind)
        if lora:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = causal.add_lora(model, r=2, alpha=4, dropout=0.0, targets="all-linear")
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.normal_(parameter, std=0.3)
        policy = compose(model, tokenizer(padding_side), chosen)
        policy.freeze_reference()
        prompts = (Prompt("a b c", id=0), Prompt("b", id=1), Prompt("c c a b", id=2))
        return Toy(
            policy,
            prompts,
            enumerate=lambda prompt: enumerate_all(policy, prompt),
            keys=keys,
            reward=reward,
            untouched=lambda rollouts: untouched_log_probs(policy, plain_copy(policy, kind), rollouts),
        )

    return build


def keys(rollouts: Rollouts) -> list[Hashable]:
    """Every row's token ids."""
    rows = zip(rollouts.trace["token_BT"].tolist(), rollouts.trace["length_B"].tolist(), strict=True)
    return [tuple(tokens[:length]) for tokens, length in rows]


def reward(output: Output) -> float:
    """The number of "a"s, from 0 to 3: learnable, and different for almost every trajectory."""
    return float(output.text.split().count("a")) - 0.25 * output.text.split().count("b")


@torch.no_grad()
def enumerate_all(policy: AutoregressivePolicy, prompt: Prompt) -> Rollouts:
    """Every completion of up to LIMIT tokens with positive probability, scored by plain forward passes of the model."""
    ids = policy.encode(prompt)
    law = policy.truncation
    rows = [
        list(tokens)
        for length in range(1, LIMIT + 1)
        for tokens in itertools.product(range(len(WORDS)), repeat=length)
        if not any(t in policy.eos_ids for t in tokens[:-1]) and (tokens[-1] in policy.eos_ids or length == LIMIT)
    ]
    kept: list[tuple[list[int], Tensor, Tensor]] = []
    for row in rows:
        full = torch.tensor([*ids.tolist(), *row])[None]
        logits_TV = policy.model(full).logits[0, len(ids) - 1 : -1]
        support_TV = law.support(logits_TV)
        logp_T = categorical.log_probs(logits_TV, law)[torch.arange(len(row)), row]
        if bool(logp_T.isfinite().all()):
            kept.append((row, logp_T, support_TV))
    return _as_rollouts(policy, prompt, ids, kept)


def plain_copy(policy: AutoregressivePolicy, kind: str) -> Any:
    """A model as transformers builds it, with the policy's weights of this moment, an adapter merged in by peft."""
    model = network(kind).eval()
    if policy.settings.lora is None:
        model.load_state_dict(policy.model.state_dict())
        return model
    from relgrad.networks.causal import load as causal

    adapted = causal.add_lora(model, r=2, alpha=4, dropout=0.0, targets="all-linear")
    adapted.load_state_dict(policy.model.state_dict())
    return adapted.merge_and_unload().eval()


@torch.no_grad()
def untouched_log_probs(policy: AutoregressivePolicy, model: Any, rollouts: Rollouts) -> Tensor:
    """[B, T]: log pi of every decision under the policy's law, each row alone through the forward of `model`."""
    logp_BT = torch.zeros(rollouts.mask_BT.shape)
    for row, group in enumerate(rollouts.group_B.tolist()):
        prompt = policy.encode(rollouts.prompts[group])
        token_T = rollouts.trace["token_BT"][row, : int(rollouts.trace["length_B"][row])].long()
        logits_TV = model(torch.cat([prompt, token_T])[None]).logits[0, len(prompt) - 1 : -1]
        logp_TV = categorical.log_probs(logits_TV, policy.truncation)
        logp_BT[row, : len(token_T)] = logp_TV.gather(-1, token_T[:, None])[:, 0]
    return logp_BT


def _as_rollouts(
    policy: AutoregressivePolicy, prompt: Prompt, ids: Tensor, kept: list[tuple[list[int], Tensor, Tensor]]
) -> Rollouts:
    pad = torch.nn.utils.rnn.pad_sequence
    length_B = torch.tensor([len(row) for row, _, _ in kept])
    token_BT = pad([torch.tensor(row) for row, _, _ in kept], batch_first=True)
    mask_BT = torch.arange(token_BT.shape[1])[None] < length_B[:, None]
    trace = {"prompt_ids": ids, "prompt_length_G": torch.tensor([len(ids)]), "token_BT": token_BT, "length_B": length_B}
    if policy.truncation.truncates:
        support = tiled.Support.pack(torch.cat([s for _, _, s in kept]))
        trace["support_offset"], trace["support_index"] = support.offset_N1, support.entry_M
    texts = [[t for t in row if t not in policy.eos_ids] for row, _, _ in kept]
    return Rollouts(
        (prompt,), torch.zeros(len(kept), dtype=torch.int64), pad([p for _, p, _ in kept], batch_first=True), mask_BT,
        mask_BT.long(), tuple(Output(policy.tokenizer.decode(t), tuple(t)) for t in texts),
        tuple("eos" if row[-1] in policy.eos_ids else "length" for row, _, _ in kept), policy.version, trace,
    )  # fmt: skip


def toys() -> dict[str, Any]:
    """Tiny instances for the contract tests, by name."""
    return {
        "llama": make(),
        "qwen3-lora-temperature": make("qwen3", lora=True, temperature=0.7),
        "left-padding-two-eos-top-p": make(padding_side="left", eos_token_ids=(1,), top_p=0.8),
        "top-k-temperature-checkpointing": make("qwen3", top_k=3, temperature=1.3, gradient_checkpointing=True),
        "gpt2-transformers-engine-top-p": make("gpt2", padding_side="left", top_p=0.9, engine="transformers"),
    }
