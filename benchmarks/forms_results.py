"""The table of docs/results.md for forms: what Flow-GRPO, the old objective, and mere cooling do to the same supervised policy.

    for seed in 0 1 2; do relgrad run forms-flow seed=$seed name=forms-flow-$seed; done
    for seed in 0 1 2; do relgrad run forms-flow-baseline seed=$seed name=forms-flow-baseline-$seed \\
        policy.model=runs/forms-flow-$seed/1-sft; done
    python -m benchmarks.forms_results 0 1 2

Every policy fills in the same 200 forms of the test families, four times each, in headless Chromium; no stage has seen these
families. "cooled" is the supervised policy at temperature 0.4. Differences are to the supervised policy, paired by form, with 95 %
intervals. The last lines pool the seeds: a form's score is its mean over them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from relgrad.evaluation.test import Evaluation, compare_rewards, evaluate

from relgrad.evaluation.statistics import Interval, paired_difference
from relgrad.runs.build import load_task
from relgrad.runs.use import open_source, rewards_of
from relgrad.stages.kind import build_policy

FIGURES = ("reward", "success", "perfect", "nonzero")
GENERATIONS, SEED, COOL = 4, 99, 0.4
HEAD = f"| seed | policy | {' | '.join(FIGURES)} |\n|---|---|{'---|' * len(FIGURES)}"


def cell(value: float, difference: Interval | None) -> str:
    if difference is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"


def judged(seed: int, folder: Path, root: Path, **law: float) -> Evaluation:
    """The policy in the stage `folder`, with the forms, rewards and browser of the GRPO stage."""
    stage, trained = open_source(str(root / f"forms-flow-{seed}" / "2-grpo"), [])
    policy = type(stage.policy).model_validate(stage.policy.model_dump() | law)
    return evaluate(
        build_policy(stage.model_copy(update={"policy": policy}), open_source(str(folder), [])[1]),
        load_task(stage).test,
        rewards_of(stage, trained),
        num_generations=GENERATIONS,
        seed=SEED,
        progress=tell,
    )


def rows(seed: int, root: Path) -> dict[str, Evaluation]:
    """The evaluations of one seed by policy, printed as they come."""
    begun, trained = root / f"forms-flow-{seed}" / "1-sft", root / f"forms-flow-{seed}" / "2-grpo"
    baseline = root / f"forms-flow-baseline-{seed}"
    found: dict[str, Evaluation] = {}
    for name, folder, law in (
        ("SFT", begun, {}),
        ("Flow-GRPO", trained, {}),
        ("Advantage x denoising loss", baseline, {}),
        ("SFT cooled", begun, {"temperature": COOL}),
    ):
        found[name] = judged(seed, folder, root, **law)
        differences = compare_rewards(found["SFT"], found[name]) if name != "SFT" else {}
        cells = [cell(found[name].rewards[figure], differences.get(figure)) for figure in FIGURES]
        print(f"| {seed} | {name} | {' | '.join(cells)} |", flush=True)
    return found


def tell(done: int, total: int) -> None:
    """How far the evaluation is, on one line of the terminal."""
    print(f"evaluating: {done} of {total}", end="\r", file=sys.stderr, flush=True)


def pooled(seeds: list[dict[str, Evaluation]]) -> None:
    """Print the means over seeds, and their differences to the supervised policy."""
    means: dict[str, dict[str, Any]] = defaultdict(dict)
    for name in seeds[0]:
        for figure in FIGURES:
            means[name][figure] = np.nanmean([one[name].per_prompt_rewards[figure] for one in seeds], axis=0)
        cells = [
            cell(
                float(np.nanmean(means[name][figure])),
                paired_difference(means["SFT"][figure], means[name][figure]) if name != "SFT" else None,
            )
            for figure in FIGURES
        ]
        print(f"| all | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table of the seeds given."""
    print(HEAD, flush=True)
    pooled([rows(seed, Path("runs")) for seed in map(int, sys.argv[1:])])


if __name__ == "__main__":
    main()
