"""`relgrad run fill-quick` as a user types it, made small: what it leaves, and every command on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fill_text
from commands import lines, relgrad, relgrad_process
from relgrad.judges.network import Judge, refilled
from relgrad.monitor.report.page import number
from relgrad.text.vocabulary import BLANK
from relgrad.training import checkpoint
from test_report import Look, browser  # noqa: F401  (a fixture)

NAMES = ("loss", "pg_loss", "kl_penalty", "mean_reward", "std_reward", "mean_advantage", "mean_kl", "mean_log_prob")
"""What the original trainer logs."""
STAGES = ("1-sft", "2-judge", "3-watcher", "4-grpo")
STEPS = 20


class Run(NamedTuple):
    """The folder of a finished `fill-quick`, what it printed, the text it learnt from, and its settings."""

    folder: Path
    printed: str
    text: Path
    settings: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Made by a process of its own."""
    out = tmp_path_factory.mktemp("runs")
    text = fill_text.write(out / "text.txt")
    settings = [f"out={out}", *fill_text.overrides(text)]
    printed = relgrad_process("run", "fill-quick", *settings, timeout=1800)
    return Run(out / "fill-quick", printed, text, settings)


def shown(*arguments: object) -> dict[str, str]:
    """The table a command prints."""
    return dict(line.split(None, 1) for line in relgrad(*arguments).splitlines() if len(line.split(None, 1)) == 2)


def drawn(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in relgrad("sample", *arguments, "--json").splitlines()]


def newest(stage: Path) -> Path:
    folder = checkpoint.latest(stage / "checkpoints")
    assert folder is not None
    return folder


def weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(newest(stage) / "model.safetensors")


def fits(text: str, prompt: str) -> bool:
    """Whether a text keeps what its prompt gave and has something at every mask."""
    return len(text) == len(prompt) and all(p in (BLANK, c) and c != BLANK for c, p in zip(text, prompt, strict=True))


def agrees(judge: Path, stage: Path, name: str, step: int) -> bool:
    """Whether a judge's scores of the completions of one step are those that the reward of this name gave them."""
    samples, loaded = lines(stage / "samples" / f"step_{step:06d}.jsonl"), Judge.load(judge)
    completed, masked = ([loaded.vocabulary.encode(s[key]) for s in samples] for key in ("completion", "prompt"))
    score_B, _ = loaded.scores(refilled(completed, masked, None, loaded.vocabulary))
    return score_B.tolist() == pytest.approx([s["parts"][name] for s in samples], abs=1e-5)


# ---------------------------------------------------------------------- what the run left


def test_stages_run_in_order(finished: Run):
    assert sorted(p.name for p in finished.folder.iterdir() if p.is_dir()) == list(STAGES)
    begun = [finished.printed.index(f"fill-quick/{stage}: loading the task") for stage in STAGES]
    assert begun == sorted(begun)
    done = [line for line in finished.printed.splitlines() if line.startswith("done: ")]
    assert done == [f"done: {finished.folder / stage}" for stage in STAGES]
    assert (finished.folder / "report.html").is_file()


