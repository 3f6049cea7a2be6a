"""ReFusion's folders and recipes: what is loaded, what is refused, what goes on where an earlier stage ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import relgrad
from enumerated import move, seeded
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.networks.refusion import load as refusion
from relgrad.networks.refusion import tiny
from relgrad.policies import refusion as policies
from relgrad.policies.refusion.policy import build
from relgrad.policies.refusion.settings import Lora, Settings
from relgrad.runs.build import find_recipe, load_task, resolve
from relgrad.runs.recipe import load_recipe

SMALL = "tiny-refusion:32x1"
PROMPT = Prompt("text town: Bonn", id=0)


def settings(**options: Any) -> Settings:
    chosen = {"model": SMALL, "max_completion_length": 8, "slot_size": 4, "sampling_steps": 2, "device": "cpu"}
    return Settings(**chosen | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ReFusion's training leaves it: Qwen3's tensors, a tokenizer with the mask."""
    target = tmp_path_factory.mktemp("refusion") / "model"
    loaded = refusion.load(SMALL)
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    return target


def changed(folder: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a folder with other values in one of its files."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | values))
    return target


def same(first: Any, second: Any) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_released_layout_is_read_by_qwen3s_own_class(folder: Path, tmp_path: Path) -> None:
    """Whatever its model type is called, and whatever remote code it names: none is run."""
    remote = {
        "AutoModelForCausalLM": "modeling_qwen3_refusion.Qwen3ForCausalLM",
        "AutoConfig": "configuration_qwen3.Qwen3Config",
    }
    custom = changed(folder, tmp_path / "custom", "config.json", model_type="qwen3_refusion", auto_map=remote)
    loaded = refusion.load(str(custom))
    assert type(loaded.model).__module__ == "transformers.models.qwen3.modeling_qwen3"
    assert loaded.mask_id == loaded.model.config.mask_token_id == loaded.tokenizer.convert_tokens_to_ids("<|mask|>")
    assert same(loaded.model, refusion.load(SMALL).model)


def test_its_tensors_carry_the_names_of_the_published_modeling_file() -> None:
    layer = {f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
    layer |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"}
    names = {f"model.layers.0.{n}.weight" for n in layer} | {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert set(refusion.load(SMALL).model.state_dict()) == names


def test_a_model_without_refusions_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"no <\|mask\|>, so this is no ReFusion"):
        refusion.load("tiny:32x1")
    other = changed(folder, tmp_path / "other", "config.json", mask_token_id=5)
    with pytest.raises(RelgradError, match="mask_token_id=5"):
        refusion.load(str(other))
    llama = changed(folder, tmp_path / "llama", "config.json", model_type="llama")
    with pytest.raises(RelgradError, match="is a llama, and ReFusion is a Qwen3"):
        refusion.load(str(llama))
    with pytest.raises(RelgradError, match="it was not resized"):
        refusion.mask_id("x", None, refusion.load(str(folder)).tokenizer, 50)
    with pytest.raises(RelgradError, match="HIDDEN a multiple of 16"):
        refusion.load("tiny-refusion:50x1")


def test_the_mask_is_never_written() -> None:
    policy = build(settings(), seed=0)
    with torch.no_grad():
        policy.model.lm_head.weight[policy.network.mask_id] = 100 * policy.model.lm_head.weight.abs().max()
    rollouts = policy.sample([PROMPT], 20, seeded(0))
    written = rollouts.trace["token_BTKS"]
    begin = policy.parts.tokenizer.convert_tokens_to_ids(tiny.BEGIN)
    assert not bool(((written == policy.network.mask_id) | (written == begin)).any())


def test_a_stage_goes_on_from_the_averages_of_the_one_before(tmp_path: Path) -> None:
    policy = build(settings(ema_decay=0.9), seed=0)
    move(policy)
    policy.after_update()
    policy.save(tmp_path / "whole")
    assert policies.settled(tmp_path / "whole") == ("model",)
    following = build(settings(), seed=0, start=tmp_path / "whole")
    with policy.evaluation():
        assert same(policy.model, following.model)
    assert not same(policy.model, following.model)
    again = build(settings(ema_decay=0.9), seed=0)
    again.load(tmp_path / "whole")
    assert same(again.model, policy.model)


def test_an_adapter_goes_on_over_the_model_it_was_trained_on(tmp_path: Path) -> None:
    adapted = settings(lora=Lora(r=2))
    policy = build(adapted, seed=0, reference=True)
    assert {name.rsplit(".", 3)[-3] for name, _ in policy.parameters()} == {"lora_A", "lora_B"}
    move(policy)
    policy.save(tmp_path)
    assert policies.settled(tmp_path) == ()
    following = build(adapted, seed=1, start=tmp_path)
    rollouts = policy.sample([PROMPT], 3, seeded(0))
    first, second = (p.score(rollouts, rollouts.cells()).logp_N for p in (policy, following))
    assert torch.equal(first, second)
    with pytest.raises(RelgradError, match="add the lora section"):
        build(settings(), seed=0, start=tmp_path)


# ---------------------------------------------------------------------- recipes


def test_the_settings_of_the_8b_are_those_of_the_plan() -> None:
    _, grpo = resolve(load_recipe(find_recipe("refusion-8b"))).stages
    policy = Settings(**grpo.policy.options)
    assert policy.lora == Lora(r=16, alpha=32, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"))
    assert (policy.quantize, policy.dtype, policy.sampling_steps, policy.evaluation_steps) == (
        "4bit",
        "bfloat16",
        10,
        64,
    )
    assert (grpo.grpo.epsilon, grpo.grpo.beta, grpo.grpo.num_generations) == (0.2, 0.04, 4)


def test_plans_fit_the_slots() -> None:
    """The longest plan of the grammar, with its end, in hundreds of forms of every split."""
    for stage in resolve(load_recipe(find_recipe("forms-refusion"))).stages:
        task = load_task(stage)
        forms = [*(task.train[i] for i in range(300)), *task.validation, *task.test]
        assert max(len(str(form.columns["plan"])) for form in forms) < stage.policy.options["max_completion_length"]


def test_the_8b_runs_made_small(tmp_path: Path) -> None:
    """Two steps of both stages on the tiny network, judged by native decoding."""
    little = [
        f"out={tmp_path}", f"policy.model={SMALL}", "policy.quantize=null", "policy.dtype=float32", "policy.device=cpu",
        "policy.chat=false", "policy.max_completion_length=32", "policy.evaluation_steps=null",
        "policy.native={slot_threshold: 0.6, token_threshold: 0.3}", "policy.sampling_steps=2", "task.grammar.fits=400",
        "task.train_size=20", "task.held_out_size=2", "evaluation={num_prompts: 2, num_generations: 1}", "sft.steps=2",
        "sft.batch_size=2", "sft.gradient_accumulation_steps=2", "grpo.steps=2", "grpo.num_generations=2",
    ]  # fmt: skip
    relgrad("run", "refusion-8b", *little)
    stages = [tmp_path / "refusion-8b" / name for name in ("1-sft", "2-grpo")]
    for stage in stages:
        assert len((stage / "metrics.jsonl").read_text().splitlines()) == 2
        (weights,) = (stage / "checkpoints").glob("*/adapter_model.safetensors")
        assert weights.stat().st_size > 0
    evaluations = [json.loads(line) for line in (stages[1] / "evaluations.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evaluations] == [0, 2]
    assert all(e["mean_length"] > 0 for e in evaluations)
    assert (stages[1] / "report.html").is_file()
    printed = relgrad("sample", tmp_path / "refusion-8b", "--prompt", "text town: Bonn", "-n", "1", "--steps", "2")
    assert "town" in printed


@pytest.mark.slow
def test_grpo_exceeds_its_supervised_start(tmp_path: Path) -> None:
    relgrad("run", "refusion-quick", f"out={tmp_path}")
    lines = (tmp_path / "refusion-quick" / "2-grpo" / "evaluations.jsonl").read_text().splitlines()
    before, after = (json.loads(line) for line in (lines[0], lines[-1]))
    assert after["low"] > before["high"], f"{before['score']} before, {after['score']} after"
