"""Named warnings: what goes wrong in runs, with the evidence and what to do about it. Imports no torch.

`diagnose(records, recipe)` reads the metric records so far (the objects of metrics.jsonl) and the stage's recipe
(plain data). Every rule looks at a bounded number of records at either end of the run, so that a call costs the
same at step 10 and at step 100,000. A rule says nothing while its metrics are absent or too few.

history.py  what the rules look at: the records so far, windows of them, and the recipe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from relgrad.monitor.diagnose.history import (
    RECENT,
    WINDOW,
    History,
    Warning_,
    is_finite,
    monitors,
    parity_tolerance,
    pearson,
    policy_dtype,
)

KL_HIGH = 1.0  # nats per decision: the policy is e times off its start at a typical token; healthy runs stay below 0.3
KL_GROWTH = 10.0  # times the level of WINDOW steps ago: nothing grows tenfold that fast unless it is running away
KL_MENTION = 0.1  # nats: below this a tenfold growth is only the start of a run, where KL begins at 0
NO_SPREAD = 0.6  # share of groups: above it more than half of the sampling is spent on nothing
LENGTH_GROWTH = 1.5  # times the first lengths, with a reward that rose meanwhile
LENGTH_CORRELATED_GROWTH = 1.2  # a smaller growth is enough where reward and length move together step by step
LENGTH_CORRELATION = 0.8  # Pearson over 2 x WINDOW steps; 0.8 explains two thirds of the variance
TRUNCATED = 0.8  # share of completions: the rest is too few to learn how to finish
UPDATE_TINY = 1e-7  # |update| / |weights|: float32 cannot even represent a relative change below 6e-8
RATIO_TINY = 1e-4  # |ratio - 1| after an update: a clip range of 0.2 is 2,000 times that
KL_TINY = 1e-6  # nats: a typical log-prob moved by sqrt(2 KL) = 0.0014
ENTROPY_FRACTION = 0.1  # of the starting entropy: groups of near-identical completions have nothing to compare
CLIPPED = 0.3  # share of decisions without gradient; usual is 0 to 0.1, a little more at sequence level


def diagnose(records: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[Warning_]:
    """Every warning that holds at the last of `records`; the most severe first, otherwise in the order of RULES.

    `recipe` is the resolved recipe of the stage as plain data; an empty one means all defaults.
    """
    history = History(records, recipe)
    found = [warning for rule in RULES if (warning := rule(history)) is not None]
    return sorted(found, key=lambda warning: ("error", "warning", "note").index(warning.severity))


def nonfinite_gradient(history: History) -> Warning_ | None:
    """The last step's loss or gradient was not a number (files hold null there)."""
    last = history.records[-1] if history.records else {}
    broken = [key for key in ("grad_norm", "loss") if key in last and not is_finite(last[key])]
    if not broken:
        return None
    return history.warn(
        "nonfinite_gradient",
        "error",
        f"{' and '.join(broken)} of step {history.step} is not finite",
        "Such a step must not reach the weights. Lower learning_rate, run in float32, and look at the samples of this "
        "step: an empty completion or a reward of infinite size is the usual source.",
    )


def parity_broken(history: History) -> Warning_ | None:
    """Scoring fresh rollouts must give the log-probabilities they were drawn with."""
    values = history.last("parity/max_abs", RECENT)
    tolerance = parity_tolerance(history.recipe)
    if not values or max(values) <= tolerance:
        return None
    return history.warn(
        "parity_broken",
        "error",
        f"parity/max_abs reached {max(values):.3g} nats in the last {len(values)} steps, tolerance {tolerance:g} "
        f"for {policy_dtype(history.recipe)}",
        "The policy scores its own fresh samples differently from how it drew them, so importance ratios and KL are "
        "wrong. Check that temperature, top_p and the end-of-sequence rule are the same in sampling and scoring, that "
        "dropout is off, and try dtype: float32.",
    )


def kl_exploding(history: History) -> Warning_ | None:
    """The divergence from the reference is large, or has grown tenfold within a window."""
    now, before = history.now("kl"), history.last("kl", WINDOW + RECENT)[:RECENT]
    if now is None:
        return None
    grew = len(before) == RECENT and len(history.records) >= WINDOW + RECENT and now > KL_GROWTH * median(before)
    if now <= KL_HIGH and not (grew and now > KL_MENTION):
        return None
    since = f", up from {median(before):.3g}" if grew else ""
    return history.warn(
        "kl_exploding",
        "error",
        f"kl is {now:.3g} nats per decision (median of {RECENT} steps{since})",
        f"Lower learning_rate or raise beta (now {history.grpo.get('beta', 0)}); read the samples, since text usually "
        "breaks before the reward does, and continue from a checkpoint before the rise.",
    )


