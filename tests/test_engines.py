"""The engines of the autoregressive policy against the models' own forward pass, over architectures that differ where it hurts:
biases, grouped queries, rotary scaling, sliding windows, multipliers, sinks, interleaved rotation, layers without rotation.

Completions are long enough for the lean decoder, and rows end early, so that the grid of rows is compacted on the way.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.laws import tiled
from relgrad.networks.causal import lean_decoder as lean
from relgrad.networks.causal import load as causal
from relgrad.networks.causal.grid import Grid
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings
from relgrad.policies.autoregressive import toy as _toys
from relgrad.policies.autoregressive.build import compose
from relgrad.policies.autoregressive.packed import Packed
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

LIMIT = 40
GROUP = 6
PROMPTS = (Prompt("a b c a b c a a", id=0), Prompt("b", id=1), Prompt("c c a b", id=2))
PADDED_VOCABULARY = 24
"""More logits than the tokenizer has words, as in many real models."""

BASE: dict[str, Any] = {
    "vocab_size": PADDED_VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0,
    "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}

# name: (configuration class, settings of its own, engine that "auto" must find, whether the lean decoder serves it)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "llama": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, "shared", True),
    "llama3-rope-wide-heads": ("LlamaConfig", {"head_dim": 16, "rope_parameters": LLAMA3}, "shared", True),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}, "shared", True),
    "mistral": ("MistralConfig", {"sliding_window": None}, "shared", True),
    "mistral-window": ("MistralConfig", {"sliding_window": 10}, "shared", False),
    "qwen2-biases-tied": ("Qwen2Config", {"tie_word_embeddings": True}, "shared", True),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
        "shared",
        False,
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, "shared", True),
    "smollm3-unrotated-layers": ("SmolLM3Config", {}, "shared", False),
    "granite-multipliers": (
        "GraniteConfig",
        {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.3, "logits_scaling": 1.0},
        "shared",
        False,
    ),
    "granite-scaled-logits": ("GraniteConfig", {"logits_scaling": 4.0}, "transformers", False),
    "ernie-interleaved": ("Ernie4_5Config", {}, "shared", False),
    "gemma2-softcaps": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 10, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
        "transformers",
        False,
    ),
    "gemma3-windows": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 10, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "shared",
        False,
    ),
    "phi-head-bias": ("PhiConfig", {}, "shared", False),
    "phi3-window": ("Phi3Config", {"sliding_window": 10}, "shared", False),
    "olmo2": ("Olmo2Config", {}, "shared", False),
    "deepseek-narrow-values": (
        "DeepseekV3Config",
        {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 12,
         "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
         "moe_intermediate_size": 16, "n_shared_experts": 1},
        "shared",
        False,
    ),
    "gpt-oss-sinks": (
        "GptOssConfig",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 10},
        "transformers",
        False,
    ),
    "gpt-neox": ("GPTNeoXConfig", {}, "shared", False),
    "opt-dropout-in-its-layers": ("OPTConfig", {"ffn_dim": 48, "dropout": 0.3, "word_embed_proj_dim": 32}, "shared", False),
    "cohere-scaled-logits": ("CohereConfig", {"logit_scale": 0.25}, "transformers", False),
}  # fmt: skip


def network(name: str, *, lora: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of an architecture, always the same; biases, norms and adapters are far from their neutral values."""
    import transformers

    kind, settings, _, _ = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**BASE, **settings})
        model: Any = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
        if lora:
            model = causal.add_lora(model, r=2, alpha=4, dropout=0.0, targets="all-linear")
        for path, parameter in model.named_parameters():
            centre = 1.0 if "norm" in path and "gemma" not in name and "bias" not in path else 0.0
            torch.nn.init.normal_(parameter, centre, 0.18)
    return model


def policy_of(model: Any, **settings: Any) -> AutoregressivePolicy:
    """A policy with two end-of-sequence ids around a model."""
    chosen = Settings(model="random", max_completion_length=LIMIT, eos_token_ids=(1,), **settings)
    return compose(model, _toys.tokenizer("left"), chosen)


