"""A run folder as training leaves it behind, written by hand for the report's tests. EVIL is in every kind of text."""

from __future__ import annotations

import math
import random
from pathlib import Path

import yaml

from relgrad.core.run_folder import RunDir, write_atomic, write_json

EVIL = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'>"
STEPS = 60


def grpo_metrics(steps):
    noise = random.Random(3)
    for step in range(1, steps + 1):
        done = step / steps
        exact, form = 0.25 + 0.5 * done + noise.gauss(0, 0.06), 0.6 + 0.35 * done + noise.gauss(0, 0.03)
        length = 70 + 30 * done + noise.gauss(0, 5)
        yield {
            "step": step,
            "time": 1_763_628_000 + 8 * step,
            "reward": exact + 0.2 * form,
            "reward_std": 0.4 - 0.1 * done,
            "rewards/exact/mean": exact,
            "rewards/exact/std": 0.4,
            "rewards/form/mean": form,
            "rewards/form/std": 0.2,
            "frac_reward_zero_std": 0.15 + 0.6 * done,
            "frac_groups_all_max": 0.05 + 0.6 * done,
            "frac_groups_all_min": 0.1,
            "kl": 0.08 * done**2 + abs(noise.gauss(0, 0.004)),
            "entropy": 1.3 - 0.7 * done + noise.gauss(0, 0.05),
            "clip_ratio/region_mean": 0.02,
            "clip_ratio/low_mean": 0.008,
            "clip_ratio/high_mean": 0.012,
            "importance_ratio/min": 0.8,
            "importance_ratio/max": 1.3,
            "completions/mean_length": length,
            "completions/min_length": length / 3,
            "completions/max_length": 2 * length,
            "completions/clipped_ratio": 0.04,
            "parity/max_abs": 10 ** noise.uniform(-6, -4),
            "parity/mean_abs": 1e-7,
            "rewards/unscored": float(step == 50),
            "update/relative_norm": 1e-4,
            "grad_norm": math.exp(noise.gauss(-1, 0.3)),
            "learning_rate": 1e-5 * (1 - done / 2),
            "loss": noise.gauss(0, 0.02),
            "num_tokens": 4096 * step,
            "tokens_per_second": 900 + noise.gauss(0, 40),
            "time/sample": 4.0,
            "time/reward": 0.2,
            "time/update": 3.5,
            "step_time": 7.7,
            "my/own_figure": noise.random(),
        }


def sft_metrics(steps):
    for step in range(1, steps + 1):
        yield {
            "step": step,
            "time": 1_763_627_000 + step,
            "loss": 3 * math.exp(-step / 20) + 0.4,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
            "tokens_per_second": 2100.0,
            "step_time": 0.8,
        }


ABOUT = {
    "trained_parameters": 1200,
    "policy": {"Parameters": "134,000", "Temperature": "0.8", "Steps": f"8 {EVIL}"},
    "task": {"Masks": "random"},
    "parts": {"exact/spelling": "share of the letters"},
}


def filled_in(right: bool) -> dict[str, object]:
    """A completion with two holes, the second of which is always wrong: a line break for a dot."""
    return {
        "completion": f"a {'cat' if right else 'cow'} sat\n",
        "truth": "a cat sat.",
        "holes": [[2, 5, "cat", right], [9, 10, ".", False]],
    }


def write_stage(folder: Path, kind: str, steps: int = STEPS) -> None:
    """A stage as a training run leaves it behind."""
    run = RunDir(folder)
    recipe = {
        "name": "sums",
        "stage": kind,
        "seed": 7,
        kind: {"steps": steps, "num_generations": 8},
        "rewards": [{"kind": "exact"}, {"kind": "number", "name": "second", "weight": 0.0}],
        "policy": {"kind": "autoregressive", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "float32"},
        "task": {"kind": "sums", "path": f"data/{EVIL}.jsonl"},
    }
    write_atomic(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False) + f"# {EVIL}\n")
    write_json(
        folder / "environment.json",
        {
            "packages": {"relgrad": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "python": "3.11.9",
            "hardware": {"cpu": "AMD EPYC 9554, 2 cores, 2 threads", "memory": "8.0 GiB", "gpus": []},
            "git": {"commit": "0123abc", "dirty": False},
            "command": ["relgrad", "run", "recipes/sums.yaml", EVIL],
        },
    )
    write_json(folder / "about.json", ABOUT | {"work": f"{steps} {kind} steps"})
    for record in (grpo_metrics if kind == "grpo" else sft_metrics)(steps):
        run.append("metrics.jsonl", record)
    for step, score in ((0, 0.31), (steps // 2, 0.52), (steps, 0.74)):
        samples = [
            {
                "prompt": f"What is {n} + {n + 4}?",
                "completion": f"step {step}: {2 * n + 4}" if n else EVIL,
                "score": score > 0.6,
            }
            for n in range(6)
        ]
        samples[3] |= filled_in(right=score > 0.6)
        record = {
            "step": step,
            "name": "exact",
            "score": score,
            "low": score - 0.06,
            "high": score + 0.05,
            "n": 200,
            "per_prompt": [0.0, 1.0],
            "rewards": {"exact": score - 0.1, "second": 0.5 - step / 1000},
            "kl": step / 500,
            "entropy": 1.5 - step / 100,
            "pass_at_k": {"1": score, "4": score + 0.1},
            "samples": samples,
        }
        if step:
            record |= {"difference": score - 0.31, "difference_low": score - 0.37, "difference_high": score - 0.25}
            record["reward_differences"] = {"exact": [score - 0.31, 0.2, 0.5], "second": [-0.06, -0.1, -0.02]}
        run.append("evaluations.jsonl", record)
    if kind == "sft":
        return
    for step in (40, 50):
        run.append("warnings.jsonl", {"step": step, "name": "no_spread", "evidence": "61 %", "advice": "Stop."})
    run.append(
        "warnings.jsonl", {"step": 12, "name": "entropy_collapse", "evidence": EVIL, "advice": "Look at the samples."}
    )
    for step in range(1, steps + 1, 3):
        run.write_samples(
            step,
            [
                {
                    "step": step,
                    "group": group,
                    "prompt": f"Prompt {group} of step {step}" + "\n" * 20 + "#",
                    "reward": reward,
                    "stop": "length" if k == 3 else "eos",
                    "completion": f"answer {k} " + (EVIL if k == 1 else "because " * 12),
                    "parts": {"exact": reward, "second": 0.5, "exact/spelling": 0.25, f"exact/{EVIL}": 0.5},
                    "advantage": reward - 0.5,
                    "why": "timeout" if k == 3 else "",
                    **(filled_in(right=k == 0) if group and not k else {}),
                }
                for group in range(2)
                for k, reward in enumerate([1.0, 0.0, 1.0, 0.25])
            ],
        )
