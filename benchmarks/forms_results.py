"""The table of docs/results.md for forms: what Flow-GRPO, the old objective, and mere cooling do to the same supervised policy.

    for seed in 0 1 2; do relgrad run forms-flow seed=$seed name=forms-flow-$seed; done
    for seed in 0 1 2; do relgrad run forms-flow-baseline seed=$seed name=forms-flow-baseline-$seed \\
        policy.model=runs/forms-flow-$seed/1-sft; done
    python -m benchmarks.forms_results 0 1 2

Every policy fills in the same 200 forms of the test families, four times each, in headless Chromium; no stage has seen these
families. "cooled" is the supervised policy at temperature 0.4. Differences are to the supervised policy, paired by form, with 95 %
intervals: in the rows of a seed over the 6 families (forms of a family are alike), in the last rows over the seeds (Student's). The
sentences below the table say what follows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from relgrad.evaluation.comparison import Contender, Estimate, Training, difference, per_prompt
from relgrad.evaluation.held_out import Evaluation, evaluate, mean
from relgrad.monitor.intervals import counted
from relgrad.runs.build import load_task
from relgrad.runs.use import open_source, rewards_of
from relgrad.stages.kind import build_policy

FIGURES = ("reward", "success", "perfect", "nonzero")
GENERATIONS, SEED, COOL = 4, 99, 0.4
START = "SFT"
HEAD = f"| seed | policy | {' | '.join(FIGURES)} |\n|---|---|{'---|' * len(FIGURES)}"


def row(seeds: str, start: Contender, policy: Contender) -> str:
    """One line of the table: every figure, with its difference to the start."""
    cells = [cell(start, policy, figure) for figure in FIGURES]
    return f"| {seeds} | {policy.label} | {' | '.join(cells)} |"


def cell(start: Contender, policy: Contender, figure: str) -> str:
    """The mean over the seeds; behind it the difference to the start and its interval, unless it is the start's own."""
    value = mean([mean(per_prompt(training.evaluation, figure)) for training in policy.trainings])
    if policy.label == START:
        return f"{value:.3f}"
    gain, low, high = difference(start, policy, figure).interval
    return f"{value:.3f} ({gain:+.3f} [{low:+.3f}, {high:+.3f}])"


def sentence(name: str, figure: str, gain: Estimate) -> str:
    """What one pooled difference allows to say."""
    value, low, high = gain.interval
    change = (
        f"{name} changes {figure} by {value:+.3f}, 95 % over {counted(gain.units, gain.over)} [{low:+.3f}, {high:+.3f}]"
    )
    if gain.over == "seeds" and gain.interval.excludes(0):
        return f"{change}: over seeds the mean {'rises' if value > 0 else 'falls'}."
    return f"{change}: what another seed would do is not known from this."


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
    evaluations: dict[str, Evaluation] = {}
    for name, folder, law in (
        (START, begun, {}),
        ("Flow-GRPO", trained, {}),
        ("Advantage x denoising loss", baseline, {}),
        ("SFT cooled", begun, {"temperature": COOL}),
    ):
        evaluations[name] = judged(seed, folder, root, **law)
        start, policy = (contender(one, {seed: evaluations}) for one in (START, name))
        print(row(str(seed), start, policy), flush=True)
    return evaluations


def contender(name: str, by_seed: dict[int, dict[str, Evaluation]]) -> Contender:
    """A policy with its evaluations of all seeds."""
    return Contender(name, tuple(Training(name, seed, evaluations[name]) for seed, evaluations in by_seed.items()))


def tell(done: int, total: int) -> None:
    """How far the evaluation is, on one line of the terminal."""
    print(f"evaluating: {done} of {total}", end="\r", file=sys.stderr, flush=True)


def pooled(by_seed: dict[int, dict[str, Evaluation]]) -> list[str]:
    """The rows over all seeds, and what they allow to say."""
    names = next(iter(by_seed.values()))
    policies = [contender(name, by_seed) for name in names]
    start, *others = policies
    table = [row("all", start, policy) for policy in policies]
    said = [sentence(one.label, "reward", difference(start, one, "reward")) for one in others]
    return [*table, "", *said]


def main() -> None:
    """Print the table of the seeds given."""
    print(HEAD, flush=True)
    by_seed = {seed: rows(seed, Path("runs")) for seed in map(int, sys.argv[1:])}
    print("\n".join(pooled(by_seed)))


if __name__ == "__main__":
    main()
