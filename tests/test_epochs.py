"""Epochs in place of steps: counted when the task is loaded, kept as they were asked for, followed by schedules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fill_text
from relgrad.commands.cli import app
from relgrad.core.types import Example, Prompt
from relgrad.monitor.report.read import read_stage
from relgrad.policies import autoregressive
from relgrad.training.optimizer import learning_rate
from relgrad.training.settings import GrpoSettings
from relgrad.training.sft import Sft, SftSettings

RECIPE = """
name: r
policy: {kind: autoregressive, model: "tiny:32x1", max_completion_length: 2}
task: {kind: digits, length: 2, train_size: 30, held_out_size: 4, test_size: 0}
evaluation: {num_prompts: 2, num_generations: 2}
rewards: [{kind: exact}]
stages:
  - {stage: sft, sft: {epochs: 0.5, batch_size: 4, lr_scheduler_type: linear, warmup_steps: 1}}
  - {stage: grpo, grpo: {epochs: 0.1, num_prompts: 2, num_generations: 2, num_iterations: 2}}
"""


def relgrad(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("settings", "prompts", "steps"),
    [
        (SftSettings(epochs=1, batch_size=4), 12, 3),
        (SftSettings(epochs=1, batch_size=4), 13, 4),
        (SftSettings(epochs=1.1, batch_size=1), 10, 11),  # 1.1 * 10 is more than 11 in floats
        (SftSettings(epochs=0.01, batch_size=8), 10, 1),
        (SftSettings(epochs=3, batch_size=8, gradient_accumulation_steps=4), 16, 6),
        (GrpoSettings(epochs=2, num_prompts=8), 100, 25),
        (GrpoSettings(epochs=1, num_prompts=8, num_iterations=3, steps_per_generation=2), 20, 18),
    ],
)
def test_epochs_in_steps(settings: SftSettings | GrpoSettings, prompts: int, steps: int):
    counted = settings.counted(prompts)
    assert counted.steps == counted.total == steps
    assert counted.counted(10 * prompts) == counted, "what is counted stays"
    written = counted.model_dump()
    assert (written["steps"], written["epochs"]) == (None, settings.epochs)
    assert type(settings)(**written) == settings


@pytest.mark.parametrize("kind", [SftSettings, GrpoSettings])
def test_steps_are_what_they_were(kind: type[SftSettings] | type[GrpoSettings]):
    assert kind().steps == 100
    assert kind(steps=7).counted(sys.maxsize) == kind(steps=7)
    assert kind(steps=None, epochs=2).epochs == kind(epochs=2, steps=None).epochs == 2
    assert kind(steps=7).model_dump()["steps"] == 7


@pytest.mark.parametrize("value", [0, -1, "inf", "nan", "many"])
def test_epochs_are_a_positive_number(value: object):
    with pytest.raises(ValueError, match="epochs"):
        SftSettings(epochs=value)  # type: ignore[arg-type]


def test_a_loop_of_its_own_counts_its_examples():
    """The schedule ends with the last of the counted steps."""
    policy = autoregressive.build(autoregressive.Settings(model="tiny:32x1", max_completion_length=2), seed=0)
    examples = [Example(Prompt(f"{n}=", id=n), str(n)) for n in range(6)]
    loop = Sft(policy, examples, SftSettings(epochs=2, batch_size=3, lr_scheduler_type="linear", learning_rate=0.1))
    assert loop.settings.steps == loop.optimizer.steps == 4
    rates = [loop.update().metrics["learning_rate"] for _ in range(4)]
    assert rates == [learning_rate(loop.settings, step, 4) for step in range(4)]
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(0.025)


def test_a_run_of_epochs(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    shown = relgrad("run", recipe, f"out={tmp_path}", "--dry-run")
    assert "4 supervised steps (0.5 epochs) of 4 examples" in shown.output
    assert "4 GRPO steps (0.1 epochs), 2 prompts x 2 completions per batch" in shown.output
    ended = relgrad("run", recipe, f"out={tmp_path}")
    assert ended.exit_code == 0, ended.output
    for stage, section in (("1-sft", "sft"), ("2-grpo", "grpo")):
        folder = tmp_path / "r" / stage
        written = yaml.safe_load((folder / "recipe.yaml").read_text())[section]
        assert written["steps"] is None
        assert written["epochs"] in (0.5, 0.1)
        assert read_stage(folder).steps == 4
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
        again = relgrad("run", folder / "recipe.yaml", "--dry-run", f"out={tmp_path}/again")
        assert "4 " in again.output.splitlines()[0]
        assert "epochs)" in again.output.splitlines()[0]
    assert relgrad("run", recipe, f"out={tmp_path}").output.count("finished before") == 2
    more = relgrad("run", recipe, f"out={tmp_path}", "stages.1.grpo.epochs=0.2", "--dry-run")
    assert "6 GRPO steps (0.2 epochs), 2 prompts x 2 completions per batch; continuing after step 4" in more.output
    other = relgrad("run", recipe, f"out={tmp_path}", "stages.0.sft.epochs=1", "--dry-run")
    assert other.exit_code == 2
    assert "sft.epochs: 0.5 there, 1.0 now" in " ".join(other.output.split())


def test_steps_and_epochs_exclude_each_other(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    both = relgrad("run", recipe, "--dry-run", "stages.1.grpo.steps=3")
    assert both.exit_code == 2
    assert "grpo: steps=3 and epochs=0.1 both say how long to train" in " ".join(both.output.split())
    one = relgrad("run", recipe, "--dry-run", "stages.1.grpo.steps=3", "stages.1.grpo.epochs=null")
    assert "3 GRPO steps, 2 prompts" in one.output


def test_a_stream_without_an_end_has_no_epochs(tmp_path: Path):
    text = fill_text.write(tmp_path / "text.txt", lines=100)
    folder = tmp_path / "data"
    prepared = relgrad(
        "prepare",
        "--text",
        text,
        "--out",
        folder,
        "--files",
        2,
        "--samples-per-file",
        8,
        "length=16",
        "held_out_size=2",
    )
    assert prepared.exit_code == 0, prepared.output
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nstage: sft\nsft: {{epochs: 1, batch_size: 4}}\ntask: {{kind: masked_stream, path: {folder}}}\n"
        f"policy: {{kind: fill_in, text: {text}, block_size: 16, n_layer: 1, n_head: 2, n_embd: 16}}\n"
    )
    assert "4 supervised steps (1 epoch) of 4 examples" in relgrad("run", recipe, "--dry-run").output
    plan = json.loads((folder / "stream.json").read_text())
    (folder / "stream.json").write_text(json.dumps(plan | {"files": None}))
    for command in (["run", recipe, "--dry-run"], ["run", recipe, f"out={tmp_path}"]):
        refused = relgrad(*command)
        assert refused.exit_code == 2
        said = " ".join(refused.output.split())
        assert "sft.epochs=1: the prompts of task 'masked_stream' never come to an end (a stream)" in said


def test_epochs_are_not_counted_where_the_past_takes_the_place_of_prompts():
    with pytest.raises(ValueError, match=r"epochs=2 with replay\.keep='groups'"):
        GrpoSettings(epochs=2, replay={"keep": "groups"})
