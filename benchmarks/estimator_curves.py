"""Learning curves of the estimators of masked diffusion at equal forward passes, on three puzzles whose answers are verified.

    python -m benchmarks.estimator_curves --seeds 0,1,2,3,4                   all puzzles and estimators; about 2 hours on 2 cores
    python -m benchmarks.estimator_curves --puzzles sudoku --estimators trajectory,mean_field
    python -m benchmarks.estimator_curves --tables-only                       of what is there

    permutation  write six digits in any order, a position a step; the teacher is right in a fifth of its texts
    sudoku       complete a 4 x 4 grid with 7 to 9 blanks, two cells a step, in eight steps
    countdown    reach a number with three numbers, a position a step; the teacher writes well-formed expressions at random

A network of about 100,000 parameters is trained on the teacher's texts, once, and from there by GRPO with every estimator and
seed: 16 puzzles x 8 answers, reward 1 for a solution, advantage = reward - mean of the group, one update of AdamW(.9, .99) a
batch, no clip, no divergence term. Answers are written by the most confident first, at temperature 1. A text costs T passes to
write and 3 for each pass that is differentiated; every estimator may spend the same number, and is judged at each quarter of it
on puzzles that no training part has. Its learning rate is the one of the puzzle's rates with the largest mean of its curve on a
seed that the table does not have.

Every run leaves a file and is not repeated where it has one; several of these commands may work on one folder, on different seeds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from safetensors.torch import load_file, save_file

from benchmarks.harness import RESULTS
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Loss
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt
from relgrad.environments.puzzles import PUZZLES, Name
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.evaluation.statistics import Interval, t_over_seeds
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.objectives.bgpo import BgpoLoss
from relgrad.objectives.losses import PolicyLoss
from relgrad.objectives.spg import SpgLoss
from relgrad.objectives.wd1 import Wd1Loss
from relgrad.policies.unmasking.open import diffusion_gpt
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.settings import Law, Network, Settings
from relgrad.policies.unmasking.symbols import VocabularySymbols
from relgrad.rewards import puzzles as reward
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import Task
from relgrad.tasks import puzzles as task
from relgrad.text.vocabulary import Vocabulary
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings

PROMPTS, ANSWERS = 16, 8
TUNING_SEED = 100
QUARTERS = 4


@dataclass(frozen=True)
class Bench:
    """A puzzle's sizes.

    row       characters of question and answer together
    steps     steps in which an answer is written
    right     share of the teacher's texts that are right
    teaching  steps of supervised training
    passes    forward passes of a text that an estimator may spend
    rates     learning rates that are tried
    """

    puzzle: Name
    row: int
    steps: int
    right: float
    teaching: int
    passes: int
    rates: tuple[float, ...]
    train_size: int = 20_000
    held_out: int = 512


BENCHES = {
    "permutation": Bench("permutation", 13, 6, 0.2, 2000, 200_000, (2.5e-4, 5e-4)),
    "sudoku": Bench("sudoku", 33, 8, 1.0, 2500, 200_000, (1e-4, 5e-4)),
    "countdown": Bench("countdown", 14, 5, 0.0, 1500, 200_000, (2.5e-4, 5e-4), train_size=800, held_out=250),
}


REINFORCE = PolicyLoss("reinforce")


@dataclass(frozen=True)
class Arm:
    """An estimator: what it changes in the policy's settings, and the loss that goes with it."""

    policy: dict[str, Any] = field(default_factory=dict)
    loss: Loss = REINFORCE


ESTIMATORS = {
    "trajectory": Arm(),
    "trajectory_2_steps": Arm({"train_steps": 2}),
    "mean_field": Arm({"estimator": MeanField(prompt_masking=0.0)}),
    "coupled": Arm({"estimator": Coupled()}),
    "elbo": Arm({"estimator": Elbo(samples=1)}),
    "espo": Arm({"estimator": Elbo(samples=1, antithetic=True)}),
    "wd1": Arm({"estimator": MeanField(prompt_masking=0.0)}, Wd1Loss()),
    "bgpo": Arm({"estimator": Bgpo(samples=2)}, BgpoLoss()),
    "spg": Arm({"estimator": Spg(samples=2)}, SpgLoss()),
    "merged_steps": Arm({"estimator": MergedSteps(segments=2)}),
}
MAIN = ("trajectory", "mean_field", "coupled", "elbo")


