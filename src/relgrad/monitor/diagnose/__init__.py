"""Named warnings: what goes wrong in runs, with the evidence and what to do about it. Imports no torch.

`diagnose(records, recipe, evaluations)` reads the metric records so far (the objects of metrics.jsonl), the stage's recipe
(plain data) and its evaluations so far. Every rule looks at a bounded number of records at either end of the run, so that a call
costs the same at step 10 and at step 100,000.

A warning is a claim. A rule says nothing while its metrics are absent or too few, while the noise would hide the opposite of what
it claims, and where an evaluation on held-out prompts says otherwise.

history.py  what the rules look at: the records so far, windows of them, the evaluations, and the recipe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from relgrad.monitor.diagnose.history import (
    MOST,
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

ESTRANGED = (
    1.0  # nats per token: what the policy writes is e times less probable to the start than the start's own text
)
KL_GROWTH = 10.0  # times what a steady drift explains: nothing grows like that unless it is running away
KL_MENTION = 0.1  # nats per token: below this growth is only the start of a run, where KL begins at 0
FLAT_REWARD = 0.1  # of the reward's spread: a smaller rise is not worth the steps
FLAT_LOSS = 0.03  # of the loss: what is taught falls by more than that
LEARNT = 0.05  # nats per token: the targets have a probability of 95 %, and there is nothing left to fall
LONGEST = 200  # values at either end that the claim of flatness rests on: more steps, less noise
LENGTH_GROWTH = 1.5  # times the first lengths, with a reward that rose meanwhile
LENGTH_CORRELATED_GROWTH = 1.2  # a smaller growth is enough where reward and length move together step by step
LENGTH_CORRELATION = 0.8  # Pearson over 2 x WINDOW steps; 0.8 explains two thirds of the variance
TRUNCATED = 0.8  # share of completions: the rest is too few to learn how to finish
UPDATE_TINY = 1e-7  # |update| / |weights|: float32 cannot even represent a relative change below 6e-8
RATIO_TINY = 1e-4  # |ratio - 1| after an update: a clip range of 0.2 is 2,000 times that
KL_TINY = 1e-6  # nats per token: a typical log-prob moved by sqrt(2 KL) = 0.0014
ENTROPY_FRACTION = 0.1  # of the starting entropy: completions of a prompt are nearly identical
NOTHING_TO_COMPARE = 0.5  # share of groups with equal rewards: below it low entropy is what learning looks like
RATE_FADED = 0.1  # of the recipe's learning rate: below it the schedule has stilled the weights, not a fault
SEVERAL = 2.0  # tokens per decision: from there on a ratio is that of many tokens together
CLIPPED = 0.3  # share of decisions without gradient; usual is 0 to 0.1, a little more at sequence level


def diagnose(
    records: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> list[Warning_]:
    """Every warning that holds at the last of `records`; the most severe first, otherwise in the order of RULES.

    `recipe` is the resolved recipe of the stage as plain data; an empty one means all defaults. `evaluations` are the objects of
    evaluations.jsonl.
    """
    history = History(records, recipe, evaluations)
    warnings = [warning for rule in RULES if (warning := rule(history)) is not None]
    return sorted(warnings, key=lambda warning: ("error", "warning", "note").index(warning.severity))


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
    """Scoring fresh rollouts must give the log-probabilities they were drawn with, up to the rounding of a decision's tokens."""
    values = history.last("parity/max_abs", RECENT)
    tolerance = parity_tolerance(history.recipe) * history.tokens_per_decision
    if not values or max(values) <= tolerance:
        return None
    return history.warn(
        "parity_broken",
        "error",
        f"parity/max_abs reached {max(values):.3g} nats in the last {len(values)} batches, tolerance {tolerance:.3g} "
        f"for {policy_dtype(history.recipe)}",
        "The policy scores its own fresh samples differently from how it drew them, so importance ratios and KL are "
        "wrong. Check that temperature, top_p and the end-of-sequence rule are the same in sampling and scoring, that "
        "dropout is off, and try dtype: float32.",
    )


