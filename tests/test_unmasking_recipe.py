"""`relgrad run unmasking-quick` as a user types it, made short: what it leaves, films of it, and other laws on its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fill_text
from commands import lines, relgrad

SHORT = ("policy.network.n_layer=1", "policy.network.n_embd=16", "stages.0.sft.steps=12", "stages.0.sft.batch_size=16",
         "stages.1.grpo.steps=2", "stages.1.checkpoint.every=1", "stages.0.evaluation.num_prompts=4",
         "stages.1.evaluation.num_prompts=4")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unmasking")
    relgrad("run", "unmasking-quick", f"out={out}", *SHORT)
    return out / "unmasking-quick"


def test_both_stages_learn_and_hand_on_and_scores_are_those_recorded(run: Path) -> None:
    supervised = lines(run / "1-sft" / "metrics.jsonl")
    losses = [line["loss"] for line in supervised if "loss" in line]
    assert losses[-1] < losses[0]
    steps = [line for line in lines(run / "2-grpo" / "metrics.jsonl") if "parity/max_abs" in line]
    assert len(steps) == 2
    assert max(line["parity/max_abs"] for line in steps) < 1e-4
    assert steps[0]["completions/mean_decisions"] == 3


def test_films_and_other_laws_of_the_same_weights(run: Path) -> None:
    printed = relgrad("sample", run, "--prompt", "1234=", "--steps", 6, "-n", 2, "--json", "policy.law.order=threshold")
    films = [json.loads(line) for line in printed.splitlines()]
    assert len(films) == 2
    for film in films:
        frames = film["frames"]
        assert len(frames[0]["masked"]) == 6
        assert not frames[-1]["masked"]
        assert all(frame["logp"] is not None for frame in frames[1:])
        assert film["tokens_per_forward"] > 0
    assert "1234=" in relgrad("sample", run, "--prompt", "1234=", "--animate", "policy.block_length=2")


@pytest.mark.slow
def test_a_generator_of_fill_in_learns_to_write_its_holes_in_steps(tmp_path: Path) -> None:
    """`fill-steps` on a text that a tiny network learns: the supervised stage's network goes on as another kind of policy."""
    text = fill_text.write(tmp_path / "text.txt")
    ours = [one.replace("policy.", f"stages.{stage}.policy.") for stage in range(3) for one in fill_text.overrides(text)
            if one.startswith("policy.")]  # fmt: skip
    ours.append("stages.3.evaluation.cooled=false")
    others = [one for one in fill_text.overrides(text) if not one.startswith("policy.")]
    relgrad("run", "fill-steps", f"out={tmp_path}", *others, *ours, "stages.3.policy.max_completion_length=24",
            "stages.3.grpo.num_prompts=4", "stages.3.evaluation.num_prompts=16",
            "stages.2.judge.audit_prompts=32", "stages.0.evaluation.num_prompts=16")  # fmt: skip
    steps = [line for line in lines(tmp_path / "fill-steps" / "4-grpo" / "metrics.jsonl") if "parity/max_abs" in line]
    assert len(steps) == 20
    assert max(line["parity/max_abs"] for line in steps) < 1e-3
    assert steps[0]["completions/mean_decisions"] == pytest.approx(4, abs=0.5)
