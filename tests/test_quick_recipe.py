"""`relgrad run quick` as a user types it: it learns, measurably, and everything else works on what it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import relgrad, relgrad_process


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the recipe as it is, made by a process of its own."""
    out = tmp_path_factory.mktemp("runs")
    assert "quick/2-grpo  step 60/60" in relgrad_process("run", "quick", f"out={out}")
    return out / "quick"


def evaluations(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "evaluations.jsonl").read_text().splitlines()]


def test_grpo_raises_the_held_out_score(finished: Path):
    """The paired 95 % interval of the difference to the start of GRPO excludes 0; the start itself was no accident."""
    before, after = evaluations(finished / "2-grpo")
    assert (before["step"], after["step"]) == (0, 60)
    assert after["n"] == 128
    assert after["difference_low"] > 0.05
    assert after["score"] - before["score"] == pytest.approx(after["difference"])
    assert before["score"] > 0.3, "the supervised stage taught nothing"


def test_supervised_stage_hands_over_what_it_learnt(finished: Path):
    """The first score of GRPO is that of the supervised stage's end, on more prompts: the intervals overlap."""
    end, start = evaluations(finished / "1-sft")[-1], evaluations(finished / "2-grpo")[0]
    assert start["low"] < end["high"]
    assert end["low"] < start["high"]


def test_every_step_is_on_policy(finished: Path):
    records = [json.loads(line) for line in (finished / "2-grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 61))
    parities = [r["parity/max_abs"] for r in records if "parity/max_abs" in r]
    assert len(parities) > 30
    assert max(parities) < 1e-4


def test_sample(finished: Path):
    """Held-out prompts are scored; most answers of the trained policy are right."""
    records = [json.loads(line) for line in relgrad("sample", finished, "-n", 4, "--json").splitlines()]
    assert len(records) == 16
    right = [r["completion"] == r["prompt"][:-1][::-1] for r in records]
    assert sum(right) >= 10
    assert all((r["exact"] == 1.0) == ok for r, ok in zip(records, right, strict=True))
    own = [json.loads(line) for line in relgrad("sample", finished, "-p", "1234=", "-n", 2, "--json").splitlines()]
    assert [r["prompt"] for r in own] == ["1234=", "1234="]


def test_evaluate_repeats_the_logged_score(finished: Path):
    logged = evaluations(finished / "2-grpo")[-1]
    assert f"{logged['score']:.4g}" in relgrad("evaluate", finished)


def test_evaluate_against_the_stage_before(finished: Path, tmp_path: Path):
    shown = relgrad("evaluate", finished, "--against", finished / "1-sft", "evaluation.num_prompts=32")
    assert "A - this" in shown
    assert shown.count("over 32 prompts") > 3
    file = tmp_path / "comparison.json"
    relgrad("compare", finished / "1-sft", finished, "--on", finished, "--json", file, "evaluation.num_prompts=32")
    score = json.loads(file.read_text())["figures"][0]
    before, after = (mean["value"] for mean in score["means"])
    assert score["differences"][1]["value"] == pytest.approx(after - before)
    assert score["differences"][1]["low"] > 0


def test_report(finished: Path):
    for folder in (finished, finished / "2-grpo"):
        (folder / "report.html").unlink()
        assert str(folder / "report.html") in relgrad("report", folder)
        assert 'data-testid="score"' in (folder / "report.html").read_text()


def test_run_again_does_nothing(finished: Path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    shown = relgrad("run", "quick", f"out={finished.parent}")
    assert shown.count("finished before") == 2
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
