"""What a search gains from a policy that learnt from searches: list programs, six arms, at equal numbers of applied operators.

    python -m benchmarks.workflow_learning --out FOLDER --seeds 1 2 3 4 5

A seed makes the tasks, the weights and all draws. Every arm trains on the same tasks in the same order until it has applied
`--budget` operators, each to what the examples have become: the decisions of its own samples, the evaluations of its searches, and
what finishes failures all count one. How many prompts it sees by then differs, and so does how far the curriculum has come. It is
judged on the same 120 tasks, whose functions no training task has. What is finished is in FOLDER, and so are checkpoints: the same
command goes on. At the end it prints the tables and writes FOLDER/curves.svg.

    untrained    the untrained policy as prior, and the uniform prior beside it
    mixed        recipe workflows, with COMMON: groups that fail are searched, solutions join them by shaping, and are kept
    unweighted   as mixed, but what searches find counts as if the policy had drawn it: no weights
    on-policy    as mixed, but without search and replay
    as-sampled   as unweighted, but every group is searched, and up to 4 solutions and 12 failures join it
    expert       as mixed, but cross-entropy on what was right, in place of the policy gradient. This loss has no terms for entropy
                 and divergence, and refuses their coefficients: they are 0 here, and the same in all other arms

Intervals are over seeds: Student's, differences paired by seed.
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
from relgrad.evaluation.statistics import t_over_seeds
from relgrad.runs.build import build_rewards, find_recipe, load_task
from relgrad.runs.recipe import load_recipe
from relgrad.stages.grpo import Settings, policy_loss
from relgrad.stages.kind import build_policy
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo

COMMON = ("grpo.entropy_coef=0.03", "grpo.kl_estimator=k3")
"""Settings of all arms that are not the recipe's."""
ARMS: dict[str, tuple[str, ...]] = {
    "untrained": (),
    "mixed": (),
    "unweighted": ("grpo.search.weights=none",),
    "on-policy": ("grpo.search=null", "grpo.replay=null"),
    "as-sampled": (
        "grpo.search.weights=none",
        "grpo.search.when=always",
        "grpo.search.solutions=4",
        "grpo.search.failures=12",
    ),
    "expert": ("grpo.loss=relgrad.objectives.expert_iteration", "grpo.entropy_coef=0", "grpo.beta=0"),
}
POINTS = 2
"""How often a run is judged, at equal stretches of its budget; and once before it."""
COUNTS = (16, 64, 200)
COUNTED = ("completions/total_tokens", "search/evaluations", "search/finished")
"""Metrics of a batch that add up to the operators applied: by the policy's own samples, by searches, by finishing failures."""


def stage_of(arm: str, seed: int) -> Settings:
    """The settings of one arm."""
    overrides = (f"seed={seed}", "grpo.steps=100000", *COMMON, *ARMS[arm])
    (stage,) = load_recipe(find_recipe("workflows"), overrides).stages
    assert isinstance(stage, Settings)
    return stage


def judged(policy: Any, prompts: Sequence[Prompt], rewards: Any) -> dict[str, list[float]]:
    """A figure a prompt: pass@1, and what searches solve with the policy's prior and with the uniform one."""
    evaluation = evaluate(policy, prompts, rewards, num_generations=16, seed=1234)
    figures = {name: list(values) for name, values in evaluation.per_prompt_rewards.items()}
    return {"pass@1": figures.pop("list_program"), **figures}


def measure(arm: str, seed: int, budget: int, folder: Path) -> dict[str, Any]:
    """One run, from its newest checkpoint on: the figures at every point, by applied operators."""
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
            executions += sum(int(metrics.get(name, 0)) for name in COUNTED)
            solutions += int(metrics.get("search/solved", 0))
        spent = before + time.process_time() - began
        point = {"step": loop.step, "executions": executions, "solutions": solutions, "cpu_s": round(spent, 1)}
        point |= {"entropy": metrics["entropy"], "prompts": loop.generations * stage.grpo.num_prompts}
        points.append({**point, "figures": judged(policy, prompts, rewards)})
        checkpoint.save(files.checkpoints, loop, policy, {}, ALONE)
        files.append("points.jsonl", points[-1])
    return {"arm": arm, "seed": seed, "points": points}