# ---------------------------------------------------------------- one run


def policy_of(bench: Bench, **more: Any) -> UnmaskingPolicy:
    """A new network that writes the puzzle's answers, the most confident position first."""
    puzzle = PUZZLES[bench.puzzle]
    vocabulary = Vocabulary.of_text(puzzle.characters + ":")
    network = Network(block_size=bench.row, n_layer=2, n_head=4, n_embd=64)
    values = {"steps": bench.steps, "law": Law(order="low_confidence"), "device": "cpu", "network": network} | more
    settings = Settings(max_completion_length=puzzle.length, **values)
    model = GPT(GPTConfig(vocab_size=vocabulary.size, **network.model_dump()))
    return UnmaskingPolicy(diffusion_gpt(model, VocabularySymbols(vocabulary)), settings)


@cache
def puzzles_of(bench: Bench) -> Task:
    """The same ones for every seed."""
    sizes = {"train_size": bench.train_size, "held_out_size": bench.held_out, "test_size": 0}
    return task.load(task.Settings(puzzle=bench.puzzle, right=bench.right, **sizes), 0)


def solved(policy: UnmaskingPolicy, prompts: Sequence[Prompt], number: int) -> float:
    """The share of the prompts whose one answer solves them."""
    with policy.evaluation():
        outputs = policy.sample(prompts, 1, generator(0, "judged", number)).outputs
    judge = PUZZLES[prompts[0].columns["puzzle"]].judge
    return statistics.fmean(
        judge(p.columns["question"], output.text).solved for p, output in zip(prompts, outputs, strict=True)
    )


def start(bench: Bench, out: Path) -> dict[str, torch.Tensor]:
    """The weights that every run begins from, taught once and kept in the folder."""
    file = out / f"{bench.puzzle}-start.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        policy, puzzles = policy_of(bench), puzzles_of(bench)
        examples = [Example(p, p.columns["completion"]) for p in puzzles.train]
        settings = SftSettings(
            steps=bench.teaching, batch_size=64, learning_rate=2e-3, warmup_steps=50, lr_scheduler_type="cosine"
        )
        loop, begun = Sft(policy, examples, settings, seed=0), time.process_time()
        for _ in track(range(bench.teaching), f"{bench.puzzle}: teaching"):
            loop.update()
        share, seconds = solved(policy, puzzles.validation, 0), time.process_time() - begun
        print(f"{bench.puzzle}: the start solves {share:.3f} ({seconds:.0f} CPU s)", flush=True)
        partial = file.with_suffix(".partial")
        save_file(policy.network.module.state_dict(), partial)
        partial.rename(file)
    return load_file(file)


def learn(bench: Bench, name: str, seed: int, rate: float, out: Path) -> dict[str, Any]:
    """One estimator's curve: [passes, updates, solved] at the start and at every quarter of what it may spend."""
    weights = start(bench, out)
    arm, cpu = ESTIMATORS[name], time.process_time()
    policy = policy_of(bench, **arm.policy)
    policy.network.module.load_state_dict(weights)
    puzzles = puzzles_of(bench)
    settings = GrpoSettings(
        steps=10**9, num_prompts=PROMPTS, num_generations=ANSWERS, learning_rate=rate, adam_beta2=0.99, scale_rewards="none"
    )  # fmt: skip
    rewards = RewardSet([NamedReward("solved", reward.build(reward.Settings(well_formed=0.0)))], 60.0)
    loop = Grpo(policy, puzzles.train, rewards, arm.loss, settings, seed=seed)
    per_update = PROMPTS * ANSWERS * passes_of_a_text(bench, policy)
    curve = [[0, 0, solved(policy, puzzles.validation, 0)]]
    for quarter in range(1, QUARTERS + 1):
        while loop.step * per_update < quarter * bench.passes / QUARTERS:
            loop.update()
        curve.append([loop.step * per_update, loop.step, solved(policy, puzzles.validation, quarter)])
    return {
        "puzzle": bench.puzzle,
        "estimator": name,
        "seed": seed,
        "rate": rate,
        "curve": curve,
        "other_samplers": otherwise(bench, policy, puzzles.validation),
        "parameters": sum(p.numel() for _, p in policy.parameters()),
        "cpu_s": time.process_time() - cpu,
        "torch": torch.__version__,
    }


