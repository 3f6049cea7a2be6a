"""Models on disk: what was saved is read back bit for bit, adapters find their base, and what is damaged is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from commands import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt
from relgrad.networks.causal import adapted, saved, tiny
from relgrad.networks.causal import load as causal
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.weights import files
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive, fill_in
from relgrad.policies.autoregressive import AutoregressivePolicy, Lora, Settings
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.use import open_source
from relgrad.stages.kind import build_policy
from relgrad.text.vocabulary import Vocabulary
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings

ENTRIES = len(tiny.CHARACTERS) + 1
LORA = Lora(r=2, alpha=4)


def shape(**changes: Any) -> dict[str, Any]:
    sizes = {"vocab_size": ENTRIES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None,
             "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
    return sizes | changes


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LlamaConfig", shape()),
    "gpt-neox": ("GPTNeoXConfig", shape()),
    "qwen3-moe": ("Qwen3MoeConfig", shape(head_dim=16, **EXPERTS)),
    "mixtral": ("MixtralConfig", shape(num_local_experts=4)),
    "deepseek-v3": (
        "DeepseekV3Config",
        shape(num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=8,
              n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
              first_k_dense_replace=1),
    ),
    "jamba": (
        "JambaConfig",
        shape(num_experts=4, use_mamba_kernels=False, mamba_d_state=8, mamba_dt_rank=4, attn_layer_period=2, attn_layer_offset=1,
              expert_layer_period=2, expert_layer_offset=1),
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        shape(head_dim=16, **EXPERTS, shared_expert_intermediate_size=32, linear_num_value_heads=4, linear_num_key_heads=2,
              linear_key_head_dim=8, linear_value_head_dim=8),
    ),
    "gemma3-pictures": (
        "Gemma3Config",
        {"text_config": shape(head_dim=16), "eos_token_id": 0, "mm_tokens_per_image": 4, "image_token_index": 5,
         "boi_token_index": 6, "eoi_token_index": 7,
         "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 28, "patch_size": 14}},
    ),
}  # fmt: skip
"""Architectures whose names in files are not those of their modules, beside one whose are."""


def network(name: str) -> Any:
    """A random model, always the same."""
    import transformers

    causal.quiet()
    kind, settings = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**settings)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def disturbed(model: Any) -> Any:
    """The model with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_full_weights_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = network(name)
    expected = tensors(model)
    model.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    saved.load_weights(disturbed(model), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, expected[n]) for n, value in tensors(model).items())


@pytest.mark.parametrize("name", MODELS)
def test_adapters_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = causal.add_lora(network(name), r=2, alpha=4, dropout=0.0, targets="all-linear")
    for parameter in (p for n, p in model.named_parameters() if "lora" in n):
        torch.nn.init.normal_(parameter)
    expected = tensors(model)
    model.save_pretrained(tmp_path)
    for parameter in (p for n, p in model.named_parameters() if "lora" in n):
        torch.nn.init.zeros_(parameter)
    adapted.load(model, tmp_path)
    assert all(torch.equal(value, expected[n]) for n, value in tensors(model).items())


