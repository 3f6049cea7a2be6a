"""`relgrad compare` on small runs of a tiny model: seeds, checkpoints, untrained recipes, bare adapters, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commands import relgrad
from relgrad.commands.cli import app
from relgrad.runs.contenders import grouped, open_all
from relgrad.runs.recipe import load_recipe
from relgrad.runs.run import run_recipe

RECIPE = """
policy: {kind: autoregressive, model: "tiny:32x1", max_completion_length: 3}
task: {kind: digits, length: 2, train_size: 40, held_out_size: 10, test_size: 10}
rewards: [{kind: exact, per_character: true}, {kind: regex, name: digits, pattern: "[0-9]+", weight: 0}]
stage: sft
sft: {steps: 2, batch_size: 4, learning_rate: 1e-2}
evaluation: {num_prompts: 6, num_generations: 2}
"""
LORA = "policy.lora={r: 2, alpha: 4}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a recipe, two of another learning rate, and one with an adapter, which also lies bare in `adapter`."""
    root = tmp_path_factory.mktemp("runs")
    (root / "small.yaml").write_text(RECIPE)
    for name, settings in {
        "slow-0": ["seed=0"],
        "slow-1": ["seed=1"],
        "fast-0": ["seed=0", "sft.learning_rate=3e-2"],
        "fast-1": ["seed=1", "sft.learning_rate=3e-2"],
        "lora-0": ["seed=0", LORA],
    }.items():
        run_recipe(load_recipe(root / "small.yaml", [f"name={name}", f"out={root}", *settings]))
    checkpoint = root / "lora-0" / "1-sft" / "checkpoints" / "step_000002"
    shutil.copytree(checkpoint, root / "adapter", ignore=shutil.ignore_patterns("trainer"))
    return root


def compared(runs: Path, *arguments: object) -> tuple[str, dict[str, Any]]:
    """What is printed, and the JSON."""
    file = runs / "comparison.json"
    return relgrad("compare", *arguments, "--json", file), json.loads(file.read_text())


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def test_runs_that_differ_in_their_seed_are_one(runs: Path) -> None:
    shown, record = compared(runs, *(runs / n for n in ("slow-0", "fast-1", "slow-1", "fast-0")))
    assert [[t["seed"] for t in one["trainings"]] for one in record["contenders"]] == [[0, 1], [0, 1]]
    assert "slow-0 and 1 more seed  seeds 0, 1" in shown
    score = record["figures"][0]
    assert [mean["over"] for mean in score["means"]] == ["seeds", "seeds"]
    assert (score["differences"][1]["over"], score["differences"][1]["units"]) == ("seeds", 2)
    assert "over 2 seeds" in shown
    names = [figure["name"] for figure in record["figures"]]
    assert names[:3] == ["score", "exact", "digits"]
    assert "different completions" in names
    ids = [[t["ids"] for t in one["trainings"]] for one in record["contenders"]]
    assert ids[0] == ids[1]


def test_a_recipe_stands_for_its_untrained_start(runs: Path) -> None:
    shown, record = compared(runs, runs / "slow-0", runs / "small.yaml", "evaluation.num_prompts=4")
    assert record["contenders"][1]["label"] == f"{runs / 'small.yaml'} (untrained)"
    logged = json.loads((runs / "slow-0" / "1-sft" / "evaluations.jsonl").read_text().splitlines()[0])
    start = record["contenders"][1]["trainings"][0]["per_prompt"]["score"]
    assert start == logged["per_prompt"][:4], "the run itself judged its start so"
    assert "over 4 prompts" in shown


def test_the_figures_are_those_that_the_run_logged(runs: Path) -> None:
    _, record = compared(runs, runs / "slow-0", runs / "fast-0")
    for name, one in zip(("slow-0", "fast-0"), record["contenders"], strict=True):
        logged = json.loads((runs / name / "1-sft" / "evaluations.jsonl").read_text().splitlines()[-1])
        (training,) = one["trainings"]
        assert training["per_prompt"]["score"] == logged["per_prompt"]
        assert training["per_prompt"]["digits"] == logged["per_prompt_rewards"]["digits"]


def test_a_bare_adapter_is_what_was_trained(runs: Path) -> None:
    """As the run with the adapter is, whether or not its own recipe is there to tell of prompts and rewards."""
    _, record = compared(runs, runs / "lora-0", runs / "adapter")
    run, bare = (one["trainings"][0]["per_prompt"] for one in record["contenders"])
    assert run == bare
    _, record = compared(runs, runs / "adapter", runs / "slow-0", "--on", runs / "small.yaml")
    assert record["contenders"][0]["trainings"][0]["per_prompt"] == bare
    assert "has no prompts and no rewards of its own; say by what all are measured with --on" in refused(
        runs / "adapter"
    )