@pytest.mark.parametrize("stage", ["2-judge", "3-watcher"])
def test_a_judge_ends_with_an_audit(finished: Run, stage: str):
    """The findings lie beside the stage and in the checkpoint, and were printed."""
    folder = finished.folder / stage
    found = json.loads((folder / "audit.json").read_text())
    saved = Judge.load(folder)
    assert dict(saved.audit) == found
    assert list(saved.calibration) == found["calibration"]
    assert (found["prompts"], found["generations"]) == (fill_text.HELD_OUT // 2, 16)
    assert f"audit: within group correlation {found['within_group_correlation']:.4g}" in finished.printed
    if stage == "2-judge":
        assert found["within_group_correlation"] > 0.25
        assert found["within_group_low"] > 0


def test_grpo_goes_on_from_the_generator(finished: Run):
    """On the same prompts with the same random numbers, its first accuracy is the supervised stage's last."""
    end, start = lines(finished.folder / "1-sft" / "evaluations.jsonl")[-1], evaluations(finished)[0]
    assert (end["step"], start["step"], start["n"]) == (120, 0, fill_text.HELD_OUT)
    assert end["per_prompt_rewards"]["hidden"] == start["per_prompt_rewards"]["accuracy"]
    assert end["score"] > 2 * lines(finished.folder / "1-sft" / "evaluations.jsonl")[0]["score"]
    assert start["kl"] == 0
    generator, trained = weights(finished.folder / "1-sft"), weights(finished.folder / "4-grpo")
    assert {n: t.shape for n, t in trained.items()} == {n: t.shape for n, t in generator.items()}
    assert all(torch.allclose(trained[n], t, atol=0.02) for n, t in generator.items()), "not where the generator was"


def test_the_runs_own_judges_score(finished: Run):
    """`stage:LABEL` became the judge of that stage: judged once more by it, every completion has the score on file."""
    folder = finished.folder
    samples = lines(folder / "4-grpo" / "samples" / "step_000001.jsonl")
    assert len(samples) == 64
    assert all(s["reward"] == s["parts"]["judge"] for s in samples), "only the judge counts"
    assert agrees(folder / "2-judge", folder / "4-grpo", "judge", 1)
    assert agrees(folder / "3-watcher", folder / "4-grpo", "watcher", STEPS)
    assert not agrees(folder / "3-watcher", folder / "4-grpo", "judge", 1)


def test_every_step_logs_the_originals_figures(finished: Run):
    records = lines(finished.folder / "4-grpo" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    for record in records:
        assert all(math.isfinite(record[name]) for name in NAMES)
        assert record["loss"] == pytest.approx(record["pg_loss"] + record["kl_penalty"], abs=1e-7)
        assert record["mean_advantage"] == pytest.approx(0, abs=1e-6)
        assert record["parity/max_abs"] < 1e-5
    assert records[0]["mean_kl"] == 0
    assert all(r["mean_kl"] > 0 for r in records[1:])
    assert all(r["mean_log_prob"] < 0 for r in records)


def test_the_console_names_them(finished: Run):
    """In order, with the figures of the file."""
    last = next(line for line in finished.printed.splitlines() if f"4-grpo  step {STEPS}/{STEPS}" in line)
    told = dict(pair.split(" ") for pair in last.split("  ")[2:-1])
    assert tuple(told) == NAMES
    record = lines(finished.folder / "4-grpo" / "metrics.jsonl")[-1]
    assert {n: float(v) for n, v in told.items()} == {n: float(f"{record[n]:.4g}") for n in NAMES}


def evaluations(finished: Run) -> list[dict[str, Any]]:
    return lines(finished.folder / "4-grpo" / "evaluations.jsonl")


def test_the_judges_score_rises_and_the_watcher_agrees(finished: Run):
    before, after = evaluations(finished)
    assert (before["step"], after["step"]) == (0, STEPS)
    assert set(after["reward_differences"]) == {"judge", "watcher", "accuracy"}
    for name, (difference, low, high) in after["reward_differences"].items():
        assert low < difference < high
        assert difference == pytest.approx(after["rewards"][name] - before["rewards"][name])
    assert after["score"] == after["rewards"]["judge"]
    assert after["reward_differences"]["judge"][1] > 0
    assert after["reward_differences"]["watcher"][0] > 0
    assert 0 < after["kl"] < 1
    assert f"KL to the start {after['kl']:.4g} nats per decision" in finished.printed


def test_films_show_the_same_prompts_before_and_after(finished: Run):
    films = lines(finished.folder / "4-grpo" / "films.jsonl")
    assert [f["step"] for f in films] == [0] * 4 + [STEPS] * 4
    assert [f["prompt"] for f in films[:4]] == [f["prompt"] for f in films[4:]]
    assert all(fits(f["final"], f["prompt"]) for f in films)
    assert [f["final"] for f in films[:4]] != [f["final"] for f in films[4:]], "nothing was learnt"


# ---------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def look(finished: Run, browser):  # noqa: F811
    return Look(browser, finished.folder / "report.html")


def test_the_report_opens(look: Look):
    assert look.complaints == []
    assert look.overflow() == 0
    kinds = look.page.locator("section.stage h2 .kind").all_inner_texts()
    assert kinds == ["a stage of kind judge"], "only the watcher is called otherwise than its kind"


def test_the_report_shows_the_audits(look: Look, finished: Run):
    cards = look.page.get_by_test_id("audit").all_inner_texts()
    assert len(cards) == 2
    for card, stage in zip(cards, ("2-judge", "3-watcher"), strict=True):
        found = json.loads((finished.folder / stage / "audit.json").read_text())
        for name in ("auc", "calibration_error", "within_group_correlation"):
            assert number(found[name]) in card


def test_the_report_shows_what_the_watcher_says(look: Look, finished: Run):
    rows = [r.inner_text().split("\t") for r in look.page.get_by_test_id("rewards").last.locator("tbody tr").all()]
    figures = {row[0].split()[0]: row for row in rows}
    assert {"judge", "watcher", "accuracy", "KL", "entropy"} <= set(figures)
    assert figures["watcher"][0].split() == ["watcher", "monitor"]
    difference, _, _ = evaluations(finished)[-1]["reward_differences"]["watcher"]
    assert float(figures["watcher"][3]) == pytest.approx(difference, rel=0.05)


def test_the_report_plays_the_films(look: Look, finished: Run):
    films = look.page.get_by_test_id("films")
    prompt = lines(finished.folder / "4-grpo" / "films.jsonl")[0]["prompt"]
    slider = films.locator("input[type=range]")
    slider.focus()
    slider.press("Home")
    start = films.locator(".cards").inner_text()
    assert BLANK in start
    assert max(prompt.split(), key=lambda word: (BLANK not in word, len(word))) in start
    slider.press("End")
    assert BLANK not in films.locator(".cards").inner_text()
    assert look.complaints == []


# ---------------------------------------------------------------------- commands on it


def test_evaluate_repeats_the_logged_score(finished: Run):
    logged = evaluations(finished)[-1]
    table = shown("evaluate", finished.folder)
    assert table["score"].strip() == f"{logged['score']:.4g}"
    assert f"watcher {logged['rewards']['watcher']:.4g}" in table["rewards"]


def test_evaluate_at_another_temperature(finished: Run):
    """Safer completions are right more often, and the judge knows."""
    cold = shown("evaluate", finished.folder, "policy.temperature=0.3")
    assert float(cold["score"]) > evaluations(finished)[-1]["high"]


def test_evaluate_against_the_generator(finished: Run):
    """The judge of the GRPO stage scores both."""
    lines = relgrad("evaluate", finished.folder, "--against", finished.folder / "1-sft").splitlines()
    score = next(i for i, line in enumerate(lines) if line.startswith("score "))
    before, after = evaluations(finished)
    assert f"{before['score']:.3f}" in lines[score + 1]
    assert f"{after['difference']:+.3f}" in lines[score + 1], "that of the run minus that of the generator"


def test_sample_held_out_prompts(finished: Run):
    records = drawn(finished.folder, "-n", 3)
    assert len(records) == 12
    for record in records:
        assert fits(record["completion"], record["prompt"])
        assert record["logp"] < 0
        assert all(0 <= record[name] <= 1 for name in ("judge", "watcher", "accuracy"))


@pytest.mark.parametrize("options", [(), ("--steps", 4), ("policy.temperature=0.5",)])
def test_sample_a_prompt_of_ones_own(finished: Run, options: tuple[object, ...]):
    prompt = f"the {BLANK * 3} of"
    records = drawn(finished.folder, "-n", 2, "--prompt", prompt, *options)
    assert [r["prompt"] for r in records] == [prompt] * 2
    assert all(fits(r["final"] if "--steps" in options else r["completion"], prompt) for r in records)
    if "--steps" in options:
        assert [r["frames"][-1]["step"] for r in records] == [4, 4]


def test_an_audit_repeats_what_the_stage_found(finished: Run, tmp_path: Path):
    before = (finished.folder / "2-judge" / "audit.json").read_bytes()
    judge, generator = finished.folder / "2-judge", finished.folder / "1-sft"
    relgrad("audit", judge, "--generator", generator, "--out", tmp_path / "audited")
    assert (judge / "audit.json").read_bytes() == before
    assert dict(Judge.load(tmp_path / "audited").audit) == json.loads(before)
    (judge / "audit.json").unlink()
    table = shown("audit", judge, "--generator", generator)
    assert (judge / "audit.json").read_bytes() == before
    assert float(table["within_group_correlation"]) == pytest.approx(
        json.loads(before)["within_group_correlation"], rel=1e-3
    )


def test_an_audit_on_the_trained_policy_is_another_one(finished: Run, tmp_path: Path):
    """The same judge, calibrated and examined on what GRPO has made of the generator."""
    judge = finished.folder / "2-judge"
    relgrad("audit", judge, "--generator", finished.folder, "--out", tmp_path / "audited")
    audited, before = Judge.load(tmp_path / "audited"), json.loads((judge / "audit.json").read_text())
    assert all(torch.equal(tensor, weights(judge)[name]) for name, tensor in audited.model.state_dict().items())
    assert audited.audit["calibration"] != before["calibration"]
    assert audited.audit["mean_share_right"] != before["mean_share_right"]


def test_run_again_does_nothing(finished: Run):
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*.safetensors")}
    assert relgrad("run", "fill-quick", *finished.settings).count("finished before") == len(STAGES)
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*.safetensors")} == before


# ---------------------------------------------------------------------- runs of other kinds from its generator


def short_run(finished: Run, out: Path, changes: dict[str, Any], *overrides: str) -> Path:
    """The stage folder of a short run on the same text, from its generator unless the changes say otherwise."""
    text = {"text": str(finished.text)}
    masks = [{"type": "random", "min_masked_ratio": 0.1, "max_masked_ratio": 0.4}]
    recipe: dict[str, Any] = {
        "name": "short",
        "out": str(out),
        "policy": {"kind": "fill_in", "checkpoint": str(finished.folder / "1-sft"), **text, **fill_text.NETWORK},
        "task": {"kind": "masked_text", "length": fill_text.LENGTH, "aligned": "window", "stages": masks, **text},
        "rewards": [{"kind": "hidden"}],
        "grpo": {"steps": 3, "num_prompts": 4, "num_generations": 4, "learning_rate": 1e-3},
        "evaluation": {"num_prompts": fill_text.HELD_OUT},
    }
    recipe["task"] |= {"held_out_size": fill_text.HELD_OUT, "held_out_fraction": 0.2}
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and key in recipe else value
    file = out / "short.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    relgrad("run", file, *overrides)
    return max((out / "short").glob("*-*"))


def test_the_baseline_recipe_runs_on_the_result(finished: Run, tmp_path: Path):
    """The original's loss; its samples are drawn at temperature .8 and scored at 1."""
    folder = finished.folder
    changes = [
        f"out={tmp_path}", f"policy.checkpoint={folder / '1-sft'}", f"rewards.0.judges=[{folder / '2-judge'}]",
        f"rewards.1.judges=[{folder / '3-watcher'}]", f"task.text={finished.text}", f"policy.text={finished.text}",
        f"task.length={fill_text.LENGTH}", f"task.held_out_size={fill_text.HELD_OUT}", "task.held_out_fraction=0.2",
        "grpo.steps=3", "grpo.num_prompts=4",
    ]  # fmt: skip
    relgrad("run", "fill-baseline", *changes)
    stage = tmp_path / "fill-baseline" / "1-grpo"
    records = lines(stage / "metrics.jsonl")
    assert all(math.isfinite(r[name]) for r in records for name in NAMES)
    for record in records:
        assert record["loss"] == pytest.approx(record["pg_loss"] + record["kl_penalty"], rel=1e-4)
    before, after = lines(stage / "evaluations.jsonl")
    assert before["score"] > evaluations(finished)[0]["score"], "at .8 and top-p the judge sees safer text"
    assert set(after["reward_differences"]) == {"judge", "watcher", "accuracy"}


def test_supervised_training_from_a_stream(finished: Run, tmp_path: Path):
    """Prepared samples in place of masked_text, then GRPO on them: as held-out samples are the same, so is the first score."""
    data = tmp_path / "data"
    task = ["length=32", f"held_out_size={fill_text.HELD_OUT}", "held_out_fraction=0.2"]
    relgrad("prepare", "fill-quick", *task, "--text", finished.text, "--out", data, "--files", 4,
            "--samples-per-file", 480)  # fmt: skip
    sft = {"steps": 60, "batch_size": 32, "learning_rate": 1e-2, "completion_column": "truth"}
    changes = {
        "policy": {"checkpoint": None},
        "sft": sft,
        "stages": [{"stage": "sft"}, {"stage": "grpo"}],
    }
    short_run(finished, tmp_path, changes, f"task={{kind: masked_stream, path: {data}}}")
    before, after = lines(tmp_path / "short" / "1-sft" / "evaluations.jsonl")
    assert before["score"] == lines(finished.folder / "1-sft" / "evaluations.jsonl")[0]["score"]
    assert after["difference_low"] > 0.05
    records = lines(tmp_path / "short" / "2-grpo" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3]
    assert all(r["parity/max_abs"] < 1e-5 for r in records)


def test_the_judge_is_refitted_on_the_policy(finished: Run, tmp_path: Path):
    """After every second step, in a copy of its own, which rewards from then on; held-out scores stay the audited judge's."""
    judge = finished.folder / "2-judge"
    before = weights(judge)
    reward = {"kind": "judge", "judges": [str(judge)], "refit_every": 2, "refit_steps": 2, "refit_learning_rate": 1e-3}
    stage = short_run(finished, tmp_path, {"rewards": [reward], "grpo": {"steps": 5}})
    key = "rewards/judge/refit_loss"
    refits = {r["step"]: r[key] for r in lines(stage / "metrics.jsonl") if key in r}
    assert list(refits) == [2, 4]
    assert all(0 < loss < 1 for loss in refits.values())
    own = load_file(newest(stage) / "trainer" / "rewards" / "judge" / "0" / "model.safetensors")
    assert own.keys() == before.keys()
    assert any(not torch.equal(own[n], t) for n, t in before.items())
    assert all(torch.equal(weights(judge)[n], t) for n, t in before.items()), "the stage's judge has changed"
    assert [agrees(judge, stage, "judge", step) for step in (1, 2, 3, 4)] == [True, True, False, False]
    logged = f"{lines(stage / 'evaluations.jsonl')[-1]['score']:.4g}"
    assert shown("evaluate", stage)["score"].strip() == logged
    assert shown("evaluate", stage, "rewards.0.refit_every=0")["score"].strip() == logged


def test_the_truth_can_be_mixed_in(finished: Run, tmp_path: Path):
    """With a reward that says nothing, the weights stay; with sft_coef they learn the text."""
    (tmp_path / "mine.py").write_text("def flat(completions):\n    return [1.0 for _ in completions]\n")
    changes = {
        "policy": {"checkpoint": None},
        "rewards": [
            {"kind": "function", "function": f"{tmp_path / 'mine.py'}:flat"},
            {"kind": "hidden", "name": "accuracy", "weight": 0},
        ],
        "grpo": {"steps": 20, "num_prompts": 16, "learning_rate": 1e-2, "sft_column": "truth"},
    }
    still = short_run(finished, tmp_path, changes, "grpo.steps=3", "checkpoint.every=1", "checkpoint.keep=3")
    kept = [load_file(checkpoint.folder_of(still / "checkpoints", step) / "model.safetensors") for step in (1, 3)]
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])
    assert not any("sft_loss" in r for r in lines(still / "metrics.jsonl"))
    (tmp_path / "mixed").mkdir()
    mixed = short_run(finished, tmp_path / "mixed", changes, "grpo.sft_coef=0.5", "grpo.beta=0.01")
    records = lines(mixed / "metrics.jsonl")
    for record in records:
        whole = record["pg_loss"] + record["kl_penalty"] + 0.5 * record["sft_loss"]
        assert record["loss"] == pytest.approx(whole, rel=1e-5)
    losses = [r["sft_loss"] for r in records]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.3
    assert lines(mixed / "evaluations.jsonl")[-1]["reward_differences"]["accuracy"][1] > 0


