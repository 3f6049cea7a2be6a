"""The table of docs/results.md from run folders: held-out score before and after, with 95 % intervals, and the time taken.

python -m benchmarks.results_table runs/demo-0 runs/demo-1 runs/demo-2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from relgrad.rundir import RunDir

COLUMNS = ("seed", "before", "after", "difference, paired by prompt", "prompts x completions", "steps", "training time")


def row(run: Path) -> str:
    """One line for the last stage of a run."""
    stage = sorted(p.parent for p in run.glob("*/recipe.yaml"))[-1]
    folder = RunDir(stage)
    first, *_, last = folder.lines("evaluations.jsonl")
    metrics = folder.lines("metrics.jsonl")
    recipe = yaml.safe_load((stage / "recipe.yaml").read_text(encoding="utf-8"))
    minutes = sum(record["step_time"] for record in metrics) / 60
    return (
        f"| {recipe['seed']} | {interval(first)} | {interval(last)} | {difference(last)} | {last['n']} x "
        f"{recipe['evaluation']['num_generations']} | {len(metrics)} | {minutes:.1f} min |"
    )


def interval(record: dict[str, Any]) -> str:
    return f"{record['score']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"


def difference(record: dict[str, Any]) -> str:
    return f"{record['difference']:+.3f} [{record['difference_low']:+.3f}, {record['difference_high']:+.3f}]"


def main() -> None:
    """Print the table and the hardware the runs name."""
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        raise SystemExit(__doc__)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for run in runs:
        print(row(run))
    environment = sorted(runs[0].glob("*/environment.json"))[-1]
    print(f"\n{json.loads(environment.read_text(encoding='utf-8'))['hardware']}")


if __name__ == "__main__":
    main()