# ---------------------------------------------------------------------- model folders


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a model of a name and a tokenizer of characters, to which tokens may be added."""

    def make(name: str = "plain", *added: str, broken: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp(name)
        model, tokenizer = network(name), tiny.build_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
        if broken is not None:
            dict(model.named_parameters())[broken].data[3, 5] = torch.nan
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def built(model: Path | str, start: Path | None = None, **options: Any) -> AutoregressivePolicy:
    settings = Settings(model=str(model), device="cpu", **{"max_completion_length": 3, **options})
    return autoregressive.build(settings, seed=0, start=start)


def moved(policy: AutoregressivePolicy) -> AutoregressivePolicy:
    """The policy after some training: its trainable weights are others."""
    with torch.no_grad():
        for name, parameter in policy.parameters():
            if "lora_A" not in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return policy


def scores(policy: AutoregressivePolicy) -> Tensor:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits: Tensor = policy.model(input_ids=ids).logits
    return logits


def test_a_model_of_pictures_and_text_is_used_as_one_of_text(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder("gemma3-pictures")
    policy = built(folder, lora=LORA)
    assert policy.encoder.context == 64
    with pytest.raises(RelgradError, match="more than the model's context of 64"):
        policy.encode(Prompt("x" * 62))
    moved(policy).save(tmp_path)
    following = built(folder, start=tmp_path, lora=LORA)
    torch.testing.assert_close(scores(following), scores(policy))
    rollouts = following.sample([Prompt("abc")], 2, generator(0))
    scored = following.score(rollouts, rollouts.cells()).logp_N
    torch.testing.assert_close(scored, rollouts.behaviour_logp_BT[rollouts.mask_BT], atol=2e-5, rtol=0)


def test_soft_caps_of_a_nested_configuration_are_seen() -> None:
    from relgrad.policies.autoregressive.choose import choose_engine

    model = network("gemma3-pictures")
    model.config.text_config.final_logit_softcapping = 5.0
    assert choose_engine(model, "auto")[0].name == "transformers"


@pytest.mark.parametrize("name", ["gpt-neox", "qwen3-moe"])
def test_training_goes_on_bit_for_bit(model_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = model_folder(name)

    def loop() -> Grpo:
        rewards = RewardSet(
            [NamedReward("codes", lambda completions, **_: [float(ord(c[:1] or "a")) for c in completions])], 60
        )
        settings = GrpoSettings(num_prompts=2, num_generations=4, learning_rate=1e-3)
        return Grpo(built(folder), [Prompt("ab", id=0), Prompt("b", id=1)], rewards, PolicyLoss(), settings)

    uninterrupted = loop()
    uninterrupted.update()
    checkpoint.save(tmp_path, uninterrupted, uninterrupted.policy)
    following = loop()
    checkpoint.restore(tmp_path / "step_000001", following, following.policy)
    for made in (uninterrupted, following):
        made.update()
    expected = dict(uninterrupted.policy.parameters())
    assert all(torch.equal(parameter, expected[n]) for n, parameter in following.policy.parameters())


# ---------------------------------------------------------------------- the model under an adapter


def test_an_adapter_finds_its_base_by_what_the_recipe_says(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELGRAD_CACHE", str(tmp_path / "one"))
    policy = moved(built("tiny:32x1", lora=LORA))
    policy.save(tmp_path / "adapter")
    expected = scores(policy)
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setenv("RELGRAD_CACHE", str(tmp_path / "other"))
    assert torch.equal(scores(built("tiny:32x1", start=tmp_path / "adapter", lora=LORA)), expected)
    folder = model_folder()
    policy = moved(built(folder, lora=LORA))
    policy.save(tmp_path / "second")
    elsewhere = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert torch.equal(scores(built(elsewhere, start=tmp_path / "second", lora=LORA)), scores(policy))


def test_an_adapter_on_an_earlier_stage_finds_it_in_a_run_that_was_renamed(tmp_path: Path) -> None:
    full = tmp_path / "run" / "1-sft" / "checkpoints" / "step_000003"
    moved(built("tiny:32x1")).save(full)
    policy = moved(built("tiny:32x1", start=full, lora=LORA))
    policy.save(tmp_path / "run" / "2-grpo" / "checkpoints" / "step_000002")
    expected = scores(policy)
    (tmp_path / "run").rename(tmp_path / "renamed")
    adapter = tmp_path / "renamed" / "2-grpo" / "checkpoints" / "step_000002"
    again = built("tiny:32x1", start=adapter, lora=LORA)
    assert torch.equal(scores(again), expected)
    again.save(tmp_path / "renamed" / "3-grpo" / "checkpoints" / "step_000001")  # the stage after next knows it too
    assert (tmp_path / "renamed" / "3-grpo" / "checkpoints" / "step_000001" / saved.BASE).read_text() == (
        adapter / saved.BASE
    ).read_text()
    (tmp_path / "renamed" / "1-sft").rename(tmp_path / "gone")
    with pytest.raises(
        RelgradError, match=r"step_000002: this adapter was trained on '.*renamed/1-sft.*keep the folders"
    ):
        built("tiny:32x1", start=adapter, lora=LORA)


def test_a_tokenizer_is_taken_from_where_the_weights_are(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder()
    moved(built(folder)).save(tmp_path / "full")
    shutil.rmtree(folder)
    built(folder, start=tmp_path / "full").sample([Prompt("abc")], 2, generator(0))


def test_settings_that_saved_weights_settle_are_not_ignored_in_silence(tmp_path: Path) -> None:
    stage = tmp_path / "1-grpo"
    weights_of = stage / "checkpoints" / "step_000001"
    (weights_of / "trainer").mkdir(parents=True)
    (weights_of / "trainer" / "state.json").write_text("{}")
    recipe = {"name": "r", "policy": {"kind": "fill_in", "n_layer": 2}, "task": {"kind": "masked_text"},
              "rewards": [{"kind": "hidden"}]}  # fmt: skip
    (stage / "recipe.yaml").write_text(json.dumps(recipe))
    for override in ("policy.checkpoint=other.pt", "policy.n_layer=8", "policy.symbols=byte"):
        with pytest.raises(RelgradError, match=rf"{override.partition('=')[0]}=.* has no effect on .*step_000001"):
            open_source(str(tmp_path), [override])
    assert open_source(str(tmp_path), ["policy.temperature=0.5", "policy.n_layer=2"])[1] == weights_of


# ---------------------------------------------------------------------- damage


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pointer(file: Path) -> None:
    file.write_bytes(files.POINTER + b"v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n")


@pytest.mark.parametrize(
    ("damage", "message"), [(cut_off, "cut off or damaged"), (pointer, r"a git-lfs pointer.*git lfs pull")]
)
def test_weights_that_cannot_be_read(
    model_folder: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = model_folder()
    policy = built(folder, lora=LORA)
    policy.save(tmp_path / "adapter")
    full = built(folder)
    full.save(tmp_path / "full")
    GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=1, n_embd=4)).save(tmp_path / "fill")
    for file in (
        folder / "model.safetensors",
        tmp_path / "adapter" / saved.ADAPTER,
        *tmp_path.glob("f*/model.safetensors"),
    ):
        damage(file)
    with pytest.raises(RelgradError, match=message):
        built(folder)
    with pytest.raises(RelgradError, match=message):
        full.load(tmp_path / "full")
    with pytest.raises(RelgradError, match=message):
        policy.load(tmp_path / "adapter")
    with pytest.raises(RelgradError, match=message):
        GPT.load(tmp_path / "fill")


def test_weights_that_are_no_numbers(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(RelgradError, match=rf"1 of 1536 weights in {name} are NaN or infinite.*an earlier checkpoint"):
        built(model_folder("plain", broken=name))
    small = GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=1, n_embd=4))
    with torch.no_grad():
        small.transformer.wte.weight[0, 0] = torch.inf
    small.save(tmp_path)
    with pytest.raises(RelgradError, match=r"1 of 32 weights in transformer\.wte\.weight"):
        GPT.load(tmp_path)


def test_weights_that_become_nan_are_said_to_be(model_folder: Callable[..., Path]) -> None:
    """Not an index out of range somewhere in the sampler, whatever the kind of policy."""
    language = built(model_folder())
    vocabulary = Vocabulary.of_text("abc")
    filler = fill_in.FillInPolicy(
        GPT(GPTConfig(vocab_size=vocabulary.size, block_size=8, n_layer=1, n_head=1, n_embd=4)),
        vocabulary,
        fill_in.Settings(),
    )
    for policy, prompt in ((language, Prompt("abc")), (filler, Prompt("a██c"))):
        with torch.no_grad():
            for _, parameter in policy.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(RelgradError, match=r"log-probabilities of .* decisions just drawn are NaN or infinite"):
            policy.sample([prompt], 2, generator(0))


def test_a_model_that_lacks_a_tensor_is_not_filled_up_with_chance(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    held = load_file(folder / "model.safetensors")
    del held["lm_head.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RelgradError, match=r"not those of a whole LlamaForCausalLM \(1 tensors missing.*lm_head\.weight"
    ):
        built(folder)


def test_a_token_without_an_embedding(model_folder: Callable[..., Path]) -> None:
    policy = built(model_folder("plain", "<tool>"))
    assert len(policy.encode(Prompt("apple"))) == 5
    message = (
        rf"prompt 7 or its target holds a token .* no embedding for: '<tool>' \(id {ENTRIES}\).*resize_token_embeddings"
    )
    with pytest.raises(RelgradError, match=message):
        policy.encode(Prompt("apple <tool>:", id=7))
    with pytest.raises(RelgradError, match=message):
        policy.supervised_loss([Example(Prompt("apple", id=7), "<tool>")], generator(0))


@pytest.mark.parametrize("text", ["", '{"kind": "char", "sym', '["char"]', '{"kind": "char"}'])
def test_a_vocabulary_that_is_cut_off(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(RelgradError, match=r"vocabulary\.json: not a vocabulary"):
        Vocabulary.load(tmp_path)


def test_names_are_freed_of_every_wrapper() -> None:
    for name in (
        "module.a.b",
        "_orig_mod.module.a.b",
        "module._orig_mod.module.a.b",
        "a._orig_mod.b",
        "a._fsdp_wrapped_module.b",
    ):
        assert files.unwrapped({name: 1}, "x") == {"a.b": 1}
    assert files.unwrapped({"a.my_module.b": 1, "modules.c": 2}, "x") == {"a.my_module.b": 1, "modules.c": 2}
    with pytest.raises(RelgradError, match=r"x: a is in it twice, once as module\.a"):
        files.unwrapped({"a": 1, "module.a": 2}, "x")


def test_a_model_folder_with_names_of_wrappers_is_read(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    expected = scores(built(folder))
    held = load_file(folder / "model.safetensors")
    save_file(
        {f"_orig_mod.module.{n}": t for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    policy = built(folder)
    assert torch.equal(scores(policy), expected)
    assert policy.eos_ids == [0]


# ---------------------------------------------------------------------- what is not there


def test_a_name_that_no_hub_gives_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls = []

    def unreachable(self: Any, name: str, timeout: float) -> None:
        calls.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(RelgradError, match=r"'no-such-model' is no folder .*Name or service not known.* hf download"):
        built("no-such-model")
    assert calls == ["no-such-model"]


def test_the_published_recipe_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are looked for before the tokenizer, which a hub would be asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(causal, "load_tokenizer", lambda *a, **k: pytest.fail("the tokenizer was asked for first"))
    with pytest.raises(
        AssertionError, match=r"'DFM_checkpoint.pth' is neither a size .*Put the weights there.*aminr8/FS-DFM"
    ):
        relgrad("run", "fsdfm-1.3b", "policy.device=cpu")


def test_a_policy_of_a_stage_is_built_where_its_run_lies(tmp_path: Path) -> None:
    """From a folder to a policy, as the commands do it."""
    stage = tmp_path / "1-sft"
    folder = stage / "checkpoints" / "step_000001"
    moved(built("tiny:32x1", lora=LORA)).save(folder)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state.json").write_text("{}")
    recipe = {"name": "r", "stage": "sft", "task": {"kind": "digits"},
              "policy": {"kind": "autoregressive", "model": "tiny:32x1", "lora": LORA.model_dump(), "device": "cpu"}}  # fmt: skip
    (stage / "recipe.yaml").write_text(json.dumps(recipe))
    assert scores(build_policy(*open_source(str(tmp_path), []))).isfinite().all()
    with pytest.raises(RelgradError, match=r"policy\.adapter='other' has no effect"):
        open_source(str(tmp_path), ["policy.adapter=other"])
