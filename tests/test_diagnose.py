"""Named warnings: each rule fires on a history made to show it, and stays silent on a healthy one."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from relgrad.monitor.diagnose import RULES, diagnose
from relgrad.monitor.diagnose.history import monitors, parity_tolerance

RECIPE = {
    "stage": "grpo",
    "rewards": [{"kind": "judge", "weight": 1.0, "name": None}, {"kind": "judge", "weight": 0.0, "name": "watcher"}],
    "policy": {"kind": "autoregressive", "dtype": "float32"},
    "grpo": {"num_generations": 8, "num_iterations": 2, "beta": 0.01, "scale_rewards": "group", "warmup_steps": 5},
}


def healthy(steps=80, **changed):
    """A run that learns; `changed` maps a metric to a function of the step that replaces it (None removes it)."""
    noise = random.Random(0)
    records = []
    for step in range(1, steps + 1):
        done = step / steps
        record = {
            "step": step,
            "reward": 0.3 + 0.4 * done + noise.gauss(0, 0.05),
            "reward_std": 0.3,
            "frac_reward_zero_std": 0.2,
            "frac_groups_all_max": 0.15,
            "frac_groups_all_min": 0.05,
            "kl": 0.05 * done,
            "entropy": 1.2 - 0.6 * done,
            "clip_ratio/region_mean": 0.02,
            "importance_ratio/min": 0.7,
            "importance_ratio/max": 1.4,
            "completions/mean_length": 60 + noise.gauss(0, 3),
            "completions/clipped_ratio": 0.05,
            "parity/max_abs": 2e-6,
            "rewards/unscored": 0.0,
            "update/relative_norm": 1e-4,
            "grad_norm": 0.4,
            "learning_rate": 1e-5,
            "loss": 0.01,
        }
        for key, value in changed.items():
            record[key.replace("__", "/")] = value(step)
        records.append(record)
    return records


def names(records, recipe=RECIPE):
    return [warning.name for warning in diagnose(records, recipe)]


def with_grpo(**changed):
    return RECIPE | {"grpo": RECIPE["grpo"] | changed}


@pytest.mark.parametrize("steps", [0, 1, 4, 39, 40, 80, 400])
def test_a_healthy_run_has_no_warnings(steps):
    assert names(healthy(steps)) == []


FIRING = {
    "kl_exploding": {"kl": lambda t: 2.0},
    "no_spread": {"frac_reward_zero_std": lambda t: 0.8},
    "reward_flat": {"reward": lambda t: 0.3 + 0.05 * (-1) ** t},
    "length_hacking": {"completions/mean_length": lambda t: 40 + 2 * t},
    "reward_hacking": {"rewards/watcher/mean": lambda t: 0.6 - 0.003 * t + 0.01 * (-1) ** t},
    "parity_broken": {"parity/max_abs": lambda t: 0.01},
    "all_truncated": {"completions/clipped_ratio": lambda t: 0.97},
    "entropy_collapse": {"entropy": lambda t: 2.0 * 0.9**t},
    "clip_saturated": {"clip_ratio/region_mean": lambda t: 0.5},
    "unscored": {"rewards/unscored": lambda t: 0.1},
    "nonfinite_gradient": {"grad_norm": lambda t: float("nan") if t == 80 else 0.4},
    "learning_rate_without_effect": {
        "kl": lambda t: 1e-9,
        "update/relative_norm": lambda t: 1e-9,
        "importance_ratio/min": lambda t: 1 - 1e-6,
        "importance_ratio/max": lambda t: 1 + 1e-6,
    },
}


@pytest.mark.parametrize("name", FIRING)
def test_each_rule_fires_alone(name):
    records = healthy(**FIRING[name])
    found = diagnose(records, RECIPE)
    assert [warning.name for warning in found] == [name]
    assert found[0].step == 80
    assert any(character.isdigit() for character in found[0].evidence), "evidence without a figure"
    assert len(found[0].advice) > 40


def test_every_rule_is_covered_here():
    elsewhere = {"two_generations", "sft_loss_flat"}
    assert {rule.__name__ for rule in RULES} == set(FIRING) | elsewhere


def test_kl_growing_tenfold_fires_before_it_is_large():
    assert names(healthy(kl=lambda t: 0.01 if t < 70 else 0.3)) == ["kl_exploding"]
    assert names(healthy(kl=lambda t: 0.001 if t < 70 else 0.03)) == [], "a small KL may grow"


@pytest.mark.parametrize(
    ("best", "worst", "advice"), [(0.7, 0.05, "too easy"), (0.05, 0.7, "too hard"), (0.0, 0.0, "temperature")]
)
def test_no_spread_tells_solved_from_hopeless(best, worst, advice):
    records = healthy(
        frac_reward_zero_std=lambda t: 0.8, frac_groups_all_max=lambda t: best, frac_groups_all_min=lambda t: worst
    )
    warning = next(w for w in diagnose(records, RECIPE) if w.name == "no_spread")
    assert advice in warning.advice
    assert f"{best:.0%} all at the best reward, {worst:.0%} all at the worst" in warning.evidence


def test_a_reward_that_stays_at_its_maximum_is_not_called_flat():
    records = healthy(
        reward=lambda t: 1.0,
        frac_groups_all_max=lambda t: 0.9,
        frac_reward_zero_std=lambda t: 0.9,
        entropy=lambda t: 0.9**t,
    )
    assert names(records) == ["no_spread"]


def test_length_hacking_by_correlation_needs_less_growth():
    noise = random.Random(1)
    wave = [noise.gauss(0, 0.05) for _ in range(81)]
    changed = {
        "reward": lambda t: 0.3 + 0.002 * t + wave[t],
        "completions/mean_length": lambda t: 60 + 0.35 * t + 100 * wave[t],
    }
    assert names(healthy(**changed)) == ["length_hacking"]


@pytest.mark.parametrize(("dtype", "value", "fires"), [
    ("float32", 9e-4, False), ("float32", 2e-3, True), ("bfloat16", 0.05, False), ("torch.bfloat16", 0.2, True),
    ("float16", 0.05, False),
])  # fmt: skip
def test_parity_tolerance_follows_the_dtype(dtype, value, fires):
    recipe = RECIPE | {"policy": {"kind": "autoregressive", "dtype": dtype}}
    assert ("parity_broken" in names(healthy(**{"parity/max_abs": lambda t: value}), recipe)) is fires


def test_parity_without_a_named_dtype_is_held_to_float32():
    assert parity_tolerance({}) == 1e-3


def test_ratios_of_exactly_one_say_nothing_with_one_update_per_batch():
    still = {f"importance_ratio/{side}": lambda t: 1.0 for side in ("min", "max")}
    records = healthy(**still, kl=lambda t: None, **{"update/relative_norm": lambda t: None})
    assert names(records, with_grpo(num_iterations=1)) == []
    assert names(records, with_grpo(num_iterations=2)) == ["learning_rate_without_effect"]


def test_no_effect_is_not_reported_in_the_warm_up():
    records = healthy(**FIRING["learning_rate_without_effect"])
    assert names(records, with_grpo(warmup_steps=100)) == []


def test_low_entropy_of_a_solved_task_is_not_a_collapse():
    records = healthy(
        entropy=lambda t: 2.0 * 0.9**t, frac_groups_all_max=lambda t: 0.7, frac_reward_zero_std=lambda t: 0.7
    )
    assert names(records) == ["no_spread"]


@pytest.mark.parametrize(
    ("watched", "fires"),
    [(lambda t: 0.5 + 0.002 * t, False), (lambda t: 0.5 + 0.05 * (-1) ** t, False), (lambda t: 0.6 - 0.002 * t, True)],
    ids=["rises too", "stays", "falls"],
)
def test_reward_hacking_is_a_monitor_that_falls_while_the_reward_rises(watched, fires):
    assert ("reward_hacking" in names(healthy(rewards__watcher__mean=watched))) is fires
    flat = healthy(rewards__watcher__mean=watched, reward=lambda t: 0.3 + 0.01 * (-1) ** t)
    assert "reward_hacking" not in names(flat), "nobody gains where the reward does not rise"
    paid = {**RECIPE, "rewards": [{"kind": "judge", "name": "watcher", "weight": 0.1}]}
    assert "reward_hacking" not in names(healthy(rewards__watcher__mean=watched), paid), "not a monitor"
    fallen = diagnose(healthy(rewards__watcher__mean=watched), RECIPE) if fires else ()
    assert all("watcher fell from 0.579 to 0.459" in w.evidence for w in fallen)


def test_monitors_are_found_by_the_names_they_are_logged_under():
    rewards = [
        {"kind": "exact"},
        {"kind": "a/mine.py", "weight": 0},
        {"kind": "p.judge", "weight": 0.0},
        RECIPE["rewards"][1],
    ]
    assert monitors({"rewards": rewards}) == ["mine", "judge", "watcher"]
    assert monitors({}) == monitors({"rewards": None}) == []


def test_two_generations_with_credit_per_decision_have_no_fixed_size():
    assert names([], with_grpo(num_generations=2, credit="decision")) == []


def test_two_generations_with_std_scaling():
    assert names(healthy(), with_grpo(num_generations=2)) == ["two_generations"]
    assert names([], with_grpo(num_generations=2)) == ["two_generations"]
    assert names(healthy(), with_grpo(num_generations=2, scale_rewards="none")) == []


def test_unscored_is_a_note_when_rare():
    severity = {w.name: w.severity for w in diagnose(healthy(**{"rewards/unscored": lambda t: float(t == 75)}), RECIPE)}
    assert severity == {"unscored": "note"}


@pytest.mark.parametrize(("slope", "fires"), [(-0.02, False), (0.0, True), (0.02, True)])
def test_supervised_loss_must_fall(slope, fires):
    noise = random.Random(0)
    records = [{"step": t, "loss": 3 + slope * t + noise.gauss(0, 0.1)} for t in range(1, 81)]
    assert ("sft_loss_flat" in names(records, {"stage": "sft"})) is fires


def test_nulls_from_a_file_read_like_absent_values_and_null_gradients_fire():
    records = healthy(kl=lambda t: None, entropy=lambda t: None)
    assert names(records) == []
    records[-1]["grad_norm"] = None
    assert names(records) == ["nonfinite_gradient"]


def test_the_most_severe_comes_first():
    records = healthy(**FIRING["no_spread"], **FIRING["parity_broken"], **FIRING["kl_exploding"])
    assert names(records) == ["parity_broken", "kl_exploding", "no_spread"]


def test_cost_does_not_grow_with_the_run():
    records = healthy(20_000)
    start = time.perf_counter()
    for _ in range(20):
        diagnose(records, RECIPE)
    assert (time.perf_counter() - start) / 20 < 0.02


def test_imports_no_torch():
    code = "import sys, relgrad.monitor.diagnose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