def reward_flat(history: History) -> Warning_ | None:
    """The last WINDOW rewards are not significantly above the first WINDOW."""
    change = history.change("reward")
    if change is None or change.rose or (history.now("frac_groups_all_max") or 0.0) >= NO_SPREAD:
        return None
    return history.warn(
        "reward_flat",
        "warning",
        f"reward was {change.before:.4g} in the first {WINDOW} steps and is {change.after:.4g} in the last {WINDOW} "
        f"(standard error of the difference {change.error:.2g})",
        "Look for groups with spread first (frac_reward_zero_std): without it nothing can be learned. With it, raise "
        "learning_rate, num_prompts or num_generations, or give partial credit so that small progress is rewarded.",
    )


def no_spread(history: History) -> Warning_ | None:
    """Most groups have equal rewards, and so advantage 0."""
    now = history.now("frac_reward_zero_std")
    if now is None or now < NO_SPREAD:
        return None
    high, low = history.now("frac_groups_all_max"), history.now("frac_groups_all_min")
    evidence = f"{now:.0%} of groups have equal rewards (median of {RECENT} steps)"
    if high is not None and low is not None:
        evidence += f": {high:.0%} all at the best reward, {low:.0%} all at the worst"
    if high is not None and high > max(low or 0.0, now / 2):
        advice = "The prompts are too easy by now: take harder ones, drop solved ones, or stop here."
    elif low is not None and low > max(high or 0.0, now / 2):
        advice = (
            "The prompts are too hard: warm up with a supervised stage, take easier prompts, give partial credit, or "
            "raise num_generations so that a success falls into the group. A policy that writes in several steps writes noise in "
            "too few of them: raise policy.sampling_steps, with policy.train_steps to train only some."
        )
    else:
        advice = (
            "Raise temperature or num_generations so that completions differ, or use a finer reward; max_resamples "
            "replaces groups without spread."
        )
    return history.warn("no_spread", "warning", evidence, advice)


def length_hacking(history: History) -> Warning_ | None:
    """Reward rose while completions grew a lot, or both move together step by step."""
    reward, length = history.change("reward"), history.change("completions/mean_length")
    if reward is None or length is None or not reward.rose or length.before <= 0:
        return None
    growth = length.after / length.before
    pairs = [
        (float(r["reward"]), float(r["completions/mean_length"]))
        for r in history.records[-2 * WINDOW :]
        if is_finite(r.get("reward")) and is_finite(r.get("completions/mean_length"))
    ]
    correlation = pearson(pairs)
    together = correlation >= LENGTH_CORRELATION and growth >= LENGTH_CORRELATED_GROWTH
    if growth < LENGTH_GROWTH and not together:
        return None
    return history.warn(
        "length_hacking",
        "warning",
        f"reward rose from {reward.before:.3g} to {reward.after:.3g} while completions grew from {length.before:.0f} "
        f"to {length.after:.0f} ({growth:.1f} times); correlation over the last {len(pairs)} steps {correlation:.2f}",
        "Read the longest samples. If the extra length says nothing, the reward pays for length: add a length penalty, "
        "normalise the reward, or use loss_type: dr_grpo, whose divisor does not favour long completions.",
    )


def reward_hacking(history: History) -> Warning_ | None:
    """The reward rose while a monitor, a reward that only watches, fell."""
    reward = history.change("reward")
    if reward is None or not reward.rose:
        return None
    fallen = [(n, c) for n in monitors(history.recipe) if (c := history.change(f"rewards/{n}/mean")) and c.fell]
    if not fallen:
        return None
    watched = "; ".join(f"{name} fell from {c.before:.4g} to {c.after:.4g}" for name, c in fallen)
    return history.warn(
        "reward_hacking",
        "warning",
        f"reward rose from {reward.before:.4g} to {reward.after:.4g} in the means of {WINDOW} steps, while {watched}",
        "What rewards and what only watches disagree, so the policy may be learning the reward's mistakes. Read the samples "
        "with the highest reward; raise beta, refit the judge, or stop at the checkpoint before the two part.",
    )


def all_truncated(history: History) -> Warning_ | None:
    """Nearly every completion ends at the length limit."""
    now = history.now("completions/clipped_ratio")
    if now is None or now < TRUNCATED:
        return None
    return history.warn(
        "all_truncated",
        "warning",
        f"{now:.0%} of completions end at the length limit (median of {RECENT} steps)",
        "Raise max_completion_length, or teach the ending first (supervised stage, chat template, the right "
        "end-of-sequence ids). A reward that reads the end of an answer never sees one here.",
    )


