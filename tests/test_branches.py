"""Stages that say where they start: several models in one recipe, and the hand-off between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from commands import relgrad
from relgrad.core.errors import RelgradError
from relgrad.runs.build import resolve
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.starts import first_fresh
from relgrad.training import checkpoint

STILL = {"steps": 1, "batch_size": 2, "learning_rate": 1e-30}
"""A step so small that float32 weights stay as they are: what a stage ends with is what it started from."""
BASE: dict[str, Any] = {
    "name": "x",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
    "task": {"kind": "digits", "length": 2, "train_size": 20, "held_out_size": 5},
    "rewards": [{"kind": "exact", "per_character": True}],
    "evaluation": {"num_prompts": 2, "num_generations": 2},
    "sft": STILL,
    "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2, "learning_rate": 1e-30},
}
STAGES = [
    {"stage": "sft", "label": "taught", "sft": {"steps": 2, "learning_rate": 1e-2}},
    {"stage": "sft", "label": "moved", "sft": {"steps": 2, "learning_rate": 1e-2}},
    {"stage": "sft", "label": "branch", "from": "taught"},
    {"stage": "grpo", "from": "1-taught"},
    {"stage": "sft", "label": "own", "from": "start"},
]


def recipe(out: Path, stages: list[dict[str, Any]] | None = None, **extra: Any) -> Any:
    return parse_recipe({**BASE, "out": str(out), "stages": stages or STAGES, **extra})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("branches")
    return run_recipe(recipe(out))[0].parent


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to / "x")
    return to


def hash_of(stage: Path) -> str:
    return json.loads((stage / "hand_off.json").read_text())["weights"]["sha256"]


def test_every_stage_starts_where_it_says(run: Path) -> None:
    taught, moved, branch, grpo, own = (hash_of(stage) for stage in sorted(run.glob("*-*")))
    assert taught == branch == grpo
    assert len({taught, moved, own}) == 3
    (untrained,) = run_recipe(recipe(run.parent / "alone", [{"stage": "sft"}]))
    assert hash_of(untrained) == own


def test_a_stage_may_start_from_another_run(run: Path, tmp_path: Path) -> None:
    newest = checkpoint.latest(run / "2-moved" / "checkpoints")
    stages = [
        {"stage": "sft", "label": "a", "from": str(run / "1-taught")},
        {"stage": "sft", "label": "b", "from": str(newest)},
        {"stage": "sft", "label": "c", "from": str(run)},
    ]
    a, b, c = run_recipe(recipe(tmp_path, stages))
    assert [hash_of(folder) for folder in (a, b, c)] == [hash_of(run / n) for n in ("1-taught", "2-moved", "5-own")]
    prints = json.loads((a / "fingerprints.json").read_text())["files"]
    assert any(one["setting"] == "from" and name.endswith("model.safetensors") for name, one in prints.items())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{}, {"from": "sftt"}], r"2-sft, from: sftt: .*there are sft, and there is no such folder.*`start`"),
        (
            [{"from": "grpo"}, {"stage": "grpo"}],
            r"1-sft, from: grpo: that stage is not before this one; there are none",
        ),
        ([{}, {}, {"from": "sft"}], r"2 stages are called 'sft'; name one by its folder: 1-sft, 2-sft"),
        ([{}, {"from": "./nowhere"}], r"from: \./nowhere: .*no such folder"),
        ([{}, {"from": str(Path(__file__).parent)}], r"from: .*tests: no folder of a run"),
        (
            [{}, {"stage": "judge", "judge": {"kind": "refill"}}, {"from": "judge"}],
            r"3-sft, which starts from 2-judge: a judge stage trains no policy",
        ),
        (
            [
                {},
                {"from": "sft", "policy": {"kind": "fill_in", "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}},
            ],
            r"its policy is of kind 'fill_in' and that one's of kind 'autoregressive'.*from: start",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_the_recipe(
    stages: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RelgradError, match=message):
        resolve(recipe(tmp_path, [{"stage": "sft", **stage} for stage in stages]))


def test_starting_over_keeps_what_does_not_go_on_from_the_stage(tmp_path: Path) -> None:
    chosen = recipe(tmp_path)
    assert first_fresh(chosen, False, "taught") == {0, 1, 2, 3}
    assert first_fresh(chosen, False, "moved") == {1}
    assert first_fresh(chosen, False, "grpo") == {3}
    assert first_fresh(chosen, True, None) == {0, 1, 2, 3, 4}
    linear = [{"stage": "sft"}, {"stage": "grpo"}, {"stage": "sft", "label": "last"}]
    assert first_fresh(recipe(tmp_path, linear), False, "grpo") == {1, 2}


def test_the_plan_says_where_stages_start_and_a_finished_run_is_not_repeated(
    run: Path,
) -> None:
    from relgrad.runs.plan import plan

    lines = plan(recipe(run.parent), redo="taught")
    assert f"from the policy of {run / '1-taught'}; deleting what is there" in lines[2]
    assert "from the recipe's own policy; finished before" in lines[4]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    run_recipe(recipe(run.parent))
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


def test_stages_of_a_run_are_named_by_their_label(run: Path) -> None:
    table = relgrad("compare", f"{run}:taught", f"{run}:branch", f"{run}/5-own")
    assert f"{run}:branch" in table
    assert "completion" in relgrad("sample", f"{run}:taught", "-n", 1, "--json")
    assert "score" in relgrad("evaluate", f"{run}:2-moved")


def test_an_unknown_label_of_a_run_names_those_it_has(run: Path) -> None:
    from relgrad.runs.use import find_source

    with pytest.raises(RelgradError, match=r"is called 'poly'; there are taught, moved, branch, grpo, own"):
        find_source(f"{run}:poly", [])


# ---------------------------------------------------------------------- hand-off


def test_other_weights_than_the_stage_ended_with_are_an_error(run: Path, tmp_path: Path) -> None:
    out = copy(run, tmp_path)
    saved = checkpoint.latest(out / "x" / "1-taught" / "checkpoints")
    assert saved is not None
    weights = load_file(saved / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1e-3}, saved / "model.safetensors", metadata={"format": "pt"})
    checkpoint.seal(saved)
    with pytest.raises(
        RelgradError, match=r"weights that were loaded are not those that the stage ended with \(SHA-256"
    ):
        run_recipe(recipe(out), redo="branch")


def test_a_policy_that_says_something_else_is_an_error_also_in_another_layout(run: Path, tmp_path: Path) -> None:
    """As where an adapter is put on: no weight of the new stage has a counterpart, but the policy must be the same."""
    out = copy(run, tmp_path)
    adapted = {"stage": "sft", "label": "adapted", "from": "taught", "policy": {"lora": {"r": 2}}}
    run_recipe(recipe(out, [*STAGES, adapted]))
    file = out / "x" / "1-taught" / "hand_off.json"
    record = json.loads(file.read_text())
    record["probe"]["nll"] += 1.0 * record["probe"]["targets"]
    file.write_text(json.dumps(record))
    with pytest.raises(
        RelgradError, match=r"differs from the one that the stage ended with: by 1 nats a token .* 0\.1 is"
    ):
        run_recipe(recipe(out, [*STAGES, adapted]), redo="adapted")
    with pytest.raises(RelgradError, match=r"by 1 nats a token .* 0\.0001 is allowed"):
        run_recipe(recipe(out), redo="branch")