def otherwise(bench: Bench, trained: UnmaskingPolicy, prompts: Sequence[Prompt]) -> dict[str, float]:
    """What the trained network solves all but greedily, and in random order."""
    values = {}
    for name, change in {"greedy": {"temperature": 0.01}, "random order": {"law": Law(order="random")}}.items():
        policy = policy_of(bench, **change)
        policy.network.module.load_state_dict(trained.network.module.state_dict())
        values[name] = solved(policy, prompts, QUARTERS)
    return values


def passes_of_a_text(bench: Bench, policy: UnmaskingPolicy) -> int:
    """Its writing, 3 for every pass that is differentiated, and a surrogate's scoring of what was just written."""
    scored = 0 if policy.surrogate is None else policy.surrogate.plan.count
    return bench.steps + scored + 3 * differentiated(policy)


def differentiated(policy: UnmaskingPolicy) -> int:
    """Passes of a text that are differentiated."""
    if policy.surrogate is not None:
        return policy.surrogate.plan.count
    return policy.settings.train_steps or policy.settings.sampling_steps


# ---------------------------------------------------------------- all runs, and what they come to


def run_once(bench: Bench, name: str, seed: int, rate: float, out: Path) -> dict[str, Any]:
    """The run's record, read where it has been made before."""
    file = out / f"{bench.puzzle}-{name}-{seed}-{rate:g}.json"
    if not file.is_file():
        record = learn(bench, name, seed, rate, out)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(record) + "\n")
        partial.rename(file)
        points = " ".join(f"{value:.3f}" for _, _, value in record["curve"])
        print(f"{bench.puzzle} {name} seed {seed} rate {rate:g}: {points} ({record['cpu_s']:.0f} CPU s)", flush=True)
    record = json.loads(file.read_text())
    if record["curve"][-1][0] < bench.passes:
        raise RelgradError(f"{file}: made with fewer passes than {bench.passes:,}; delete it, or choose another --out")
    return dict(record)


def tuned(bench: Bench, name: str, out: Path) -> float:
    """The rate with the largest mean of its curve on the tuning seed. Raises RelgradError where not all were measured."""
    means = {}
    for rate in bench.rates:
        file = out / f"{bench.puzzle}-{name}-{TUNING_SEED}-{rate:g}.json"
        if file.is_file():
            curve = json.loads(file.read_text())["curve"]
            means[rate] = statistics.fmean(value for _, _, value in curve[1:])
    if len(means) < len(bench.rates):
        raise RelgradError(
            f"{bench.puzzle}, {name}: its learning rate is not chosen yet; run without --rate first, or give --rate"
        )
    return max(means, key=lambda rate: means[rate])


def records_of(out: Path, rate: float | None) -> list[dict[str, Any]]:
    """All runs of the folder at the chosen rates, or at this one; those of the tuning seed apart."""
    records = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    return [
        record
        for record in records
        if record["seed"] != TUNING_SEED
        and record["rate"] == (rate or tuned(BENCHES[record["puzzle"]], record["estimator"], out))
    ]


