"""Named warnings: each rule fires on a history made to show it, and stays silent on a healthy one."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

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


RECORDED = json.loads((Path(__file__).parent / "recorded_runs.json").read_text(encoding="utf-8"))
"""What the rules read of stages of real runs: `fill-quick` and `forms-flow-quick` with the seeds 0 to 4, `quick`, and `quick` with
learning rates that teach nothing (`still`, `flatsft`) or far too much (`explode`); three digits, constants once."""
MUST = {
    "still/2-grpo": {"reward_flat", "learning_rate_without_effect"},
    "flatsft/1-sft": {"sft_loss_flat"},
    "explode/2-grpo": {"kl_exploding", "entropy_collapse", "no_spread", "all_truncated", "reward_flat"},
    # their supervised stages ended before plans came right: every reward is 0, or the same partial credit
    "flow-1/2-grpo": {"no_spread", "reward_flat"},
    "flow-3/2-grpo": {"no_spread"},
    "flow-4/2-grpo": {"no_spread", "reward_flat"},
}
SOLVED = {"flow-2/2-grpo"}
"""Runs that end with most groups at the best reward, which is noted."""


def recorded(run):
    """The records of a recorded stage."""
    steps = range(run["steps"])
    columns = {
        key: value if isinstance(value, list) else [value for _ in steps] for key, value in run["metrics"].items()
    }
    return [{"step": t + 1, **{k: column[t] for k, column in columns.items() if column[t] is not None}} for t in steps]


@pytest.mark.parametrize("name", RECORDED)
def test_real_runs_warn_of_what_is_so_and_of_nothing_else(name):
    """As a run asks: after every step, with the evaluations up to it."""
    run, seen = RECORDED[name], set()
    records = recorded(run)
    for step in range(1, run["steps"] + 1):
        evaluations = [e for e in run["evaluations"] if e["step"] <= step]
        seen |= {(warning.name, warning.severity) for warning in diagnose(records[:step], run["recipe"], evaluations)}
    assert {name for name, severity in seen if severity != "note"} == MUST.get(name, set())
    assert {name for name, severity in seen if severity == "note"} == ({"no_spread"} if name in SOLVED else set())


def names(records, recipe=RECIPE, evaluations=()):
    return [warning.name for warning in diagnose(records, recipe, evaluations)]


def with_grpo(**changed):
    return RECIPE | {"grpo": RECIPE["grpo"] | changed}


@pytest.mark.parametrize("steps", [0, 1, 4, 39, 40, 80, 400])
def test_a_healthy_run_has_no_warnings(steps):
    assert names(healthy(steps)) == []


FIRING = {
    "kl_exploding": {"kl": lambda t: 2.0},
    "no_spread": {"frac_reward_zero_std": lambda t: 0.8},
    "reward_flat": {"reward": lambda t: 0.3 + 0.03 * (-1) ** t},
    "length_hacking": {"completions/mean_length": lambda t: 40 + 2 * t},
    "reward_hacking": {"rewards/watcher/mean": lambda t: 0.6 - 0.003 * t + 0.01 * (-1) ** t},
    "parity_broken": {"parity/max_abs": lambda t: 0.01},
    "all_truncated": {"completions/clipped_ratio": lambda t: 0.97},
    "entropy_collapse": {"entropy": lambda t: 2.0 * 0.9**t, "frac_reward_zero_std": lambda t: 0.55},
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


def test_kl_that_runs_away_fires_before_it_is_large():
    assert names(healthy(kl=lambda t: 0.01 if t < 70 else 0.3)) == ["kl_exploding"]
    assert names(healthy(kl=lambda t: 0.001 if t < 70 else 0.03)) == [], "a small KL may grow"


@pytest.mark.parametrize(
    "kl", [lambda t: 0.5 * (1 - math.exp(-t / 12)), lambda t: 0.0005 * (t - 1) ** 2], ids=["settles", "steady drift"]
)
def test_kl_that_begins_at_zero_and_grows_as_it_must_does_not_explode(kl):
    """From step 1 on, at every step up to the 40th, as a run asks."""
    records = healthy(40, kl=kl)
    assert not any("kl_exploding" in names(records[:step]) for step in range(1, 41))


def test_kl_in_the_warm_up_of_the_learning_rate_is_no_explosion():
    """The rate rises for 60 steps, so that the distance grows as t^2 and KL as t^4."""
    records = healthy(50, kl=lambda t: 0.6 * (t / 50) ** 4)
    assert names(records, with_grpo(warmup_steps=60)) == []
    assert names(healthy(50, kl=lambda t: 2.5), with_grpo(warmup_steps=60)) == ["kl_exploding"]


def test_a_policy_that_only_grows_surer_of_itself_does_not_explode():
    """From 2.8 to 1.4 nats of entropy at 1.3 nats of KL: to the start its text is as probable as before."""
    surer = {"kl": lambda t: 1.3 * min(1, t / 30), "entropy": lambda t: 2.8 - 1.4 * min(1, t / 30)}
    assert names(healthy(**surer)) == []
    assert names(healthy(**surer | {"kl": lambda t: 2.6 * min(1, t / 30)})) == ["kl_exploding"]


FLOW = {"completions/mean_length": lambda t: 40.0, "completions/mean_decisions": lambda t: 8.0}


@pytest.mark.parametrize(("name", "key", "harmless", "harmful"), [
    ("kl_exploding", "kl", 3.0, 6.0), ("parity_broken", "parity/max_abs", 4e-3, 6e-3),
])  # fmt: skip
def test_thresholds_are_per_token_where_a_decision_is_a_step_of_five_tokens(name, key, harmless, harmful):
    assert names(healthy(**FLOW, **{key: lambda t: harmless})) == []
    assert names(healthy(**{key: lambda t: harmless})) == [name], "where a decision is a token"
    assert names(healthy(**FLOW, **{key: lambda t: harmful})) == [name]


def test_clipped_steps_of_many_tokens_have_advice_of_their_own():
    clipped = {"clip_ratio/region_mean": lambda t: 0.5}
    (whole_steps,) = diagnose(healthy(**clipped, **FLOW), RECIPE)
    (tokens,) = diagnose(healthy(**clipped), RECIPE)
    assert "about 5 tokens" in whole_steps.advice
    assert "One batch moves the policy too far" in tokens.advice


def evaluation(low, high, **rewards):
    """An evaluation of step 40, compared with the start."""
    return {
        "step": 40, "name": "test", "difference": (low + high) / 2, "difference_low": low, "difference_high": high,
        "reward_differences": rewards,
    }  # fmt: skip


def test_a_held_out_gain_refutes_a_flat_reward():
    flat = healthy(**FIRING["reward_flat"])
    assert names(flat, evaluations=[evaluation(0.04, 0.055)]) == []
    (warning,) = diagnose(flat, RECIPE, [evaluation(0.04, 0.055), evaluation(-0.01, 0.02)])
    assert "held-out change +0.005 [-0.01, +0.02]" in warning.evidence, "the last one counts"


def test_a_reward_is_flat_only_where_a_rise_is_ruled_out():
    noisy = {"reward": lambda t: 0.3 + 0.1 * (-1) ** t}
    assert names(healthy(80, **noisy)) == [], "a rise of a third of the spread could hide in it"
    assert names(healthy(4000, **noisy)) == ["reward_flat"]
    assert names(healthy(**FIRING["reward_flat"]), with_grpo(warmup_steps=45)) == [], "the rate is hardly up yet"


def test_a_monitor_that_rises_on_held_out_prompts_is_not_hacked():
    records = healthy(**FIRING["reward_hacking"])
    assert names(records, evaluations=[evaluation(0.1, 0.2, watcher=[0.05, 0.02, 0.08])]) == []
    fell = [evaluation(0.1, 0.2, watcher=[-0.05, -0.08, -0.02])]
    assert names(records, evaluations=fell) == ["reward_hacking"]


def test_figures_of_a_batch_count_where_every_fourth_step_has_them():
    """With num_iterations 4 the other steps lack what is of the generation batch."""
    of_the_batch = ("reward", "reward_std", "frac_reward_zero_std", "frac_groups_all_max", "frac_groups_all_min")
    for name in ("no_spread", "reward_flat"):
        records = healthy(320, **FIRING[name])
        for record in records:
            if record["step"] % 4 != 1:
                for key in of_the_batch:
                    del record[key]
        assert names(records, with_grpo(num_iterations=4)) == [name]


def test_weights_that_a_schedule_has_stilled_are_not_without_effect():
    still = FIRING["learning_rate_without_effect"]
    ends = {"learning_rate": lambda t: 1e-5 * (1 - t / 81)}
    scheduled = with_grpo(learning_rate=1e-5)
    assert names(healthy(**still, **ends), scheduled) == []
    assert names(healthy(**still), scheduled) == ["learning_rate_without_effect"]


@pytest.mark.parametrize(
    ("best", "worst", "advice"),
    [(0.7, 0.05, "too easy"), (0.5, 0.0, "too easy"), (0.05, 0.7, "too hard"), (0.0, 0.0, "temperature")],
)
def test_no_spread_tells_solved_from_hopeless(best, worst, advice):
    records = healthy(
        frac_reward_zero_std=lambda t: 0.8, frac_groups_all_max=lambda t: best, frac_groups_all_min=lambda t: worst,
        reward=lambda t: 0.2 + min(0.5, t / 50) - worst / 4,
    )  # fmt: skip
    warning = next(w for w in diagnose(records, RECIPE) if w.name == "no_spread")
    assert warning.severity == ("note" if advice == "too easy" else "warning")
    assert advice in warning.advice
    assert f"{best:.0%} all at the best reward, {worst:.0%} all at the worst" in warning.evidence


def test_groups_at_the_same_partial_credit_are_not_solved():
    """All at the best reward of their batch, which is a fifth of what there is."""
    stuck = {"frac_groups_all_max": lambda t: 0.9, "frac_reward_zero_std": lambda t: 0.9, "reward": lambda t: 0.2}
    found = {w.name: w for w in diagnose(healthy(**stuck), RECIPE)}
    assert found.keys() == {"no_spread", "reward_flat"}
    assert found["no_spread"].severity == "warning"
    assert "the same reward, 0.2," in found["no_spread"].advice
    tenths = RECIPE | {"rewards": [{"kind": "judge", "weight": 0.2}]}
    assert [w.severity for w in diagnose(healthy(**stuck), tenths)] == ["note"], "where 0.2 is all there is"


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


def test_low_entropy_of_groups_that_still_differ_is_not_a_collapse():
    assert names(healthy(entropy=lambda t: 2.0 * 0.9**t)) == []


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


def losses(steps, loss, noise=0.1):
    draw = random.Random(0)
    return [{"step": t, "loss": loss(t) + draw.gauss(0, noise)} for t in range(1, steps + 1)]


@pytest.mark.parametrize(("slope", "fires"), [(-0.02, False), (0.0, True), (0.02, True)])
def test_supervised_loss_must_fall(slope, fires):
    assert ("sft_loss_flat" in names(losses(80, lambda t: 3 + slope * t), {"stage": "sft"})) is fires


def test_supervised_loss_need_not_fall_in_the_warm_up():
    records = losses(110, lambda t: 3.0)
    assert names(records, {"stage": "sft", "sft": {"warmup_steps": 100}}) == []
    assert names(records, {"stage": "sft", "sft": {"warmup_steps": 20}}) == ["sft_loss_flat"]


def test_supervised_loss_is_flat_only_where_a_fall_is_ruled_out():
    assert names(losses(80, lambda t: 1 - 0.0005 * t, noise=0.2), {"stage": "sft"}) == [], (
        "a fall could hide in the noise"
    )
    assert names(losses(80, lambda t: 0.02, noise=0.002), {"stage": "sft"}) == [], (
        "learnt: there is nothing left to fall"
    )


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
