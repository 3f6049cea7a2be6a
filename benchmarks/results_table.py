"""Tables for docs/, as Markdown.

Of run folders (docs/results.md): held-out score before and after, with 95 % intervals, and the time taken; of several, every
figure of them all, too. Of a file in benchmarks/results/ (docs/performance.md): the benchmark's own tables.

python -m benchmarks.results_table runs/demo-0 runs/demo-1 runs/demo-2
python -m benchmarks.results_table benchmarks/results/2026-11-20-1056-tiny.json
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from relgrad.core.run_folder import RunDir, stages_in
from relgrad.evaluation.held_out import mean
from relgrad.evaluation.statistics import paired_difference, t_over_seeds

COLUMNS = (
    "seed", "before, 95 % over prompts", "after, 95 % over prompts", "difference, paired by prompt", "prompts x completions",
    "steps", "training time",
)  # fmt: skip


def row(run: Path) -> str:
    """One line for the last stage of a run."""
    folder = last_stage(run)
    first, *_, last = folder.lines("evaluations.jsonl")
    metrics = folder.lines("metrics.jsonl")
    recipe = yaml.safe_load((folder.root / "recipe.yaml").read_text(encoding="utf-8"))
    minutes = sum(record["step_time"] for record in metrics) / 60
    return (
        f"| {recipe['seed']} | {interval(first)} | {interval(last)} | {difference(last)} | {last['n']} x "
        f"{recipe['evaluation']['num_generations']} | {len(metrics)} | {minutes:.1f} min |"
    )


def last_stage(run: Path) -> RunDir:
    """The folder of a run's last stage."""
    return RunDir(stages_in(run)[-1])


def pooled(runs: Sequence[Path]) -> str:
    """Every figure of runs that differ in their seed alone: means, and the difference with two intervals.

    Over prompts, a prompt's difference being its mean over the seeds: what these runs say of other prompts. Over seeds (Student's):
    what they say of other runs.
    """
    evaluations = [last_stage(run).lines("evaluations.jsonl") for run in runs]
    before_after = [(records[0], records[-1]) for records in evaluations]
    if len({(tuple(record["ids"]), record["n"]) for pair in before_after for record in pair}) > 1:
        raise SystemExit("these runs were not evaluated on the same prompts: give runs that differ in their seed alone")
    prompts = before_after[0][0]["n"]
    head = ("figure", "before", "after", "difference", f"95 % over {prompts} prompts", f"95 % over {len(runs)} seeds")
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in before_after[0][0]["per_prompt_rewards"]:
        before, after = (
            [
                [math.nan if value is None else value for value in pair[side]["per_prompt_rewards"][name]]
                for pair in before_after
            ]
            for side in (0, 1)
        )
        over_prompts = paired_difference(
            *([mean(column) for column in zip(*side, strict=True)] for side in (before, after))
        )
        over_seeds = t_over_seeds([paired_difference(*pair).value for pair in zip(before, after, strict=True)])
        means = (f"{mean([mean(one) for one in side]):.3f}" for side in (before, after))
        ranges = (f"[{one.low:+.3f}, {one.high:+.3f}]" for one in (over_prompts, over_seeds))
        table.append(f"| {name} | {' | '.join(means)} | {over_seeds.value:+.3f} | {' | '.join(ranges)} |")
    return "\n".join(table)


def interval(record: dict[str, Any]) -> str:
    return f"{record['score']:.3f} {ends(record['low'], record['high'])}"


def difference(record: dict[str, Any]) -> str:
    return f"{record['difference']:+.3f} {ends(record['difference_low'], record['difference_high'], '+')}"


def ends(low: float | None, high: float | None, sign: str = "") -> str:
    """The ends of an interval; of too few families there is none."""
    return "(no interval)" if low is None or high is None else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def of_benchmark(file: Path) -> str:
    """The tables of one results file, titles included, and the hardware it names."""
    saved = json.loads(file.read_text(encoding="utf-8"))
    module = importlib.import_module(f"benchmarks.{saved['benchmark']}")
    hardware = ", ".join(str(value) for value in saved["hardware"].values() if value)
    return "\n\n".join([*map(markdown, module.tables(saved["records"])), hardware])


def markdown(table: Table) -> str:
    """One of rich's tables of plain strings; its columns keep their alignment."""
    heads = [str(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
    return "\n".join([str(table.title), "", *lines])


def main() -> None:
    """Print the tables and the hardware."""
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        raise SystemExit(__doc__)
    if all(run.suffix == ".json" for run in runs):
        print("\n\n".join(map(of_benchmark, runs)))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for run in runs:
        print(row(run))
    if len(runs) > 1:
        print(f"\n{pooled(runs)}")
    environment = sorted(runs[0].glob("*/environment.json"))[-1]
    print(f"\n{json.loads(environment.read_text(encoding='utf-8'))['hardware']}")


if __name__ == "__main__":
    main()
