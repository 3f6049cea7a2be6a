"""What a search gains from a policy that learnt from searches: list programs, five arms, at equal numbers of executed programs.

    python -m benchmarks.workflow_learning --out FOLDER --seeds 1 2 3

A seed makes the tasks, the weights and all draws. Every arm trains on the same tasks in the same order until it has executed
`--budget` programs (its own samples and those of its searches), and is judged on the same 120 tasks, whose functions no training
task has. What is finished is in FOLDER, and so are checkpoints: the same command goes on. At the end it prints the tables and
writes FOLDER/curves.svg.

    untrained    the untrained policy as prior, and the uniform prior beside it
    mixed        recipe workflows: groups that fail are searched, solutions join them by shaping, and are kept
    on-policy    the same without search and replay
    as-sampled   every group is searched; up to 4 solutions and 12 failures join it as if the policy had drawn them: no ratio
    expert       as mixed, but cross-entropy on what was right, in place of the policy gradient
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relgrad.core.ranks import ALONE
from relgrad.core.run_folder import RunDir, write_atomic
from relgrad.core.types import Prompt
from relgrad.evaluation.held_out import evaluate
from relgrad.runs.build import build_rewards, find_recipe, load_task
from relgrad.runs.recipe import load_recipe
from relgrad.stages.grpo import Settings, policy_loss
from relgrad.stages.kind import build_policy
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo

SEED_SEARCH = "{when: always, solutions: 4, failures: 12, weights: none, evaluations: 60, temperature: 1}"
ARMS: dict[str, tuple[str, ...]] = {
    "untrained": (),
    "mixed": (),
    "on-policy": ("grpo.search=null", "grpo.replay=null"),
    "as-sampled": (f"grpo.search={SEED_SEARCH}", "grpo.replay=null", "grpo.entropy_coef=0", "grpo.beta=0"),
    "expert": ("grpo.loss=relgrad.objectives.expert_iteration", "grpo.entropy_coef=0", "grpo.beta=0"),
}
POINTS = 2
"""How often a run is judged, at equal stretches of its budget; and once before it."""
COUNTS = (16, 64, 200)


def stage_of(arm: str, seed: int) -> Settings:
    """The settings of one arm."""
    overrides = (f"seed={seed}", "grpo.steps=100000", *ARMS[arm])
    (stage,) = load_recipe(find_recipe("workflows"), overrides).stages
    assert isinstance(stage, Settings)
    return stage


def judged(policy: Any, prompts: Sequence[Prompt], rewards: Any) -> dict[str, list[float]]:
    """A figure a prompt: pass@1, and what searches solve with the policy's prior and with the uniform one."""
    evaluation = evaluate(policy, prompts, rewards, num_generations=16, seed=1234)
    figures = {name: list(values) for name, values in evaluation.per_prompt_rewards.items()}
    return {"pass@1": figures.pop("list_program"), **figures}


def measure(arm: str, seed: int, budget: int, folder: Path) -> dict[str, Any]:
    """One run, from its newest checkpoint on: the figures at every point, by executed programs."""
    stage = stage_of(arm, seed)
    task, rewards = load_task(stage), build_rewards(stage.rewards, 60.0)
    policy = build_policy(stage, None, reference=stage.grpo.beta > 0)
    prompts = task.test[: stage.evaluation.num_prompts]
    if arm == "untrained":
        return {"arm": arm, "seed": seed, "points": [{"executions": 0, "figures": judged(policy, prompts, rewards)}]}
    loss = policy_loss(stage.grpo)
    loop = Grpo(policy, task.train, rewards, loss, stage.grpo, seed=seed)
    files = RunDir(folder)
    points = files.lines("points.jsonl")
    if points and (newest := checkpoint.latest(files.checkpoints)) is not None:
        checkpoint.restore(newest, loop, policy, {}, ALONE)
        points = [point for point in points if point["step"] <= loop.step]
    last = points[-1] if points else {"executions": 0, "solutions": 0, "cpu_s": 0.0}
    executions, solutions, before = last["executions"], last["solutions"], last["cpu_s"]
    began = time.process_time()
    while len(points) < POINTS:
        while executions < budget * (len(points) + 1) // POINTS:
            metrics = loop.update().metrics
            executions += int(
                stage.grpo.num_prompts * stage.grpo.num_generations + metrics.get("search/evaluations", 0)
            )
            solutions += int(metrics.get("search/solved", 0))
        spent = before + time.process_time() - began
        point = {"step": loop.step, "executions": executions, "solutions": solutions, "cpu_s": round(spent, 1)}
        point["entropy"] = metrics["entropy"]
        points.append({**point, "figures": judged(policy, prompts, rewards)})
        checkpoint.save(files.checkpoints, loop, policy, {}, ALONE)
        files.append("points.jsonl", points[-1])
    return {"arm": arm, "seed": seed, "points": points}


# ---------------------------------------------------------------------- tables


def figures_of(records: Sequence[dict[str, Any]], arm: str, name: str, point: int = -1) -> list[np.ndarray]:
    """The figure a prompt of every seed."""
    own = sorted((record for record in records if record["arm"] == arm), key=lambda record: record["seed"])
    return [np.array(record["points"][point]["figures"][name]) for record in own]


