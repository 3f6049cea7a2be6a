"""Regret of the search for workflows on noisy-solver problems: PUCT against AFlow's rule, at equal numbers of calls, over seeds.

    python benchmarks/workflow_search.py --seeds 5 --calls 50 200

Every search begins with one call, `generate()`, and proposes edits of the grammar by their own probabilities (a uniform prior over
kinds of edits). Regret is what the enumerated best workflow is worth, exactly, less what the recommended one is worth, exactly.
Seeds change problems, the solver's answers, and all draws; they are the same for both rules, so differences are paired by seed.

    puct         the recipe's: PUCT, new workflows executed 4 times, promising ones and the best again
    aflow-soft   AFlow's rule of selection, and all else as above
    aflow        AFlow's rule alone: every workflow executed 5 times, no more and no less, as its paper has it, and
                 the one with the highest mean recommended
"""

from __future__ import annotations

import argparse
import math
import tempfile

from relgrad.evaluation.statistics import Interval, t_over_seeds
from relgrad.runs.search import load_search, run_search

FIXED = ("search.trials.first=5", "search.trials.most=5", "search.trials.confirm=false", "search.trials.errors=0.001")
VARIANTS: dict[str, tuple[str, ...]] = {
    "puct": (),
    "aflow-soft": ("search.selection.rule=aflow",),
    "aflow": ("search.selection.rule=aflow", *FIXED),
}


def regret(variant: str, calls: int, seed: int) -> float:
    """Of one search, which begins anew."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"out={folder}", f"seed={seed}", f"search.budget.calls={calls}", "search.test_repeats=0"]
        result = run_search(load_search("workflows-quick", [*settings, *VARIANTS[variant]]))
    return math.nan if result["exact"] is None else float(result["exact"]["regret"])


def shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    arguments = argparse.ArgumentParser(description="Regret of PUCT and of AFlow's rule on noisy-solver problems.")
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--calls", type=int, nargs="+", default=[50, 200])
    chosen = arguments.parse_args()
    print("| Calls | Rule | Regret, 95 % interval over seeds | Less than AFlow alone by, paired |")
    print("|---|---|---|---|")
    for calls in chosen.calls:
        regrets = {name: [regret(name, calls, seed) for seed in range(chosen.seeds)] for name in VARIANTS}
        for name, values in regrets.items():
            differences = [theirs - own for theirs, own in zip(regrets["aflow"], values, strict=True)]
            beside = "" if name == "aflow" else shown(t_over_seeds(differences))
            print(f"| {calls} | {name} | {shown(t_over_seeds(values))} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
