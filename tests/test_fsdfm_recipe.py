"""The recipe `fsdfm-1.3b`: it stands as it is, has the original's settings, and runs, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import relgrad
from relgrad.policies import flow
from relgrad.policies.flow.settings import Lora
from relgrad.runs.build import find_recipe, resolve
from relgrad.runs.recipe import load_recipe


def test_a_dry_run_shows_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in resolve(load_recipe(find_recipe("fsdfm-1.3b"))).stages:
        (tmp_path / stage.policy.options["model"]).touch()
    shown = relgrad("run", "fsdfm-1.3b", "--dry-run")
    assert "runs/fsdfm-1.3b/1-sft: 310 supervised steps of 16 examples; from the beginning" in shown
    assert "runs/fsdfm-1.3b/2-grpo: 992 GRPO steps, 1 prompts x 4 completions per batch; from the beginning" in shown


def test_its_settings_are_the_originals() -> None:
    """openbrowser-ai's FSDFM_MODEL_CONFIG, FSDFM_SFT_CONFIG and FLOW_GRPO_FSDFM_CONFIG, and the 10 steps of its plan."""
    sft, grpo = resolve(load_recipe(find_recipe("fsdfm-1.3b"))).stages
    policy = flow.Settings(**grpo.policy.options)
    assert policy.lora == Lora(r=16, alpha=32, target_modules=("qw", "kw", "vw", "attn_out"))
    assert (policy.sampling_steps, policy.evaluation_steps, policy.temperature) == (10, 64, 1.0)
    assert (policy.network.dropout, policy.dtype, policy.symbols) == (0.1, "bfloat16", "gpt2")
    assert (policy.source, policy.scheduler, policy.exponent) == (None, None, None), "the checkpoint's own"
    assert (grpo.grpo.num_prompts, grpo.grpo.num_generations, grpo.grpo.num_iterations) == (1, 4, 1)
    assert (grpo.grpo.learning_rate, grpo.grpo.epsilon, grpo.grpo.beta, grpo.grpo.max_grad_norm) == (5e-5, 0.2, 0.04, 1)
    assert (grpo.grpo.scale_rewards, grpo.grpo.steps) == ("group", 992)
    assert (sft.sft.learning_rate, sft.sft.weight_decay, sft.sft.max_grad_norm, sft.sft.warmup_steps) == (
        2e-4,
        0.01,
        1,
        100,
    )
    assert sft.sft.batch_size // sft.sft.gradient_accumulation_steps == sft.sft.gradient_accumulation_steps == 4
    assert sft.sft.steps == 992 * 5 // 16
    weights = ("success_weight", "fields_weight", "steps_weight")
    assert [grpo.rewards[0].options[w] for w in weights] == [0.4, 0.4, 0.2]


def test_it_runs_made_small(tmp_path: Path) -> None:
    small = [
        f"out={tmp_path}", "policy.model=tiny", "policy.symbols=ascii", "policy.network={length: 480}", "policy.device=cpu",
        "policy.max_completion_length=200", "policy.sampling_steps=2", "policy.evaluation_steps=3", "task.grammar.fits=400",
        "task.train_size=20", "task.held_out_size=2", "evaluation={num_prompts: 2, num_generations: 1}", "sft.steps=2",
        "sft.batch_size=2", "sft.gradient_accumulation_steps=2", "grpo.steps=2", "grpo.num_generations=2",
    ]  # fmt: skip
    relgrad("run", "fsdfm-1.3b", *small)
    stages = [tmp_path / "fsdfm-1.3b" / name for name in ("1-sft", "2-grpo")]
    for stage in stages:
        assert len((stage / "metrics.jsonl").read_text().splitlines()) == 2
        assert (stage / "report.html").is_file()
        (weights,) = (stage / "checkpoints").glob("*/adapter_model.safetensors")
        assert weights.stat().st_size > 0
    evaluations = [json.loads(line) for line in (stages[1] / "evaluations.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evaluations] == [0, 2]