def table(records: Sequence[dict[str, Any]], puzzle: str) -> list[str]:
    """Markdown lines: every estimator's curve as means over seeds, its end with an interval, its distance to the mean field."""
    rows = [
        "| | rate | seeds | updates | ¼ | ½ | ¾ | 1 | above mean field | greedy | random order |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    by_name = {name: _by_seed(records, puzzle, name) for name in ESTIMATORS}
    base = by_name["mean_field"]
    for name, runs in by_name.items():
        if not runs:
            continue
        points = [statistics.fmean(r["curve"][q][2] for r in runs.values()) for q in range(1, QUARTERS)]
        end = t_over_seeds([r["curve"][-1][2] for r in runs.values()])
        both = sorted(runs.keys() & base.keys())
        gain = "" if name == "mean_field" else _shown(
            t_over_seeds([runs[s]["curve"][-1][2] - base[s]["curve"][-1][2] for s in both]), "+.3f"
        )  # fmt: skip
        others = [statistics.fmean(r["other_samplers"][k] for r in runs.values()) for k in ("greedy", "random order")]
        one = next(iter(runs.values()))
        cells = [
            name.replace("_", " "),
            f"{one['rate']:g}",
            str(len(runs)),
            str(one["curve"][-1][1]),
            *(f"{p:.3f}" for p in points),
        ]
        rows.append("| " + " | ".join([*cells, _shown(end, ".3f"), gain, *(f"{o:.3f}" for o in others)]) + " |")
    return rows


def _by_seed(records: Sequence[dict[str, Any]], puzzle: str, name: str) -> dict[int, dict[str, Any]]:
    return {r["seed"]: r for r in records if r["puzzle"] == puzzle and r["estimator"] == name}


def _shown(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Curves of all puzzles side by side, as an SVG: the mean over seeds and its 95 % interval (Student's)."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [name for name in BENCHES if any(r["puzzle"] == name for r in records)]
    with matplotlib.rc_context({"svg.hashsalt": "relgrad", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
        for number, puzzle in enumerate(names):
            axes = figure.add_subplot(1, len(names), number + 1)
            for color, name in enumerate(ESTIMATORS):
                runs = list(_by_seed(records, puzzle, name).values())
                if not runs:
                    continue
                passes = [point[0] / 1000 for point in runs[0]["curve"]]
                bands = [t_over_seeds([r["curve"][q][2] for r in runs]) for q in range(QUARTERS + 1)]
                line = axes.plot(passes, [b.value for b in bands], color=f"C{color}", label=name.replace("_", " "))
                axes.fill_between(
                    passes, [b.low for b in bands], [b.high for b in bands], color=line[0].get_color(), alpha=0.15, lw=0
                )
            axes.set(title=puzzle, xlabel="thousands of passes", ylim=(0, 1))
            if number == 0:
                axes.set_ylabel("held-out puzzles solved")
        figure.axes[-1].legend(fontsize=7)
        figure.savefig(file, format="svg", metadata={"Date": None})


def chosen(given: str, allowed: Sequence[str], option: str) -> list[str]:
    """The names in a comma-separated list. Raises RelgradError for one that is not there."""
    names = given.split(",")
    for name in names:
        if name not in allowed:
            raise RelgradError(f"{option}: no {name!r}; there are {', '.join(allowed)}")
    return names


def main(
    puzzles: Annotated[str, typer.Option(help="comma-separated")] = ",".join(BENCHES),
    estimators: Annotated[str, typer.Option(help="comma-separated")] = ",".join(ESTIMATORS),
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2,3,4",
    passes: Annotated[
        int | None, typer.Option(help="what an estimator may spend; by default what the puzzle says")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="one learning rate for all, in place of choosing")] = None,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="run nothing")] = False,
    out: Annotated[Path, typer.Option(help="where every run leaves its file")] = RESULTS / "estimator-curves",
) -> None:
    """Learning curves at equal forward passes; example: python -m benchmarks.estimator_curves --puzzles sudoku"""
    try:
        out.mkdir(parents=True, exist_ok=True)
        benches = [BENCHES[name] for name in chosen(puzzles, tuple(BENCHES), "--puzzles")]
        benches = benches if passes is None else [replace(bench, passes=passes) for bench in benches]
        names = chosen(estimators, tuple(ESTIMATORS), "--estimators")
        for bench in [] if tables_only else benches:
            for name in names if rate is None else ():
                for tried in bench.rates:
                    run_once(bench, name, TUNING_SEED, tried, out)
            for seed in map(int, seeds.split(",")):
                for name in names:
                    run_once(bench, name, seed, rate or tuned(bench, name, out), out)
        records = records_of(out, rate)
        for bench in benches:
            print(f"\n{bench.puzzle}\n\n" + "\n".join(table(records, bench.puzzle)), flush=True)
        plot(records, out / "curves.svg")
    except RelgradError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
