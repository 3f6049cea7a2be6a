"""A run that is killed anywhere, and started again, ends with the same weights bit for bit, and the same figures."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fill_prompts
import fill_text
import forked
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import finite
from relgrad.core.types import Example, Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings

# A supervised stage with dropout and a GRPO stage of which three steps in four lie inside a generation batch. Some groups
# are replaced, some have no spread; a divergence term needs the reference.
RECIPE = """
name: r
policy: {kind: autoregressive, model: "tiny:32x1", max_completion_length: 3, lora: {r: 2, alpha: 4, dropout: 0.2}, top_p: 0.98}
task: {kind: digits, length: 2, train_size: 50, held_out_size: 10, noise: 0.2}
rewards: [{kind: function, function: "REWARD:score"}]
stages:
  - stage: sft
    sft: {steps: 5, batch_size: 4, learning_rate: 0.01, gradient_accumulation_steps: 2}
    evaluation: {num_prompts: 2, num_generations: 2}
    checkpoint: {every: 2}
  - stage: grpo
    grpo: {steps: 22, num_prompts: 4, num_generations: 3, num_iterations: 2, steps_per_generation: 2, learning_rate: 0.01,
           beta: 0.05, max_resamples: 1, lr_scheduler_type: cosine}
    evaluation: {num_prompts: 2, num_generations: 2, every: 10}
    checkpoint: {every: EVERY}
"""
REWARD = """
def score(completions, **columns):
    return [float(any(c.isdigit() for c in text)) for text in completions]
"""
# Generator, judge and GRPO of masked text. The judge goes on learning during GRPO, and dropout acts wherever text is learnt.
FILL_RECIPE = """
name: r
policy: {kind: fill_in, text: "TEXT", block_size: 16, n_layer: 1, n_head: 2, n_embd: 16, dropout: 0.2, top_p: 0.98}
task: {kind: masked_text, text: "TEXT", length: 16, aligned: window, held_out_size: 8, held_out_fraction: 0.2}
sft: {batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 0.01, completion_column: truth}
checkpoint: {every: EVERY}
evaluation: {num_prompts: 2, num_generations: 2}
stages:
  - {stage: sft, sft: {steps: 3}}
  - {stage: judge, judge: {kind: refill, dropout: 0.2, audit_prompts: 8, audit_generations: 2}, sft: {steps: 8}}
  - stage: grpo
    rewards:
      - {kind: judge, judges: ["stage:judge"], require_audit: false, refit_every: 2, refit_steps: 2, refit_batch_size: 4,
         refit_learning_rate: 0.01}
      - {kind: hidden, name: accuracy, weight: 0}
    grpo: {steps: 14, num_prompts: 4, num_generations: 3, num_iterations: 2, steps_per_generation: 2, learning_rate: 0.01,
           beta: 0.05, kl_estimator: exact, credit: decision, sft_coef: 0.1, sft_column: truth}
    evaluation: {every: 5}
"""


def write_recipe(folder: Path, every: int, recipe: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_reward.py").write_text(REWARD)
    text = fill_text.write(folder / "text.txt", lines=100)
    file = folder / "r.yaml"
    for name, value in (("REWARD", folder / "my_reward.py"), ("TEXT", text), ("EVERY", every)):
        recipe = recipe.replace(name, str(value))
    file.write_text(recipe)
    return file


def run(recipe: Path, out: Path, *, last_change: int = 0, seconds: float = 1800) -> int:
    """`relgrad run` in a process of its own, killed at that change to its files or after that time; its exit code."""
    command = ["relgrad", "run", str(recipe), f"out={out}"]
    process = forked.start(command, recipe.with_name("log"), watched=out, last_change=last_change)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), recipe.with_name("log").read_text()
    return process.exitcode


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what depends on the clock, and with NaN as the files have it: None."""
    timed = re.compile(r"time(/.*)?|step_time|tokens_per_second|seconds")
    records = finite(records)
    return [{k: v for k, v in record.items() if not timed.fullmatch(k)} for record in records]


