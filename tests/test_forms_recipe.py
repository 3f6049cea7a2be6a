"""`relgrad run forms-flow-quick` as a user types it: a short run for what it writes, the whole one for what it learns (slow)."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import lines, relgrad, relgrad_process
from relgrad.commands.cli import app
from relgrad.environments.forms.making import families
from relgrad.runs.build import find_recipe, load_task, resolve
from relgrad.runs.recipe import load_recipe

STEPS = 4
"""Steps of GRPO in the short run."""
REWARD = "rewards=[{kind: regex, pattern: '[^e]*e[^e]*'}]"
"""One that a policy which has hardly learnt anything earns now and then: a single e."""
FLOW_RECIPES = ("forms-refusion", "forms-flow", "forms-flow-quick", "forms-flow-baseline", "fsdfm-1.3b")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run in a few steps, rewarded for what such a policy can earn; made by a process of its own."""
    out = tmp_path_factory.mktemp("runs")
    shorter = ("stages.0.sft.steps=30", f"stages.1.grpo.steps={STEPS}", "evaluation.num_prompts=24", REWARD)
    relgrad_process("run", "forms-flow-quick", f"out={out}", *shorter)
    return out / "forms-flow-quick"


@pytest.mark.slow
def test_it_learns_forms_of_unseen_families(tmp_path: Path) -> None:
    """The supervised stage; GRPO has little to add to that, and loses nothing of it."""
    relgrad_process("run", "forms-flow-quick", f"out={tmp_path}")
    stage = tmp_path / "forms-flow-quick" / "2-grpo"
    before, after = lines(stage / "evaluations.jsonl")
    assert before["score"] > 0.7, "the supervised stage taught nothing"
    assert after["score"] > before["score"] - 0.05, "GRPO spoilt what it began with"


def test_it_is_judged_on_families_that_it_never_saw(finished: Path) -> None:
    _, after = lines(finished / "2-grpo" / "evaluations.jsonl")
    assert after["units"] == len(set(after["families"])) == 6, "the interval is over the families that were never seen"
    trained = {s["prompt"] for s in lines(next((finished / "2-grpo" / "samples").glob("*.jsonl")))}
    assert trained.isdisjoint(s["prompt"] for s in after["samples"])


def test_every_step_is_on_policy(finished: Path) -> None:
    parities = [r["parity/max_abs"] for r in lines(finished / "2-grpo" / "metrics.jsonl") if "parity/max_abs" in r]
    assert parities
    assert max(parities) < 1e-3


def test_report_steps_through_trajectories(finished: Path) -> None:
    films = lines(finished / "2-grpo" / "films.jsonl")
    assert {film["step"] for film in films} == {0, STEPS}
    for film in films:
        assert len(film["frames"]) == 9, "the start and eight steps"
        for before, after in zip(film["frames"], film["frames"][1:], strict=False):
            jumped = set(after["filled"])
            pairs = enumerate(zip(before["text"], after["text"], strict=True))
            assert {i for i, (a, b) in pairs if a != b} == jumped
            assert all(0 <= after["confidence"][i] <= 1 for i in jumped)
    assert 'data-testid="films"' in (finished / "report.html").read_text()


def test_what_was_trained_can_be_used(finished: Path) -> None:
    printed = relgrad("evaluate", finished, "--against", finished / "1-sft", "evaluation.num_prompts=16")
    assert {"score", "reward", "success", "nonzero"} <= {line.split(" ")[0] for line in printed.splitlines()}
    assert "over 6 families" in printed
    assert "\nwrites  " in relgrad("sample", finished, "--prompt", "text town: Bonn", "-n", "1")


@pytest.mark.parametrize("name", FLOW_RECIPES)
def test_every_evaluation_shows_success_and_what_earns_nothing(name: str) -> None:
    for stage in load_recipe(find_recipe(name)).stages:
        parts = {reward.options.get("part") for reward in stage.judged_by if not reward.weight}
        assert {"success", "nonzero"} <= parts


@pytest.mark.parametrize("name", FLOW_RECIPES)
def test_recipes_are_complete_and_hold_families_apart(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    if name != "fsdfm-1.3b":  # needs a checkpoint and GPT-2's tokenizer
        recipe = resolve(recipe)
    for stage in recipe.stages:
        task = load_task(stage)
        of = {split: set(families.names(split)) for split in families.SPLITS}
        assert {prompt.columns["family"] for prompt in task.validation} <= of["validation"]
        assert {prompt.columns["family"] for prompt in task.test} <= of["test"]
        assert not task.two_parts
        assert {task.train[i].columns["family"] for i in range(100)} <= of["train"]
    assert recipe.stages[-1].stage == "grpo"


def test_what_a_forms_plan_is_written_in_fits_the_network() -> None:
    """The longest prompt and plan of the grammar fit, in a thousand forms of every split."""
    for name in ("forms-flow", "forms-flow-quick"):
        for stage in resolve(load_recipe(find_recipe(name))).stages:
            task, policy = load_task(stage), stage.policy.options
            forms = [task.train[i] for i in range(min(1000, len(task.train)))] + [*task.validation, *task.test]
            assert max(len(str(p.columns["plan"])) for p in forms) <= policy["max_completion_length"]
            assert max(len(p.text) for p in forms) + policy["max_completion_length"] <= policy["network"]["length"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy.max_completion_length=90", "editable"),
        ("policy.branch_steps=20", "sampling_steps=8"),
        ("task.grammar.max_fields=0", "max_fields"),
        ("stages.1.task.held_out=train", "held_out"),
        ("task.families=[taxi rides]", "taxi ride"),
        ("rewards.0.executor=firefox", "executor"),
    ],
)
def test_wrong_input_is_named(override: str, said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "forms-flow-quick", f"out={tmp_path}", override], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output