def kl_exploding(history: History) -> Warning_ | None:
    """The policy writes what its start finds improbable, or leaves it faster than by a steady drift.

    To the start the policy's text has a probability of exp(-(H(policy) + KL)) per decision, its own exp(-H(start)). A policy that
    only grows surer of itself keeps the former the larger, however large its KL. KL begins at 0 and grows as the square of the
    distance: after t steps of a steady drift it is (t / s)^2 times what it was after s. While the learning rate still rises, so
    does the drift, and growth says nothing.
    """
    now, steps = history.now("kl"), history.steps("kl", WINDOW + RECENT)
    if now is None:
        return None
    start, entropy = history.first("entropy", RECENT), history.now("entropy")
    strange = history.per_token(now + (entropy - median(start) if start and entropy is not None else 0.0))
    before, since = median(history.last("kl", WINDOW + RECENT)[:RECENT]), median(steps[:RECENT])
    steady = before * (median(steps[-RECENT:]) / max(since, 1)) ** 2
    whole = len(steps) == WINDOW + RECENT and since > history.warmup
    grew = whole and before > 0 and now > KL_GROWTH * steady and history.per_token(now) > KL_MENTION
    if strange <= ESTRANGED and not grew:
        return None
    rise = f", up from {history.per_token(before):.3g} at step {since:.0f}" if grew else ""
    return history.warn(
        "kl_exploding",
        "error",
        f"kl is {history.per_token(now):.3g} nats per token (median of {RECENT} steps{rise}); to the start, the policy's text is "
        f"{strange:+.3g} nats per token less probable than the start's own",
        f"Lower learning_rate or raise beta (now {history.grpo.get('beta', 0)}); read the samples, since text usually "
        "breaks before the reward does, and continue from a checkpoint before the rise.",
    )


def reward_flat(history: History) -> Warning_ | None:
    """The rewards speak against a rise that is worth having, and no evaluation found one."""
    change, spread, gain = history.change("reward", LONGEST), history.now("reward_std"), history.gain()
    if change is None or change.rose or history.step <= history.warmup + WINDOW * history.reuse:
        return None
    if history.solved or (gain is not None and gain.low > 0):
        return None
    if spread is not None and change.largest_rise > FLAT_REWARD * spread:
        return None
    judged = f"; held-out change {gain.difference:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]" if gain else ""
    return history.warn(
        "reward_flat",
        "warning",
        f"reward was {change.before:.4g} in the first {change.window} batches and is {change.after:.4g} in the last "
        f"{change.window}: a rise of at most {max(change.largest_rise, 0.0):.2g} (95 % interval){judged}",
        "Look for groups with spread first (frac_reward_zero_std): without it nothing can be learned. With it, raise "
        "learning_rate, num_prompts or num_generations, or give partial credit so that small progress is rewarded.",
    )