def test_the_originals_setting_names(finished: Run, tmp_path: Path):
    names = ["group_size=6", "kl_beta=0.05", "batch_size=2", "max_iters=2", "temperature=0.7", "top_p=0.9",
             "learning_rate=1e-3", "grad_clip=0.5"]  # fmt: skip
    stage = short_run(finished, tmp_path, {}, *names)
    used = yaml.safe_load((stage / "recipe.yaml").read_text())
    assert used["grpo"].items() >= {
        "num_generations": 6, "beta": 0.05, "num_prompts": 2, "steps": 2, "learning_rate": 1e-3, "max_grad_norm": 0.5,
    }.items()  # fmt: skip
    assert used["policy"].items() >= {"temperature": 0.7, "top_p": 0.9}.items()
    assert len(lines(stage / "samples" / "step_000001.jsonl")) == 12
    assert all(r["parity/max_abs"] < 1e-5 for r in lines(stage / "metrics.jsonl"))


# ---------------------------------------------------------------------- it learns


SHARE_OF_E = f"""
def share(completions, prompts):
    filled = [[c for c, p in zip(text, prompt) if p == "{BLANK}"] for text, prompt in zip(completions, prompts)]
    return [row.count("e") / len(row) for row in filled]
"""


ANOTHER = pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("seed", [0, ANOTHER])
def test_a_reward_with_a_known_best_is_driven_to_it(finished: Run, tmp_path: Path, seed: int):
    """The share of filled positions that are an "e": 1 is all there is."""
    (tmp_path / "mine.py").write_text(SHARE_OF_E)
    changes = {
        "seed": seed,
        "rewards": [{"kind": "function", "function": f"{tmp_path / 'mine.py'}:share"}],
        "grpo": {"steps": 30, "num_prompts": 8, "num_generations": 8, "learning_rate": 3e-3},
    }
    before, after = lines(short_run(finished, tmp_path, changes) / "evaluations.jsonl")
    assert before["score"] < 0.3
    assert after["score"] > 0.95


@pytest.mark.parametrize("seed", [0, ANOTHER])
def test_credit_per_decision_raises_the_accuracy(finished: Run, tmp_path: Path, seed: int):
    changes = {
        "seed": seed,
        "grpo": {"steps": 30, "num_prompts": 8, "num_generations": 8, "learning_rate": 1e-3, "credit": "decision"},
    }
    stage = short_run(finished, tmp_path, changes)
    assert lines(stage / "evaluations.jsonl")[-1]["difference_low"] > 0
    batch = load_file(newest(stage) / "trainer" / "batch" / "batch.safetensors")
    spread_B = batch["advantage_BT"].masked_fill(~batch["mask_BT"], torch.nan).numpy()
    assert max(len({a for a in row if not math.isnan(a)}) for row in spread_B) > 2, "one credit for a whole completion"