def stages(run: Path) -> list[str]:
    """Folders of the stages that were begun, in order."""
    return sorted(p.name for p in (run / "r").glob("*-*"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same_run(found: Path, expected: Path) -> None:
    """Checkpoints (weights, also of judges, optimizer, batch), figures and texts are those of the uninterrupted run."""
    for stage in stages(expected):
        ours, theirs = found / "r" / stage, expected / "r" / stage
        newest, reference = checkpoint.latest(ours / "checkpoints"), checkpoint.latest(theirs / "checkpoints")
        assert newest is not None
        assert reference is not None
        assert newest.name == reference.name
        saved = {p.relative_to(reference) for p in reference.rglob("*") if p.is_file()}
        assert saved == {p.relative_to(newest) for p in newest.rglob("*") if p.is_file()}
        for name in saved:
            if name.name not in (
                "batch.json",
                "adapter_config.json",
                "checksums.json",
            ):  # the first has times, peft writes the second in any order, the third is of them
                assert (newest / name).read_bytes() == (reference / name).read_bytes(), f"{stage}: {name} differs"
        if (theirs / "audit.json").is_file():
            assert (ours / "audit.json").read_bytes() == (theirs / "audit.json").read_bytes(), f"{stage}: audit differs"
        for name in ("metrics.jsonl", "evaluations.jsonl", "warnings.jsonl", "films.jsonl"):
            assert without_times(lines(ours / name)) == without_times(lines(theirs / name)), f"{stage}: {name} differs"
        assert {p.name for p in (ours / "samples").glob("*")} == {p.name for p in (theirs / "samples").glob("*")}
        for path in (theirs / "samples").glob("*"):
            assert (ours / "samples" / path.name).read_bytes() == path.read_bytes()
        assert (ours / "report.html").is_file(), f"{stage}: no report"
        assert not list((ours / "checkpoints").glob(".unfinished*"))


def undisturbed(folder: Path, recipe: str) -> Path:
    """The folder of a run that nobody killed, with a checkpoint at every step, in a process of its own; `log` is beside it."""
    file = write_recipe(folder, 1, recipe)
    assert run(file, folder / "out") == 0
    return folder / "out"


def changes(out: Path) -> int:
    """How many changes to its files a run counted that was not killed."""
    return int((out.with_name("log")).read_text().rsplit("changes: ", 1)[1])


def whole(recipe: Path, out: Path, expected: Path, every: int) -> Path:
    """A run that nobody kills: the expected one, or one with other checkpoints that ends the same."""
    if every == 1:
        return expected
    assert run(recipe, out) == 0
    assert_same_run(out, expected)
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = undisturbed(tmp_path_factory.mktemp("uninterrupted"), RECIPE)
    records = lines(folder / "r" / "2-grpo" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 23))
    assert sum(r.get("groups_resampled", 0) for r in records) > 0, "no group was replaced"
    assert max(r["grad_norm"] for r in records) > 0.01, "nothing was learnt"
    assert max(r["importance_ratio/max"] for r in records) > 1.01, "no step was off policy"
    return folder


def kill_and_resume(
    recipe: Path, out: Path, expected: Path, kills: int, moment: Callable[[], dict[str, float]]
) -> None:
    """Run, killed at moment after moment, to the end; as often as it takes for so many kills."""
    while kills:
        if run(recipe, out, **moment()) == 0:
            assert_same_run(out, expected)
            shutil.rmtree(out)
        else:
            kills -= 1
    assert run(recipe, out) == 0
    assert_same_run(out, expected)


@pytest.fixture(scope="module")
def uninterrupted_fill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = undisturbed(tmp_path_factory.mktemp("uninterrupted_fill"), FILL_RECIPE)
    assert stages(folder) == ["1-sft", "2-judge", "3-grpo"]
    records = lines(folder / "r" / "3-grpo" / "metrics.jsonl")
    assert [r["step"] for r in records if "rewards/judge/refit_loss" in r] == list(range(2, 15, 2))
    assert max(r["importance_ratio/max"] for r in records) > 1.01, "no step was off policy"
    assert max(r["kl"] for r in records) > 0.001, "nothing was learnt"
    assert min(r["sft_loss"] for r in records) > 0.1
    newest = checkpoint.latest(folder / "r" / "3-grpo" / "checkpoints")
    assert newest is not None
    judge = load_file(newest / "trainer" / "rewards" / "judge" / "0" / "model.safetensors")
    before = load_file(newest.parents[2] / "2-judge" / "checkpoints" / "step_000008" / "model.safetensors")
    assert any(not torch.equal(judge[name], before[name]) for name in before), "the judge was not refitted"
    return folder


@pytest.mark.parametrize(("every", "seed"), [(1, 0), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_fill_in_killed_at_any_change(uninterrupted_fill: Path, tmp_path: Path, every: int, seed: int):
    """Also in the judge's stage, and between a refit of the judge and the checkpoint after it."""
    recipe, draw = write_recipe(tmp_path, every, FILL_RECIPE), random.Random(seed)
    count = changes(whole(recipe, tmp_path / "whole", uninterrupted_fill, every))
    out, killed_in = tmp_path / "out", list[str]()
    while len(killed_in) < 8:
        if run(recipe, out, last_change=draw.randint(1, count // 4)) == 0:
            assert_same_run(out, uninterrupted_fill)
            shutil.rmtree(out)
        else:
            killed_in += stages(out)[-1:]
    assert {"2-judge", "3-grpo"} <= set(killed_in)
    assert run(recipe, out) == 0
    assert_same_run(out, uninterrupted_fill)


@pytest.mark.parametrize(("every", "seed"), [(1, 0), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_killed_at_any_change_to_its_files(uninterrupted: Path, tmp_path: Path, every: int, seed: int):
    recipe, draw = write_recipe(tmp_path, every), random.Random(seed)
    count = changes(whole(recipe, tmp_path / "whole", uninterrupted, every))
    kill_and_resume(recipe, tmp_path / "out", uninterrupted, 5, lambda: {"last_change": draw.randint(1, count // 4)})


@pytest.mark.slow
def test_killed_at_any_time(uninterrupted: Path, tmp_path: Path):
    recipe, draw = write_recipe(tmp_path, 1), random.Random(2)
    started = time.monotonic()
    assert run(recipe, tmp_path / "whole") == 0
    duration = time.monotonic() - started
    kill_and_resume(recipe, tmp_path / "out", uninterrupted, 5, lambda: {"seconds": draw.uniform(0, duration / 2)})


# ---------------------------------------------------------------------- in one process: stop after every step


PROMPTS = tuple(Prompt(f"{n}=", {"answer": str(n)}, n) for n in range(7))


def policy(**settings: Any) -> autoregressive.AutoregressivePolicy:
    chosen = autoregressive.Settings(model="tiny:32x1", max_completion_length=3, **settings)
    return autoregressive.build(chosen, seed=0, reference=True)


def digits(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(any(c.isdigit() for c in text)) for text in completions]


def grpo_loop(trained: autoregressive.AutoregressivePolicy, loss: PolicyLoss, **settings: Any) -> Grpo:
    chosen = GrpoSettings(
        steps=10, num_prompts=4, num_generations=3, num_iterations=2, steps_per_generation=2, learning_rate=0.01,
        max_resamples=1, lr_scheduler_type="linear", **settings,
    )  # fmt: skip
    return Grpo(trained, PROMPTS, RewardSet([NamedReward("digits", digits)], timeout=60), loss, chosen, seed=3)


def k3_with_truncation() -> tuple[Grpo, Any]:
    trained = policy(top_p=0.9, temperature=0.8)
    return grpo_loop(trained, PolicyLoss(beta=0.1), beta=0.1), trained


def exact_kl_sequence_level() -> tuple[Grpo, Any]:
    trained = policy(lora=autoregressive.Lora(r=2, alpha=4))
    loss = PolicyLoss("grpo", importance_sampling_level="sequence", beta=0.1, kl_estimator="exact", entropy_coef=0.01)
    return grpo_loop(trained, loss, beta=0.1, kl_estimator="exact"), trained


def k1_in_the_reward() -> tuple[Grpo, Any]:
    trained = policy()
    return grpo_loop(trained, PolicyLoss(beta=0.1, kl_estimator="k1"), beta=0.1, kl_estimator="k1"), trained


def supervised_with_dropout() -> tuple[Sft, Any]:
    trained = policy(lora=autoregressive.Lora(r=2, alpha=4, dropout=0.3))
    settings = SftSettings(steps=6, batch_size=4, gradient_accumulation_steps=2, learning_rate=0.01, warmup_steps=2)
    return Sft(trained, [Example(p, p.columns["answer"]) for p in PROMPTS], settings, seed=3), trained


def credit_per_decision_and_truth() -> tuple[Grpo, Any]:
    trained = fill_prompts.policy(dropout=0.3)
    settings = GrpoSettings(
        steps=10, num_prompts=4, num_generations=3, num_iterations=2, steps_per_generation=2, learning_rate=0.01,
        max_resamples=1, credit="decision", sft_coef=0.1, sft_column="truth",
    )  # fmt: skip
    rewards = RewardSet([NamedReward("right", fill_prompts.right)], timeout=60)
    return Grpo(trained, fill_prompts.PROMPTS, rewards, PolicyLoss(), settings, seed=3), trained


@pytest.mark.parametrize(
    "build",
    [
        k3_with_truncation,
        exact_kl_sequence_level,
        k1_in_the_reward,
        supervised_with_dropout,
        credit_per_decision_and_truth,
    ],
)
def test_stopped_after_every_step(build: Callable[[], tuple[Any, Any]], tmp_path: Path):
    loop, trained = build()
    figures = {}
    start = {n: p.detach().clone() for n, p in trained.parameters()}
    while loop.step < loop.settings.steps:
        checkpoint.save(tmp_path, loop, trained)
        record = loop.update()
        figures[record.step] = without_times([record.metrics])
    final = {n: p.detach().clone() for n, p in trained.parameters()}
    assert any(not torch.equal(final[n], start[n]) for n in final)
    for step in checkpoint.steps(tmp_path):
        loop, trained = build()
        checkpoint.restore(checkpoint.folder_of(tmp_path, step), loop, trained)
        assert loop.step == step
        while loop.step < loop.settings.steps:
            record = loop.update()
            assert without_times([record.metrics]) == figures[record.step]
        for name, parameter in trained.parameters():
            assert torch.equal(parameter, final[name]), f"resumed after step {step}: {name} differs"


def test_going_on_after_an_end_with_better_weights(tmp_path: Path):
    """The checkpoint holds the weights of step 1 as its result; training goes on from step 3 as if nothing had been kept."""
    loop, trained = supervised_with_dropout()
    for _ in range(3):
        loop.update()
        checkpoint.save(tmp_path, loop, trained)
    last = checkpoint.set_aside(tmp_path, trained)
    trained.load(checkpoint.folder_of(tmp_path, 1))
    folder = checkpoint.save(tmp_path / "ended", loop, trained, last=last)
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (checkpoint.folder_of(tmp_path, 1) / weights).read_bytes()
    loops = []
    for start in (folder, checkpoint.folder_of(tmp_path, 3)):
        loop, trained = supervised_with_dropout()
        checkpoint.restore(start, loop, trained)
        loop.update()
        loops.append([p.detach().clone() for _, p in trained.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*loops, strict=True))
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_dropout_acts_and_follows_the_seed():
    losses = []
    for seed in (3, 3, 4):
        loop, _ = supervised_with_dropout()
        loop.seed, loop.examples = seed, loop.examples[:1]
        loop.update()
        losses.append(loop.update().metrics["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_checkpoint_of_another_model(tmp_path: Path):
    loop, trained = supervised_with_dropout()
    loop.update()
    folder = checkpoint.save(tmp_path, loop, trained)
    other = policy(lora=autoregressive.Lora(r=4, alpha=4))
    fresh = Sft(other, loop.examples, loop.settings, seed=3)
    before = [p.detach().clone() for _, p in other.parameters()]
    with pytest.raises(RelgradError, match=r"another model.*lora_A.*saved \[2, 96\], here \[4, 96\]"):
        checkpoint.restore(folder, fresh, other)
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, other.parameters(), strict=True))
    assert fresh.step == 0


def test_checkpoint_holds_no_code(tmp_path: Path):
    """Nothing in a checkpoint is a pickle: every file is JSON or safetensors (the tokenizer's are JSON too)."""
    loop, trained = k3_with_truncation()
    loop.update()
    folder = checkpoint.save(tmp_path, loop, trained)
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    for path in files:
        load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