def learning_rate_without_effect(history: History) -> Warning_ | None:
    """Rewards have spread, yet neither the weights, nor the ratio, nor KL move."""
    spread = history.now("reward_std")
    warming_up = history.step <= int(history.grpo.get("warmup_steps") or 0)
    flat = history.now("frac_reward_zero_std") == 1
    if warming_up or len(history.records) < WINDOW or not spread or flat:
        return None
    signs: list[tuple[bool, str]] = []
    if updates := history.last("update/relative_norm", RECENT):
        # the largest: a step whose groups all lack spread rightly moves nothing
        signs.append((max(updates) < UPDATE_TINY, f"update/relative_norm is at most {max(updates):.2g}"))
    if (kl := history.now("kl")) is not None:
        signs.append((abs(kl) < KL_TINY, f"kl is {kl:.2g} nats after {len(history.records)} steps"))
    low, high = history.now("importance_ratio/min"), history.now("importance_ratio/max")
    reused = max(int(history.grpo.get(key) or 1) for key in ("num_iterations", "steps_per_generation")) > 1
    if low is not None and high is not None and reused:
        moved = max(abs(low - 1), abs(high - 1))
        signs.append((moved < RATIO_TINY, f"importance ratios stay within {moved:.2g} of 1"))
    if not signs or not all(still for still, _ in signs):
        return None
    rates = history.last("learning_rate", 1)
    return history.warn(
        "learning_rate_without_effect",
        "warning",
        f"{'; '.join(text for _, text in signs)}, although rewards have spread (reward_std {spread:.2g})",
        f"Raise learning_rate{f' (now {rates[0]:.2g})' if rates else ''}: LoRA usually wants 1e-5 to 1e-4. Check that "
        "adapters and optimizer are float32, since small updates vanish in bfloat16, and that the parameters meant are "
        "trainable.",
    )


def entropy_collapse(history: History) -> Warning_ | None:
    """Entropy fell to a tenth of its start although the task is not solved."""
    start, now = history.first("entropy", RECENT), history.now("entropy")
    if now is None or len(history.records) < 2 * RECENT or not start or median(start) <= 0:
        return None
    solved = (history.now("frac_groups_all_max") or 0.0) >= NO_SPREAD
    if solved or now >= ENTROPY_FRACTION * median(start):
        return None
    return history.warn(
        "entropy_collapse",
        "warning",
        f"entropy fell from {median(start):.3g} to {now:.3g} nats per decision",
        "The policy says nearly the same every time, so groups have nothing to compare. Lower learning_rate, raise "
        "epsilon_high (0.28 is usual) or beta, or add a small entropy_coef (0.001).",
    )


def clip_saturated(history: History) -> Warning_ | None:
    """The clip removes the gradient of a large share of decisions."""
    key = "clip_ratio/region_mean" if history.now("clip_ratio/region_mean") is not None else "cispo_clip_ratio"
    now = history.now(key)
    if now is None or now < CLIPPED:
        return None
    return history.warn(
        "clip_saturated",
        "warning",
        f"{key} is {now:.0%} (median of {RECENT} steps): so many decisions are clipped",
        "One batch moves the policy too far. Lower learning_rate, num_iterations or steps_per_generation; with "
        "importance_sampling_level: sequence the ranges are narrower by nature (epsilon around 3e-4).",
    )


def unscored(history: History) -> Warning_ | None:
    """Rewards that could not be computed."""
    values = history.last("rewards/unscored", WINDOW)
    steps = sum(value > 0 for value in values)
    if not steps:
        return None
    return history.warn(
        "unscored",
        "warning" if 2 * steps > len(values) else "note",
        f"rewards/unscored was above 0 in {steps} of the last {len(values)} steps, {max(values):.3g} at most",
        "The samples say why. Unscored completions carry no gradient and are never counted as 0; if there are many, "
        "raise reward_timeout or repair the reward.",
    )


def two_generations(history: History) -> Warning_ | None:
    """Groups of two with std scaling: (d/2) / (|d|/sqrt 2) = 0.71 whatever the difference d."""
    scaled = history.grpo.get("scale_rewards", "group") == "group" and history.grpo.get("credit", "row") == "row"
    if history.grpo.get("num_generations") != 2 or not scaled:
        return None
    return history.warn(
        "two_generations",
        "note",
        "num_generations is 2 with scale_rewards: group, so every advantage is 0 or one fixed size, plus or minus "
        "(0.71 with the sample standard deviation)",
        "A difference of 0.01 counts as much as one of 1. Use num_generations 4 or more, or scale_rewards: none.",
    )


def sft_loss_flat(history: History) -> Warning_ | None:
    """A supervised loss that did not fall."""
    change = None if history.rewarded else history.change("loss")
    if change is None or change.fell:
        return None
    return history.warn(
        "sft_loss_flat",
        "warning",
        f"loss was {change.before:.4g} in the first {WINDOW} steps and is {change.after:.4g} in the last {WINDOW}",
        "Raise learning_rate if it is flat, lower it if it rises, and check that the target column holds what the "
        "model is meant to write.",
    )


RULES: tuple[Callable[[History], Warning_ | None], ...] = (
    nonfinite_gradient,
    parity_broken,
    kl_exploding,
    no_spread,
    reward_flat,
    length_hacking,
    reward_hacking,
    all_truncated,
    learning_rate_without_effect,
    entropy_collapse,
    clip_saturated,
    unscored,
    two_generations,
    sft_loss_flat,
)
