"""Regret of the search for workflows on noisy-solver problems, at equal numbers of calls, over seeds.

    python benchmarks/workflow_search.py --seeds 20 --calls 50 200 --rules puct aflow-soft puct-unshared aflow
    python benchmarks/workflow_search.py --seeds 20 --calls 50 --rules puct puct-prior --first-seed 5000

Every search begins with one call, `generate()`, and proposes edits of the grammar. Regret is what the enumerated best workflow is
worth, exactly, less what the recommended one is worth, exactly. Seeds change problems, the solver's answers, and all draws; they
are the same for all rules, so differences are paired by seed.

    puct            the recipe's: PUCT; replies are shared, new workflows executed twice, promising ones and the best again
    aflow-soft      AFlow's rule of selection, and all else as above
    puct-prior      as `puct`, edits drawn by a prior that was learnt from searches of other seeds (--prior-seeds): the same error
                    rates and prices, so that the best workflow is the same, and only the draws are others
    puct-unshared   as `puct`, but equal parts of workflows share no replies
    aflow           AFlow's rule alone: every workflow executed 5 times, no more and no less, as its paper has it, nothing
                    shared, and the one with the highest mean recommended

With --test: the workflow that `puct` finds, on problems that no search has seen, beside what one would do without a search.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from relgrad.evaluation.statistics import Interval, t_over_seeds
from relgrad.runs.search import load_search, run_search
from relgrad.search import prior

FIXED = (
    "search.trials.first=5", "search.trials.most=5", "search.trials.confirm=false", "search.trials.errors=0.001",
    "search.trials.share=false",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {
    "puct": (),
    "aflow-soft": ("search.selection.rule=aflow",),
    "puct-prior": ("search.edit_prior={prior}",),
    "puct-unshared": ("search.trials.share=false",),
    "aflow": ("search.selection.rule=aflow", *FIXED),
}
BESIDE = ("aflow", "puct")
FIRST_PRIOR_SEED = 100_000
"""Searches that the prior is learnt from have seeds from here on: other problems and other answers."""


def searched(folder: Path, name: str, calls: int, seed: int, *more: str) -> dict[str, Any]:
    """The result of one search, which begins anew."""
    settings = [f"out={folder}", f"name={name}", f"seed={seed}", f"search.budget.calls={calls}", *more]
    return run_search(load_search("workflows-quick", settings))


def regret(variant: str, calls: int, seed: int, prior_file: Path) -> float:
    """Of one search."""
    with tempfile.TemporaryDirectory() as folder:
        more = (text.format(prior=prior_file) for text in VARIANTS[variant])
        result = searched(Path(folder), "s", calls, seed, "search.test_repeats=0", *more)
    return math.nan if result["exact"] is None else float(result["exact"]["regret"])


def learn_prior(folder: Path, seeds: int) -> Path:
    """The file of a prior that is learnt from so many searches of 300 calls."""
    names = [f"prior-{number}" for number in range(seeds)]
    results = [
        searched(folder, name, 300, FIRST_PRIOR_SEED + number, "search.test_repeats=0")
        for number, name in enumerate(names)
    ]
    record = prior.learn([folder / name for name in names])
    prior.write(folder / "prior.json", record)
    calls = sum(result["spent"]["calls"] for result in results)
    print(
        f"the prior: {record['edits']} edits of {seeds} searches, which made {calls:,} calls",
        file=sys.stderr,
        flush=True,
    )
    return folder / "prior.json"


def tested(calls: int, seeds: range) -> None:
    """Print what the workflow that was found is worth on the test, less each of the others, paired by seed."""
    scores: dict[str, list[float]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows = searched(Path(folder), "s", calls, seed)["test"]
        for row in rows:
            name = "votes at equal cost" if row["name"].endswith("votes") else row["name"]
            scores.setdefault(name, []).append(rows[0]["score"] - row["score"] if row is not rows[0] else row["score"])
    print("\n| Test | Seeds | Score, or how much less than the best |\n|---|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {len(values)} | {shown(t_over_seeds(values))} |")


def shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Regret of searches on noisy-solver problems.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--first-seed", type=int, default=1000, help="defaults of the search were chosen on seeds below this"
    )
    parser.add_argument("--rules", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--calls", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--prior-seeds", type=int, default=40, help="searches that the prior is learnt from")
    parser.add_argument("--test", action="store_true", help="the found workflow on the test, instead of regret")
    chosen = parser.parse_args()
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    if chosen.test:
        tested(max(chosen.calls), seeds)
        return
    print(
        "| Calls | Rule | Regret, 95 % interval over seeds | Less than AFlow alone by, paired | Less than PUCT by, paired |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = learn_prior(Path(folder), chosen.prior_seeds) if "puct-prior" in chosen.rules else Path()
        for calls in chosen.calls:
            regrets = {name: [regret(name, calls, seed, file) for seed in seeds] for name in chosen.rules}
            for name, values in regrets.items():
                beside = (
                    less(regrets[other], values) if name != other and other in regrets else "" for other in BESIDE
                )
                print(f"| {calls} | `{name}` | {shown(t_over_seeds(values))} | {' | '.join(beside)} |", flush=True)


def less(others: list[float], own: list[float]) -> str:
    return shown(t_over_seeds([other - mine for other, mine in zip(others, own, strict=True)]))


if __name__ == "__main__":
    main()