def drawn(policy: AutoregressivePolicy) -> Rollouts:
    """Rollouts of very different lengths."""
    rollouts = policy.sample(PROMPTS, GROUP, torch.Generator().manual_seed(1))
    assert len(rollouts.trace["length_B"].unique()) > 3
    return rollouts


def forward_log_probs(model: Any, policy: AutoregressivePolicy, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """log pi of every decision by the model's own forward pass, row by row, over the recorded support."""
    parts, cell = [], 0
    for row in range(rollouts.rows):
        prompt = policy.encode(rollouts.prompts[int(rollouts.group_B[row])])
        token_T = rollouts.trace["token_BT"][row, : int(rollouts.trace["length_B"][row])].long()
        logits_TV = model(torch.cat([prompt, token_T])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        logits_TV = logits_TV / temperature
        if "support_index" in rollouts.trace:
            support = tiled.Support(rollouts.trace["support_offset"], rollouts.trace["support_index"])
            allowed_TV = support.dense(cell, cell + len(token_T), PADDED_VOCABULARY)
            logits_TV = logits_TV.masked_fill(~allowed_TV, -torch.inf)
        parts.append(torch.log_softmax(logits_TV, -1).gather(-1, token_T[:, None])[:, 0])
        cell += len(token_T)
    return torch.cat(parts)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("truncated", [False, True], ids=["whole", "top-p"])
def test_what_is_sampled_is_what_the_model_says(name: str, truncated: bool):
    policy = policy_of(network(name), **({"top_p": 0.9, "temperature": 1.4} if truncated else {}))
    assert policy.engine.name == ARCHITECTURES[name][2], policy.notes
    rollouts = drawn(policy)
    behaviour_N = rollouts.behaviour_logp_BT[rollouts.mask_BT]
    with torch.no_grad():
        scored_N = policy.score(rollouts, rollouts.cells()).logp_N
        expected_N = forward_log_probs(network(name), policy, rollouts, policy.settings.temperature)
    assert (behaviour_N - expected_N).abs().max() < 1e-5
    assert (scored_N - expected_N).abs().max() < 1e-5


@pytest.mark.parametrize("engine", ["shared", "transformers"])
@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-biases-tied", "qwen3", "gemma3-windows"])
def test_adapters_act_in_both_engines(name: str, engine: str):
    policy = policy_of(network(name, lora=True), engine=engine)
    rollouts = drawn(policy)
    with torch.no_grad():
        scored_N = policy.score(rollouts, rollouts.cells()).logp_N
        expected_N = forward_log_probs(network(name, lora=True), policy, rollouts)
        with policy.model.disable_adapter():
            bare_N = policy.score(rollouts, rollouts.cells()).logp_N
    assert (rollouts.behaviour_logp_BT[rollouts.mask_BT] - expected_N).abs().max() < 1e-5
    assert (scored_N - expected_N).abs().max() < 1e-5
    assert (scored_N - bare_N).abs().max() > 0.1


@pytest.mark.parametrize("name", ["qwen2-window", "mistral-window", "gemma3-windows", "phi3-window", "phi-head-bias"])
def test_the_packed_gradient_is_the_plain_one(name: str):
    # any weights will do, but every decision its own, so that a gradient at a wrong place cannot cancel
    policy = policy_of(network(name, dtype=torch.float64))
    rollouts = drawn(policy)
    weight_N = torch.randn(int(rollouts.mask_BT.sum()), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (policy.score(rollouts, rollouts.cells()).logp_N * weight_N).sum().backward()
    plain = network(name, dtype=torch.float64)
    (forward_log_probs(plain, policy, rollouts) * weight_N).sum().backward()
    for (path, parameter), expected in zip(policy.model.named_parameters(), plain.parameters(), strict=True):
        if expected.grad is None:
            assert parameter.grad is None or not parameter.grad.any(), path
            continue
        # transformers normalises in float32 even in a float64 model
        assert (parameter.grad - expected.grad).abs().max() < 1e-5 * expected.grad.abs().max(), path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_lean_decoder_takes_only_what_it_computes(name: str):
    of = lean.LeanDecoder.of(network(name).get_decoder(), LIMIT)
    assert (of is not None) == ARCHITECTURES[name][3]


def test_rows_that_end_early_leave_the_grid(monkeypatch: pytest.MonkeyPatch):
    seen = []
    keep = Grid.keep

    def spy(grid: Any, groups: Tensor, slots: Tensor) -> None:
        seen.append(slots.numel())
        keep(grid, groups, slots)

    monkeypatch.setattr(Grid, "keep", spy)
    drawn(policy_of(network("mistral-window")))
    drawn(policy_of(network("llama")))
    assert min(seen) < len(PROMPTS) * GROUP / 2


def test_a_models_own_generation_config_is_no_part_of_the_law():
    model = network("granite-scaled-logits")
    config = model.generation_config
    config.suppress_tokens, config.no_repeat_ngram_size, config.min_new_tokens = [2, 3], 1, 20
    policy = policy_of(model)
    rollouts = drawn(policy)
    with torch.no_grad():
        expected_N = forward_log_probs(network("granite-scaled-logits"), policy, rollouts)
    assert (rollouts.behaviour_logp_BT[rollouts.mask_BT] - expected_N).abs().max() < 1e-5
    assert model.generation_config is config


def test_the_reference_keeps_its_own_head_bias():
    policy = policy_of(network("phi-head-bias"))
    policy.freeze_reference()
    rollouts = drawn(policy)
    with torch.no_grad():
        policy.causal_lm.lm_head.bias.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(3))
        kl_N = policy.score(rollouts, rollouts.cells(), reference_kl=True).kl_N
        prompt = policy.encode(PROMPTS[0])[None]
        log_p = torch.log_softmax(policy.causal_lm(prompt).logits[0, -1], -1)
        log_q = torch.log_softmax(network("phi-head-bias")(prompt).logits[0, -1], -1)
    assert kl_N is not None
    expected = float((log_p.exp() * (log_p - log_q)).sum())
    assert expected > 0.01
    assert float(kl_N[0]) == pytest.approx(expected, abs=1e-5)


def test_a_rotation_that_depends_on_the_rows_length_limits_the_context():
    from transformers import Phi3Config

    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, "factor": 4.0,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    }  # fmt: skip
    config = Phi3Config(**{**BASE, "original_max_position_embeddings": 16, "rope_parameters": rope})
    assert causal.context(config) == 16
    assert causal.context(network("llama").config) == 64


def test_an_adapter_on_the_head_is_refused():
    with pytest.raises(RelgradError, match="output head"):
        causal.add_lora(network("llama"), r=2, alpha=4, dropout=0.0, targets=["q_proj", "lm_head"])


# ---------------------------------------------------------------------- chunks of a budget


RAGGED = (1, 1, 2, 30, 1, 3, 1, 1, 2, 40, 5, 5)
"""Lengths of completions of which a few are long: twelve rows, four for each prompt."""


def of_lengths(
    policy: AutoregressivePolicy, lengths: tuple[int, ...], prompts: tuple[Prompt, ...] = PROMPTS
) -> Rollouts:
    """Rollouts of given lengths, the same number of rows for every prompt; all tokens are "a"."""
    encoded = [policy.encode(p) for p in prompts]
    length_B = torch.tensor(lengths)
    mask_BT = torch.arange(max(lengths))[None] < length_B[:, None]
    trace = {
        "prompt_ids": torch.cat(encoded), "prompt_length_G": torch.tensor([len(p) for p in encoded]),
        "token_BT": mask_BT * 2, "length_B": length_B,
    }  # fmt: skip
    rows = len(lengths)
    group_B = torch.arange(len(prompts)).repeat_interleave(rows // len(prompts))
    outputs, stops = (Output(""),) * rows, ("length",) * rows
    return Rollouts(prompts, group_B, torch.zeros(mask_BT.shape), mask_BT, mask_BT.long(), outputs, stops, 0, trace)


def padded_tokens(policy: AutoregressivePolicy, rollouts: Rollouts, chunk_N2: Tensor) -> int:
    """What scoring the chunk computes, padding included: the input of transformers, or what attention pads on the way."""
    if policy.engine.name == "shared":
        layout = Packed.of(rollouts, chunk_N2, policy.device).layout
        return sum(part.rows * part.width for part in (layout.prompts, layout.completions))
    sizes = []
    watch = policy.causal_lm.register_forward_pre_hook(
        lambda model, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    with torch.no_grad(), watch:
        policy.score(rollouts, chunk_N2)
    return sizes[0]


@pytest.mark.parametrize("engine", ["shared", "transformers"])
@pytest.mark.parametrize("lengths", [RAGGED, (7,) * 12, (1,) * 12, (1,) * 11 + (40,)])
def test_a_chunk_never_takes_more_than_its_budget(engine: str, lengths: tuple[int, ...]):
    policy = policy_of(network("llama"), engine=engine)
    rollouts = of_lengths(policy, lengths)
    for budget in (1, 20, 50, 100, 200, 10_000):
        for rows in (torch.arange(12), torch.tensor([11, 4, 3, 8])):
            chunks = policy.plan(rollouts, rows, budget)
            assert sorted(torch.cat(chunks).tolist()) == sorted(rollouts.cells(rows).tolist())
            for chunk_N2 in chunks:
                assert padded_tokens(policy, rollouts, chunk_N2) <= budget or len(chunk_N2[:, 0].unique()) == 1
    assert len(policy.plan(rollouts, torch.arange(12), 10_000)) == 1


def test_one_long_row_beside_many_short_ones():
    """Together they have 640 tokens; padded to the longest, 20 times as many, and 80 x 160 x 162 attention scores a head."""
    policy = policy_of(network("llama"), engine="shared")
    prompts = tuple(Prompt("a " * n, id=n) for n in (1, 2, 1, 2))
    rollouts = of_lengths(policy, (160, *(6,) * 79), prompts)
    chunks = policy.plan(rollouts, torch.arange(80), 1_000)
    layouts = [Packed.of(rollouts, chunk_N2, policy.device).layout for chunk_N2 in chunks]
    own = [layout.completions.rows * layout.completions.width**2 for layout in layouts]
    prompts_part = [layout.groups.rows * layout.groups.width * layout.prompts.width for layout in layouts]
    assert len(chunks) == 2
    assert sum(own) + sum(prompts_part) < 200_000  # a tenth


# ---------------------------------------------------------------------- the exact divergence


@pytest.mark.parametrize("law", [{}, {"top_p": 0.9, "temperature": 1.4}], ids=["whole", "top-p"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma2-softcaps"])
def test_at_the_reference_the_exact_kl_and_its_gradient_are_zero(name: str, lora: bool, law: dict[str, float]):
    """Exactly: Adam makes a full step of every rounding error."""
    policy = policy_of(network(name, lora=lora), **law)
    policy.freeze_reference()
    rollouts = drawn(policy)
    kl_N = policy.score(rollouts, rollouts.cells(), reference_kl=True).kl_N
    assert kl_N is not None
    assert kl_N.tolist() == [0.0] * len(kl_N)
    kl_N.sum().backward()
    for path, parameter in policy.parameters():
        assert parameter.grad is None or not parameter.grad.any(), path


@pytest.mark.parametrize("name", ["llama", "gemma2-softcaps"])
def test_the_gradient_of_the_exact_kl(name: str):
    """Away from the reference, that of autograd through the definition."""
    policy = policy_of(network(name))
    policy.freeze_reference()
    rollouts = drawn(policy)
    start = network(name)
    with torch.no_grad():
        for _, parameter in policy.parameters():
            parameter.mul_(1.1)
    kl_N = policy.score(rollouts, rollouts.cells()[:4], reference_kl=True).kl_N
    assert kl_N is not None
    parameters = [p for _, p in policy.parameters()]
    found = torch.autograd.grad(kl_N.sum(), parameters, allow_unused=True)
    ids = torch.cat([policy.encode(PROMPTS[0]), rollouts.trace["token_BT"][0].long()])[None]
    steps = slice(ids.shape[1] - rollouts.mask_BT.shape[1] - 1, None)
    log_p, log_q = (torch.log_softmax(m(ids).logits[0, steps][:4], -1) for m in (policy.causal_lm, start))
    expected = torch.autograd.grad((log_p.exp() * (log_p - log_q.detach())).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None or not ours.any()
            continue
        assert ours is not None
        assert (ours - theirs).abs().max() < 1e-4 * max(float(theirs.abs().max()), 1e-3)


# ---------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("auto", "llama"),
        ("auto", "granite-scaled-logits"),
        ("transformers", "gemma2-softcaps"),
        ("transformers", "opt-dropout-in-its-layers"),
        *(
            pytest.param(engine, name, marks=pytest.mark.slow)
            for engine, name in [
                ("auto", "gemma2-softcaps"),
                ("auto", "gpt-oss-sinks"),
                ("auto", "opt-dropout-in-its-layers"),
                ("transformers", "gpt-oss-sinks"),
                ("transformers", "granite-scaled-logits"),
                ("transformers", "llama"),
            ]
        ),
    ],
)
def test_gradient_checkpointing_changes_neither_samples_nor_gradients(name: str, engine: str):
    kept, passes = [], []
    for recompute in (False, True):
        policy = policy_of(network(name), engine=engine, gradient_checkpointing=recompute)
        drawn(policy)
        rollouts = drawn(policy)  # after a first one, too: modes are taken at the moment of use
        calls: list[int] = []
        first_layer = next(m for m in policy.causal_lm.modules() if isinstance(m, torch.nn.ModuleList))[0]
        inner = next(m for m in first_layer.modules() if isinstance(m, torch.nn.Linear))
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        scores = policy.score(rollouts, rollouts.cells(), entropy=True)
        scores.logp_N.sum().backward()
        passes.append(len(calls))
        again = drawn(policy)
        assert again.outputs == rollouts.outputs
        gradient = torch.cat([p.grad.flatten() for _, p in policy.parameters() if p.grad is not None])
        kept.append((rollouts.outputs, rollouts.behaviour_logp_BT, scores.logp_N.detach(), gradient))
    assert passes == [1, 2], "the layers must run again in the backward pass, and only there"
    assert kept[0][0] == kept[1][0]
    for plain, recomputed in zip(kept[0][1:], kept[1][1:], strict=True):
        assert (plain - recomputed).abs().max() <= 1e-6 * max(1.0, float(plain.abs().max()))


def test_a_model_that_cannot_recompute_says_so():
    model = network("llama")
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with pytest.raises(RelgradError, match=r"gradient_checkpointing: true: .*does not support.*Set it to false"):
            policy_of(model, gradient_checkpointing=True)
    finally:
        type(model).supports_gradient_checkpointing = before


# ---------------------------------------------------------------------- sixteen bits


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("engine", ["shared", "transformers"])
def test_in_bfloat16_nothing_is_clipped_before_anything_moved(engine: str, level: str):
    policy = policy_of(network("llama", lora=True, dtype=torch.bfloat16), engine=engine)
    rollouts = drawn(policy)
    with torch.no_grad():
        gap_N = policy.score(rollouts, rollouts.cells()).logp_N - rollouts.behaviour_logp_BT[rollouts.mask_BT]
    assert gap_N.abs().max() > 1e-3, "there is nothing to correct"
    assert rollouts.foreign
    settings = GrpoSettings(num_prompts=3, num_generations=GROUP, micro_batch_tokens=100)
    rewards = RewardSet([NamedReward("length", lambda completions, **_: [float(len(c)) for c in completions])], 60)
    loss = PolicyLoss("grpo", epsilon=3e-4, importance_sampling_level=level)
    figures = Grpo(policy, PROMPTS, rewards, loss, settings, seed=1).update().metrics
    assert figures["importance_ratio/min"] == figures["importance_ratio/max"] == 1.0
    assert figures["clip_ratio/region_mean"] == 0.0
    assert figures["sampling/sampling_logp_difference/max"] > 1e-3


def test_weights_of_few_bits_compute_in_sixteen():
    model = network("llama", lora=True)
    policy = policy_of(model)
    assert not drawn(policy).foreign
    policy.causal_lm.is_quantized = True
    assert drawn(policy).foreign