def test_an_adapter_that_would_be_read_as_another_is_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "adapter", tmp_path / "odd")
    file = tmp_path / "odd" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_rslora": True}))
    assert "use_rslora=True" in refused(tmp_path / "odd", runs / "slow-0")
    file.write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "a IA3 adapter" in refused(tmp_path / "odd", runs / "slow-0")
    for broken in ("{", "[]", '{"peft_type": "LORA"}'):
        file.write_text(broken)
        assert "not the configuration of a" in refused(tmp_path / "odd", runs / "slow-0")
    file.write_text(json.dumps(config))
    (tmp_path / "odd" / "adapter_model.safetensors").unlink()
    assert "without adapter_model.safetensors" in refused(tmp_path / "odd", runs / "slow-0")


def test_prompts_may_come_from_a_file(runs: Path) -> None:
    file = runs / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}=", "answer": str(n)[::-1]}) + "\n" for n in (12, 34, 56)))
    shown, record = compared(runs, runs / "slow-0", runs / "slow-1", runs / "adapter", "--test-file", file)
    assert record["prompts"] == 3
    assert f"3 of {file}" in shown
    assert all(len(t["ids"]) == 3 for one in record["contenders"] for t in one["trainings"])


def test_a_checkpoint_is_named_by_its_folder(runs: Path) -> None:
    checkpoint = runs / "slow-0" / "1-sft" / "checkpoints" / "step_000002"
    _, record = compared(runs, runs / "slow-0" / "1-sft", checkpoint)
    whole, one = (c["trainings"][0]["per_prompt"] for c in record["contenders"])
    assert whole == one


def test_the_page_needs_nothing_else_and_escapes(runs: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "slow-0", evil)
    page = tmp_path / "page.html"
    relgrad("compare", runs / "fast-0", evil, "--html", page)
    text = page.read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('data-testid="figure"') == 6
    assert "6 prompts" in text


def test_evaluate_against_several(runs: Path) -> None:
    shown = relgrad(
        "evaluate", runs / "slow-0", "--against", runs / "fast-0", runs / "small.yaml", "evaluation.num_prompts=4"
    )
    assert "A - this" in shown
    assert "(untrained)" in shown


def test_one_prompt_has_no_interval(runs: Path) -> None:
    shown = relgrad("evaluate", runs / "slow-0", "evaluation.num_prompts=1")
    assert "no interval, 1 prompt" in shown
    assert "unscored, unscored" not in shown
    assert "no interval, 1 prompt" in relgrad("compare", runs / "slow-0", runs / "fast-0", "evaluation.num_prompts=1")


def test_other_prompts_and_other_rewards_are_named(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("length: 2,", "length: 3,"))
    said = refused(runs / "slow-0", other)
    assert f"{other} is tested on other prompts than {runs / 'slow-0'}: prompt 1 is" in said
    assert f"--on {runs / 'slow-0'}" in said
    other.write_text(RECIPE.replace("per_character: true", "per_character: false"))
    said = refused(runs / "slow-0", other)
    assert "is judged by other rewards" in said
    assert "per_character=False" in said
    said = refused(runs / "slow-0", runs / "fast-1")
    assert "(seed 1) is tested on other prompts" in said, "digits holds out other prompts for every seed"
    assert "is named twice" in refused(other, other)
    assert "nothing to compare" in refused("evaluation.num_prompts=3")
    assert "is a folder" in refused(runs / "slow-0", "--json", runs)
    assert "no column 'answer'" in refused(runs / "slow-0", "--test-file", _file(tmp_path, '{"prompt": "12="}\n'))
    assert "no recipe 'nowhere'" in refused(runs / "slow-0", "nowhere")


def _file(folder: Path, text: str) -> Path:
    (folder / "bare.jsonl").write_text(text)
    return folder / "bare.jsonl"


def test_training_prompts_among_those_of_another_are_told(runs: Path) -> None:
    shown, record = compared(runs, runs / "slow-0", runs / "slow-1", "--on", runs / "slow-1")
    (note,) = record["notes"]
    assert note.startswith(f"{runs / 'slow-0'} was trained on ")
    assert f"warning: {note}" in shown


def test_a_path_into_another_run_is_the_recipe_that_made_it(runs: Path) -> None:
    """Trainings that go on from their own seed's earlier run differ in a path, and in nothing else."""
    for seed in (0, 1):
        start = runs / f"slow-{seed}" / "1-sft" / "checkpoints" / "step_000002"
        settings = [f"name=next-{seed}", f"out={runs}", f"seed={seed}", f"policy.model={start}"]
        run_recipe(load_recipe(runs / "small.yaml", [*settings, "sft.steps=1", "rewards=[]"]))
    opened = open_all([str(runs / f"next-{seed}") for seed in (0, 1)], [])
    assert [len(group) for group in grouped(opened)] == [2]