# ---------------------------------------------------------------------- tables


NAMES = ("pass@1", *(f"search/solved@{count}" for count in COUNTS), "search/evaluations")


def means_of(records: Sequence[dict[str, Any]], arm: str, name: str, point: int = -1) -> dict[int, float]:
    """By seed: the mean of the figure over the test tasks."""
    own = sorted((record for record in records if record["arm"] == arm), key=lambda record: record["seed"])
    return {r["seed"]: float(np.mean(r["points"][point]["figures"][name])) for r in own}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, lowest and highest, and what each run cost."""
    lines = [
        "| Arm | pass@1 | solved at 16 | at 64 | at 200 | evaluations | operators applied | prompts seen | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        if not (own := [record["points"][-1] for record in records if record["arm"] == arm]):
            continue
        cells = [spread(list(means_of(records, arm, name).values()), name) for name in NAMES]
        cells += [
            f"{np.mean([point.get(name, 0) for point in own]):,.0f}" for name in ("executions", "prompts", "cpu_s")
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    uniform = [name.replace("search/", "uniform/") for name in NAMES[1:]]
    cells = [spread(list(means_of(records, "untrained", name).values()), name) for name in uniform]
    lines.append("| uniform prior | | " + " | ".join(cells) + " | 0 | 0 | 0 |")
    return "\n".join(lines)


def spread(values: Sequence[float], name: str) -> str:
    digits = 0 if name.endswith("evaluations") else 3
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def against(records: Sequence[dict[str, Any]], base: str) -> str:
    """Differences of every other arm to `base`, paired by seed: Student's 95 % interval over seeds."""
    lines = [
        f"| Arm, less {base} | pass@1 | solved at 16 | at 64 | at 200 | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        cells = []
        for name in NAMES:
            ours, theirs = means_of(records, arm, name), means_of(records, base, name)
            interval = t_over_seeds([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
            digits = 0 if name.endswith("evaluations") else 3
            cells.append(f"{interval.value:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]")
        if arm != base:
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Solved within so many evaluations, by arm, and by operators applied in training: means over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for arm in ARMS:
        own = [r["points"][-1]["figures"] for r in records if r["arm"] == arm]
        if not own:
            continue
        grid = np.arange(1, 201)
        pairs = [(np.array(f["search/evaluations"]), np.array(f["search/solved@200"])) for f in own]
        share = np.mean([[((n <= k) & (s > 0)).mean() for k in grid] for n, s in pairs], 0)
        axes[0].plot(grid, share, label=arm)
        points = [[0, *(p["executions"] for p in r["points"])] for r in records if r["arm"] == arm]
        if arm != "untrained":
            first = np.mean(list(means_of(records, "untrained", "search/solved@200").values()))
            later = [np.mean(list(means_of(records, arm, "search/solved@200", i).values())) for i in range(POINTS)]
            axes[1].plot(np.mean(points, 0), [first, *later], marker="o", label=arm)
    axes[0].set(xlabel="programs executed by the search", ylabel="held-out tasks solved", ylim=(0, 1))
    axes[1].set(xlabel="operators applied in training", ylabel="solved at 200", ylim=(0, 1))
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description="Six arms that learn from searches or without, at equal numbers of applied operators."
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/workflow-learning"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    arguments.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments.add_argument("--budget", type=int, default=100_000, help="operators that one run may apply")
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
    if set(ARMS) <= {record["arm"] for record in records}:
        for base in ("mixed", "on-policy", "untrained"):
            print(against(records, base))
        draw_curves(records, chosen.out / "curves.svg")


if __name__ == "__main__":
    main()
