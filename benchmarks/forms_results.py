"""The table of docs/results.md for forms: what Flow-GRPO, the old objective, and mere cooling do to the same supervised policy.

    for seed in 0 1 2; do relgrad run forms-flow seed=$seed name=forms-flow-$seed; done
    for seed in 0 1 2; do relgrad run forms-flow-baseline seed=$seed name=forms-flow-baseline-$seed \\
        policy.model=runs/forms-flow-$seed/1-sft; done
    python -m benchmarks.forms_results 0 1 2

Every policy fills in the same forms of the test families, which no stage has seen, in headless Chromium: these are the evaluations
that the runs themselves made. "cooled" is the supervised policy at temperature 0.4, evaluated here. Differences are to the
supervised policy, paired by form, with 95 % intervals. The last lines pool the seeds: a form's score is its mean over them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from relgrad.evaluate import Evaluation, compare_rewards, evaluate
from relgrad.metrics.statistics import Interval, paired_difference
from relgrad.parts import build_policy, load_task
from relgrad.rundir import RunDir
from relgrad.using import open_source, rewards_of

FIGURES = ("reward", "success", "perfect", "nonzero")
COOL = 0.4
HEAD = f"| seed | policy | {' | '.join(FIGURES)} |\n|---|---|{'---|' * len(FIGURES)}"


def cell(value: float, difference: Interval | None) -> str:
    if difference is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"


def recorded(run: Path, step: int) -> Evaluation:
    """The first (0) or last (-1) evaluation of a run's last stage."""
    return Evaluation.from_record(RunDir(run).lines("evaluations.jsonl")[step])


def cooled(run: Path, progress: Any) -> Evaluation:
    """The supervised policy at temperature COOL, on the forms of the GRPO stage and with its random numbers."""
    stage, trained = open_source(str(run / "2-grpo"), [])
    _, begun = open_source(str(run / "1-sft"), [])
    policy = type(stage.policy).model_validate(stage.policy.model_dump() | {"temperature": COOL})
    settings = stage.evaluation
    return evaluate(
        build_policy(stage.model_copy(update={"policy": policy}), begun),
        load_task(stage).held_out[: settings.num_prompts],
        rewards_of(stage, trained),
        num_generations=settings.num_generations,
        seed=settings.seed,
        progress=progress,
    )


def rows(seed: int, root: Path) -> dict[str, Evaluation]:
    """The evaluations of one seed by policy, printed as they come."""
    run = root / f"forms-flow-{seed}"
    found: dict[str, Evaluation] = {}
    for name, source in (
        ("SFT", lambda: recorded(run / "2-grpo", 0)),
        ("Flow-GRPO", lambda: recorded(run / "2-grpo", -1)),
        ("advantage x denoising loss", lambda: recorded(root / f"forms-flow-baseline-{seed}" / "1-grpo", -1)),
        (f"SFT cooled to T {COOL:g}", lambda: cooled(run, tell)),
    ):
        found[name] = source()
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