def over_tasks(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], ratio: bool) -> tuple[float, float, float]:
    """(ratio or difference of means, 95 % interval): bootstrap over tasks, paired, drawn within every seed 10,000 times."""
    draw = np.random.default_rng(0)
    sums = []
    for a, b in zip(ours, theirs, strict=True):
        pick = draw.integers(0, len(a), (10_000, len(a)))
        sums.append((a[pick].mean(1), b[pick].mean(1)))
    mean_a, mean_b = (np.mean([pair[side] for pair in sums], 0) for side in (0, 1))
    whole_a, whole_b = (np.mean([values.mean() for values in side]) for side in (ours, theirs))
    drawn = mean_a / np.maximum(mean_b, 1e-9) if ratio else mean_a - mean_b
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(whole_a / whole_b if ratio else whole_a - whole_b), float(low), float(high)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Means over seeds (lowest - highest), and ratios to the untrained prior over tasks."""
    lines = [
        "| Arm | pass@1 | solved at 16 | at 64 | at 200 | evaluations | solved at 200, times the untrained prior's "
        "| evaluations, times | executions | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("pass@1", *(f"search/solved@{count}" for count in COUNTS), "search/evaluations")
    for arm in ARMS:
        own = [record for record in records if record["arm"] == arm]
        if not own:
            continue
        cells = [spread([values.mean() for values in figures_of(records, arm, name)], name) for name in names]
        for name in ("search/solved@200", "search/evaluations"):
            base = figures_of([r for r in records if r["seed"] in {o["seed"] for o in own}], "untrained", name)
            value, low, high = over_tasks(figures_of(records, arm, name), base, ratio=True)
            cells.append("" if arm == "untrained" else f"{value:.2f} [{low:.2f}, {high:.2f}]")
        cells.append(f"{np.mean([record['points'][-1]['executions'] for record in own]):,.0f}")
        cells.append(f"{np.mean([record['points'][-1].get('cpu_s', 0) for record in own]):.0f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    uniform = [f"uniform/{name}" for name in ("solved@16", "solved@64", "solved@200", "evaluations")]
    cells = [spread([values.mean() for values in figures_of(records, "untrained", name)], name) for name in uniform]
    lines.append("| uniform prior | | " + " | ".join(cells) + " | | | 0 | 0 |")
    return "\n".join(lines)


def spread(values: Sequence[float], name: str) -> str:
    digits = 0 if name.endswith("evaluations") else 3
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def against_mixed(records: Sequence[dict[str, Any]]) -> str:
    """Paired differences of every other arm to mixed."""
    lines = ["| Arm, less mixed | pass@1 | solved at 200 | evaluations |", "|---|---|---|---|"]
    for arm in ("on-policy", "as-sampled", "expert"):
        cells = []
        for name in ("pass@1", "search/solved@200", "search/evaluations"):
            value, low, high = over_tasks(
                figures_of(records, arm, name), figures_of(records, "mixed", name), ratio=False
            )
            digits = 0 if name.endswith("evaluations") else 3
            cells.append(f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Solved within so many evaluations, before and after, by arm: means over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for arm in ARMS:
        if not (needed := figures_of(records, arm, "search/evaluations")):
            continue
        solved = figures_of(records, arm, "search/solved@200")
        grid = np.arange(1, 201)
        share = np.mean([[((n <= k) & (s > 0)).mean() for k in grid] for n, s in zip(needed, solved, strict=True)], 0)
        axes[0].plot(grid, share, label=arm)
        points = [[0, *(p["executions"] for p in r["points"])] for r in records if r["arm"] == arm]
        if arm != "untrained":
            first = np.mean([v.mean() for v in figures_of(records, "untrained", "search/solved@200")])
            later = [
                np.mean([v.mean() for v in figures_of(records, arm, "search/solved@200", i)]) for i in range(POINTS)
            ]
            axes[1].plot(np.mean(points, 0), [first, *later], marker="o", label=arm)
    axes[0].set(xlabel="programs executed by the search", ylabel="held-out tasks solved", ylim=(0, 1))
    axes[1].set(xlabel="programs executed in training", ylabel="solved at 200", ylim=(0, 1))
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    arguments = argparse.ArgumentParser(description="Five ways to learn from searches, at equal executions.")
    arguments.add_argument("--out", type=Path, default=Path("runs/workflow-learning"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments.add_argument("--budget", type=int, default=100_000, help="programs that one run may execute")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        for arm in chosen.arms:
            done = chosen.out / f"{arm}-{seed}.json"
            if not done.is_file():
                record = measure(arm, seed, chosen.budget, chosen.out / f"{arm}-{seed}")
                write_atomic(done, json.dumps(record))
            print(f"{arm}, seed {seed}: {done}", flush=True)
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(chosen.out.glob("*.json"))]
    print(table(records))
    if {"mixed", "on-policy", "as-sampled", "expert"} <= {record["arm"] for record in records}:
        print(against_mixed(records))
        draw_curves(records, chosen.out / "curves.svg")


if __name__ == "__main__":
    main()
