"""One task, four kinds of generators: web forms written left to right, by flow, by unmasking, and slot by slot (ReFusion).

    python -m benchmarks.generators                                         4 kinds x 3 seeds, executed in process
    python -m benchmarks.generators --browser --kinds flow --seeds 0        judged in headless Chromium
    python -m benchmarks.generators --tables-only
    python -m benchmarks.generators stages.0.sft.steps=50 stages.1.grpo.steps=2     shortened, to see it run

Each kind is its recipe (RECIPES): the same 400 demonstrations, 32 of them a supervised step, the same forms, rewards and prompts to
test by, parameters within a tenth of each other's. Runs go on where they were stopped, and finished ones are not repeated.

    reward, success    of the test prompts, after supervised training and after GRPO
    gain               of GRPO, the mean over seeds with a 95 % interval (Student's) from two seeds on
    passes             of the network for a plan, as it is judged: its tokens, steps, or planning steps with their infilling
    minutes            of training, evaluations apart
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.estimator_curves import chosen
from relgrad.core.errors import RelgradError
from relgrad.evaluation.statistics import t_over_seeds
from relgrad.runs.build import find_recipe
from relgrad.runs.recipe import Recipe, load_recipe
from relgrad.runs.run import run_recipe

RECIPES = {
    "autoregressive": "forms-autoregressive",
    "flow": "forms-flow",
    "unmasking": "forms-unmasking",
    "refusion": "forms-refusion",
}
COLUMNS = (
    "kind", "seeds", "SFT reward", "GRPO reward", "gain", "SFT success", "GRPO success", "gain", "passes",
    "SFT minutes", "GRPO minutes",
)  # fmt: skip
STAGES = ("1-sft", "2-grpo")


def recipe_of(kind: str, seed: int, out: Path, browser: bool, overrides: Sequence[str]) -> Recipe:
    """The kind's recipe with this seed, judged by the executor that is wanted."""
    path = find_recipe(RECIPES[kind])
    judged = len(load_recipe(path).stages[1].evaluation.rewards)
    executor = "browser" if browser else "html"
    executors = [f"stages.1.evaluation.rewards.{number}.executor={executor}" for number in range(judged)]
    return load_recipe(path, [f"seed={seed}", f"name={kind}-{seed}", f"out={out}", *executors, *overrides])


def lines(file: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; none where it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def figures(run: Path) -> dict[str, float] | None:
    """What a finished run says; None where it is not finished."""
    evaluations = lines(run / "2-grpo" / "evaluations.jsonl")
    ends = [record for record in evaluations if record["name"] == "test"]
    if len(ends) < 2:
        return None
    before, after = ends[0], ends[-1]
    minutes = [sum(record["step_time"] for record in lines(run / stage / "metrics.jsonl")) / 60 for stage in STAGES]
    films = [film for film in lines(run / "2-grpo" / "films.jsonl") if film["step"] == after["step"]]
    return {
        "sft_reward": before["rewards"]["reward"],
        "sft_success": before["rewards"]["success"],
        "reward": after["rewards"]["reward"],
        "success": after["rewards"]["success"],
        "passes": statistics.fmean(map(passes, films)) if films else after["mean_length"],
        "sft_minutes": minutes[0],
        "minutes": minutes[1],
    }


def passes(film: dict[str, Any]) -> float:
    """Of one plan: what its film counted, or a pass a step."""
    if "tokens_per_forward" in film:
        ended = film["frames"][-1].get("end") is not None
        return (len(film["ids"]) + ended) / film["tokens_per_forward"] if film["tokens_per_forward"] else math.nan
    return len(film["frames"]) - 1


def table(by_kind: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    """Markdown lines: a row per kind that has a finished run."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for kind, runs in by_kind.items():
        if not runs:
            continue
        mean = {key: statistics.fmean(run[key] for run in runs.values()) for key in next(iter(runs.values()))}
        gains = [gain([run[key] - run[f"sft_{key}"] for run in runs.values()]) for key in ("reward", "success")]
        cells = [kind, ", ".join(map(str, runs)), f"{mean['sft_reward']:.3f}", f"{mean['reward']:.3f}", gains[0]]
        cells += [f"{mean['sft_success']:.3f}", f"{mean['success']:.3f}", gains[1], f"{mean['passes']:.1f}"]
        cells += [f"{mean['sft_minutes']:.1f}", f"{mean['minutes']:.1f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def gain(differences: Sequence[float]) -> str:
    """The mean, and from two seeds on its interval."""
    if len(differences) < 2:
        return f"{differences[0]:+.3f}"
    value, low, high = t_over_seeds(differences)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="settings of all recipes, KEY=VALUE")] = None,
    kinds: Annotated[str, typer.Option(help="comma-separated")] = ",".join(RECIPES),
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    browser: Annotated[bool, typer.Option("--browser", help="judge in headless Chromium, not in process")] = False,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="run nothing")] = False,
    out: Annotated[Path, typer.Option(help="the folder of the runs")] = Path("runs/generators"),
) -> None:
    """Run four kinds of generators on one task and print their table; example: python -m benchmarks.generators --kinds flow"""
    try:
        names = chosen(kinds, tuple(RECIPES), "--kinds")
        numbers = [int(seed) for seed in seeds.split(",")]
        if not tables_only:
            for seed in numbers:
                for kind in names:
                    run_recipe(recipe_of(kind, seed, out, browser, overrides or []))
        runs = {kind: {seed: figures(out / f"{kind}-{seed}") for seed in numbers} for kind in names}
        finished = {kind: {seed: run for seed, run in of.items() if run is not None} for kind, of in runs.items()}
        print("\n".join(table(finished)), flush=True)
    except RelgradError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
