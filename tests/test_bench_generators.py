"""Four kinds of generators on one task: their recipes differ in the policy alone, and the table says what runs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import generators

from relgrad.core.protocols import Policy
from relgrad.runs.build import find_recipe, load_task, resolve
from relgrad.runs.recipe import load_recipe
from relgrad.stages.kind import build_policy


def test_recipes_differ_in_the_policy_and_in_how_often_the_supervised_stage_is_looked_at() -> None:
    recipes = {kind: resolve(load_recipe(find_recipe(name))) for kind, name in generators.RECIPES.items()}
    compared, parameters = [], {}
    for kind, recipe in recipes.items():
        stages = [stage.model_dump() for stage in recipe.stages]
        for stage in stages:
            for key in ("policy", "name", "seed", "out"):
                stage.pop(key)
            stage["evaluation"].pop("every")
        compared.append(stages)
        policy: Policy = build_policy(recipe.stages[0], None)
        parameters[kind] = sum(p.numel() for _, p in policy.parameters())
    assert all(stages == compared[0] for stages in compared)
    for kind in ("flow", "unmasking", "refusion"):
        assert parameters["autoregressive"] == pytest.approx(parameters[kind], rel=0.1)


def test_demonstrations_fit_what_every_kind_writes() -> None:
    task = load_task(load_recipe(find_recipe("forms-autoregressive")).stages[0])
    longest = max(len(task.train[number].columns["plan"]) for number in range(50))
    assert longest < 76, "a plan and its end fit max_completion_length"


def test_the_table_of_finished_runs(tmp_path: Path) -> None:
    """Two seeds with gains of .1 and .3: Student's interval of two values is 12.706 standard errors of .1 wide."""
    for seed, gained in ((0, 0.1), (1, 0.3)):
        folder = tmp_path / f"unmasking-{seed}"
        for stage in generators.STAGES:
            (folder / stage).mkdir(parents=True)
            (folder / stage / "metrics.jsonl").write_text('{"step_time": 30}\n' * 4)
        evaluations = [
            {"step": step, "name": "test", "mean_length": 50, "rewards": {"reward": 0.4 + more, "success": 0.2 + more}}
            for step, more in ((0, 0), (300, gained))
        ]
        films = [
            {"step": 300, "ids": [1] * 47, "frames": [{"end": 47}], "tokens_per_forward": 3.0},
            {"step": 0, "ids": [], "frames": [{}] * 5},
        ]
        for name, records in (("evaluations", evaluations), ("films", films)):
            (folder / "2-grpo" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    runs = {seed: generators.figures(tmp_path / f"unmasking-{seed}") for seed in (0, 1, 2)}
    assert runs[2] is None, "not begun"
    finished = {seed: run for seed, run in runs.items() if run is not None}
    (row,) = generators.table({"flow": {}, "unmasking": finished})[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["unmasking", "0, 1", "0.400", "0.600", "+0.200 [-1.071, +1.471]"]
    assert cells[8:] == ["16.0", "2.0", "2.0"]


@pytest.mark.slow
def test_a_shortened_bench_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["stages.0.sft.steps=4", "stages.0.evaluation.every=4", "stages.1.grpo.steps=1", "stages.1.grpo.num_prompts=2",
             "evaluation.num_prompts=2"]  # fmt: skip
    for _ in range(2):
        generators.main(short, seeds="0", out=tmp_path)
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {kind} | 0 |") == 2 for kind in generators.RECIPES)
    assert printed.count("step 1/1") == 4, "the second time nothing is trained"