def no_spread(history: History) -> Warning_ | None:
    """Most groups have equal rewards, and so advantage 0. Where they are solved that is only to be noted: nothing went wrong."""
    now = history.now("frac_reward_zero_std")
    if now is None or now < MOST:
        return None
    high, low = history.now("frac_groups_all_max"), history.now("frac_groups_all_min")
    evidence = f"{now:.0%} of groups have equal rewards (median of {RECENT} steps)"
    if high is not None and low is not None:
        evidence += f": {high:.0%} all at the best reward, {low:.0%} all at the worst"
    at_best = high is not None and high > max(low or 0.0, now / 2)
    solved = at_best and history.well_rewarded
    if solved:
        advice = "The prompts are too easy by now: take harder ones, drop solved ones, or stop here."
    elif at_best:
        advice = (
            f"Nearly all completions get the same reward, {history.now('reward') or 0.0:.3g}, which is not much: perhaps partial "
            "credit for what all of them do. Credit the rest more finely, or warm up with a supervised stage."
        )
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
    return history.warn("no_spread", "note" if solved else "warning", evidence, advice)


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
    """The reward rose while a monitor, a reward that only watches, fell, and no evaluation saw that monitor rise."""
    reward = history.change("reward")
    if reward is None or not reward.rose:
        return None
    risen = {name for name in monitors(history.recipe) if (gain := history.gain(name)) is not None and gain.low > 0}
    changes = [(name, history.change(f"rewards/{name}/mean")) for name in monitors(history.recipe) if name not in risen]
    fallen = [(name, change) for name, change in changes if change is not None and change.fell]
    if not fallen:
        return None
    watched = "; ".join(f"{name} fell from {c.before:.4g} to {c.after:.4g}" for name, c in fallen)
    return history.warn(
        "reward_hacking",
        "warning",
        f"reward rose from {reward.before:.4g} to {reward.after:.4g} in the means of {WINDOW} batches, while {watched}",
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
    flat, rates = history.now("frac_reward_zero_std") == 1, history.last("learning_rate", 1)
    faded = bool(rates) and rates[0] < RATE_FADED * float(history.grpo.get("learning_rate") or 0)
    if history.step <= history.warmup or faded or len(history.records) < WINDOW or not spread or flat:
        return None
    signs: list[tuple[bool, str]] = []
    if updates := history.last("update/relative_norm", RECENT):
        # the largest: a step whose groups all lack spread rightly moves nothing
        signs.append((max(updates) < UPDATE_TINY, f"update/relative_norm is at most {max(updates):.2g}"))
    if (kl := history.now("kl")) is not None:
        signs.append((history.per_token(abs(kl)) < KL_TINY, f"kl is {kl:.2g} nats after {len(history.records)} steps"))
    low, high = history.now("importance_ratio/min"), history.now("importance_ratio/max")
    if low is not None and high is not None and history.reuse > 1:
        moved = max(abs(low - 1), abs(high - 1))
        signs.append((moved < RATIO_TINY, f"importance ratios stay within {moved:.2g} of 1"))
    if not signs or not all(still for still, _ in signs):
        return None
    return history.warn(
        "learning_rate_without_effect",
        "warning",
        f"{'; '.join(text for _, text in signs)}, although rewards have spread (reward_std {spread:.2g})",
        f"Raise learning_rate{f' (now {rates[0]:.2g})' if rates else ''}: LoRA usually wants 1e-5 to 1e-4. Check that "
        "adapters and optimizer are float32, since small updates vanish in bfloat16, and that the parameters meant are "
        "trainable.",
    )


def entropy_collapse(history: History) -> Warning_ | None:
    """Entropy fell to a tenth of its start, and groups have nothing to compare although the task is not solved."""
    start, now = history.first("entropy", RECENT), history.now("entropy")
    if now is None or len(history.records) < 2 * RECENT or not start or median(start) <= 0:
        return None
    equal = history.now("frac_reward_zero_std")
    if history.solved or now >= ENTROPY_FRACTION * median(start) or (equal is not None and equal < NOTHING_TO_COMPARE):
        return None
    return history.warn(
        "entropy_collapse",
        "warning",
        f"entropy fell from {median(start):.3g} to {now:.3g} nats per decision"
        + ("" if equal is None else f", and {equal:.0%} of groups have equal rewards"),
        "The policy says nearly the same every time, so groups have nothing to compare. Lower learning_rate, raise "
        "epsilon_high (0.28 is usual), add a small entropy_coef (0.001), or raise beta with kl_estimator: exact (an estimate from "
        "samples hardly has a gradient once all samples agree).",
    )


def clip_saturated(history: History) -> Warning_ | None:
    """The clip removes the gradient of a large share of decisions."""
    key = "clip_ratio/region_mean" if history.now("clip_ratio/region_mean") is not None else "cispo_clip_ratio"
    now = history.now(key)
    if now is None or now < CLIPPED:
        return None
    tokens = history.tokens_per_decision
    several = (
        f"A decision is about {tokens:.0f} tokens here, whose ratios multiply: epsilon may be wider than for single tokens, and "
        "step_ratio_norm brings the steps to one scale. Or lower learning_rate, num_iterations or steps_per_generation."
    )
    single = (
        "One batch moves the policy too far. Lower learning_rate, num_iterations or steps_per_generation; with "
        "importance_sampling_level: sequence the ranges are narrower by nature (epsilon around 3e-4)."
    )
    return history.warn(
        "clip_saturated",
        "warning",
        f"{key} is {now:.0%} (median of {RECENT} steps): so many decisions are clipped",
        several if tokens >= SEVERAL else single,
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
    """A supervised loss that rose, or that speaks against a fall worth having, although the learning rate is up."""
    change = None if history.rewarded else history.change("loss", LONGEST)
    if change is None or change.fell or change.after < LEARNT or history.step <= history.warmup + WINDOW:
        return None
    if not change.rose and change.largest_fall > FLAT_LOSS * change.before:
        return None
    return history.warn(
        "sft_loss_flat",
        "warning",
        f"loss was {change.before:.4g} in the first {change.window} steps and is {change.after:.4g} in the last {change.window}: "
        f"a fall of at most {max(change.largest_fall, 0.0):.2g} (95 % interval)",
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
