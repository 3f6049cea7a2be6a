"""The tables of docs/results.md, from run folders with known scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import results_table


def test_the_table_of_several_seeds_pairs_prompts_and_seeds(tmp_path: Path) -> None:
    """Two seeds, three prompts; gains of .1, .2, .3 and .3, .4, .5: .3 in the mean, .2 and .4 of the seeds."""
    runs = []
    for seed, gains in enumerate(([0.1, 0.2, 0.3], [0.3, 0.4, 0.5])):
        stage = tmp_path / f"run-{seed}" / "1-grpo"
        stage.mkdir(parents=True)
        (stage / "recipe.yaml").write_text("seed: 0\n", encoding="utf-8")
        scores = ([0.5, 0.5, 0.5], [0.5 + gain for gain in gains])
        both = [{"ids": [4, 5, 6], "n": 3, "per_prompt_rewards": {"exact": one}} for one in scores]
        (stage / "evaluations.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in both), encoding="utf-8")
        runs.append(stage.parent)
    cells = [cell.strip() for cell in results_table.pooled(runs).splitlines()[-1].split("|")[1:-1]]
    assert cells[:4] == ["exact", "0.500", "0.800", "+0.300"]
    half = 12.706 * 0.1  # Student's t of one degree of freedom; the standard error of .2 and .4 is .1
    assert cells[5] == f"[{0.3 - half:+.3f}, {0.3 + half:+.3f}]"
    low, high = map(float, cells[4].strip("[]").split(","))
    assert 0.2 <= low < 0.3 < high <= 0.4
    other = {"ids": [9], "n": 1, "per_prompt_rewards": {}}
    (runs[1] / "1-grpo" / "evaluations.jsonl").write_text(f"{json.dumps(other)}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="not evaluated on the same prompts"):
        results_table.pooled(runs)
