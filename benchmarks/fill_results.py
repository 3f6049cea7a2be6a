"""The table of docs/results.md for fill-in: what training, the original's loss, and mere cooling do to the same start.

    for seed in 0 1 2; do relgrad run fill seed=$seed name=fill-$seed; done
    for seed in 0 1 2; do relgrad run fill-baseline seed=$seed name=fill-baseline-$seed policy.checkpoint=runs/fill-$seed/1-sft \\
        rewards.0.judges="[runs/fill-$seed/2-judge]" rewards.1.judges="[runs/fill-$seed/3-watcher]"; done
    python -m benchmarks.fill_results 0 1 2

Every policy answers the same held-out prompts, under both laws: temperature 1, and temperature 0.8 with top-p 0.95. "cooled" is the
start at the temperature at which its exact KL to itself at temperature 1 is that of the trained policy: what a gain in
reward must beat to be more than sharpening. Differences are to the start under the same law, paired by prompt, with
95 % intervals over prompts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt
from relgrad.evaluation.held_out import Evaluation, compare_rewards, evaluate
from relgrad.evaluation.statistics import Interval
from relgrad.laws.categorical import Truncation, log_probs
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.fill_in.policy import FillInPolicy, pad
from relgrad.runs.build import load_task
from relgrad.runs.use import open_source, rewards_of
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage

LAWS = {"T 1": {}, "T .8, top-p .95": {"temperature": 0.8, "top_p": 0.95}}
REWARDS = ("judge", "watcher", "accuracy")
PROMPTS, GENERATIONS = 256, 4
HEAD = "| seed | law | policy | judge | watching judge | true characters | KL, nats | masked CE |"


def policy_at(stage: Stage, folder: Path, start: FillInPolicy | None, **law: float) -> FillInPolicy:
    """The policy saved in `folder`, under another law, with `start` as its reference."""
    chosen = stage.policy.model_dump() | {"temperature": 1.0, "top_p": 1.0, "scoring": "law"} | law
    changed = stage.model_copy(update={"policy": type(stage.policy).model_validate(chosen)})
    policy = build_policy(changed, folder, reference=True)
    policy.weights.start.take((start or policy).parameters())
    return policy


@torch.no_grad()
def cooled_kl(start: FillInPolicy, prompts: list[Prompt], temperature: float) -> float:
    """Mean exact KL of the start at `temperature` to itself at 1, nats per masked position."""
    masked_GL, length_G = pad([start.encode(p) for p in prompts], start.vocabulary.pad_id)
    group_M, position_M = (masked_GL == start.vocabulary.mask_id).nonzero(as_tuple=True)
    logits_MV = start.filling.logits(masked_GL, length_G, group_M, position_M)
    return float(
        categorical_kl(log_probs(logits_MV, Truncation(temperature)), log_probs(logits_MV, Truncation())).mean()
    )


def temperature_of(start: FillInPolicy, prompts: list[Prompt], kl: float) -> float:
    """The temperature below 1 at which the start is `kl` away from itself, by bisection."""
    low, high = 0.02, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cooled_kl(start, prompts, middle) > kl else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def masked_ce(policy: FillInPolicy, prompts: list[Prompt]) -> float:
    """Cross-entropy of the truth at temperature 1, nats per masked position."""
    loss, count, _ = policy.supervised_loss([Example(p, "") for p in prompts], generator(0, "ce"))
    return float(loss) / count


def row(seed: int, law: str, name: str, found: Evaluation, base: Evaluation | None, ce: float) -> str:
    differences: dict[str, Interval] = compare_rewards(base, found) if base is not None else {}
    cells = []
    for reward in REWARDS:
        text = f"{found.rewards[reward]:.3f}"
        if reward in differences:
            value, low, high = differences[reward]
            text += f" ({value:+.3f} [{low:+.3f}, {high:+.3f}])"
        cells.append(text)
    of_one = [f"{found.kl:.3f}", f"{ce:.3f}"] if law == "T 1" else ["", ""]  # both are stated at temperature 1
    return f"| {seed} | {law} | {name} | {' | '.join([*cells, *of_one])} |"


def rows(seed: int, root: Path) -> list[str]:
    """All rows of one seed."""
    stage, trained = open_source(str(root / f"fill-{seed}"), [])
    _, begun = open_source(str(root / f"fill-{seed}" / "1-sft"), [])
    _, baseline = open_source(str(root / f"fill-baseline-{seed}"), [])
    rewards: Any = rewards_of(stage, trained)
    prompts = list(load_task(stage).test[:PROMPTS])
    lines = []
    plain = policy_at(stage, begun, None)
    for law, settings in LAWS.items():
        base = None
        for name, folder in (("start", begun), ("GRPO", trained), ("original loss", baseline)):
            policy = policy_at(stage, folder, plain, **settings)
            found = evaluate(policy, prompts, rewards, num_generations=GENERATIONS, seed=99, divergence=True)
            lines.append(row(seed, law, name, found, base, masked_ce(policy, prompts)))
            print(lines[-1], flush=True)
            base = base or found
            if name == "GRPO" and not settings:
                temperature = temperature_of(plain, prompts, found.kl)
                cool = policy_at(stage, begun, plain, temperature=temperature)
                cold = evaluate(cool, prompts, rewards, num_generations=GENERATIONS, seed=99)
                cold = type(cold)(**{**vars(cold), "kl": cooled_kl(plain, prompts, temperature)})
                lines.append(
                    row(seed, law, f"start cooled to T {temperature:.2f}", cold, base, masked_ce(cool, prompts))
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the table of the seeds given."""
    print(HEAD)
    print("|---|---|---|---|---|---|---|---|")
    for seed in map(int, sys.argv[1:]):
        rows(seed, Path("runs"))


if __name__ == "__main__":
    main()
