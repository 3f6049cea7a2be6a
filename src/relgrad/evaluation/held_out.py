"""Evaluation: sample, score, and say how sure the score is. Knows policies and rewards by protocol only.

The random numbers come from a generator of their own, made from `seed`: evaluating more or less often, or not at all,
leaves training as it was, and two evaluations of the same weights give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, get_args

import torch

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Filmed, GuidesSearch, JudgedDifferently, KnowsTruth, Policy, Rewards
from relgrad.core.randomness import Draws
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.tables import require_scored
from relgrad.core.types import Output, Prompt, RewardTable, Rollouts, Stop
from relgrad.evaluation.metric import METRICS, Completions
from relgrad.evaluation.searched import search_figures
from relgrad.evaluation.statistics import Interval, difference_over, mean_over, pass_at_k
from relgrad.objectives.advantages import combine

SCORING_TOKENS = 8192
"""Work of one scoring chunk (see Policy.plan); without gradients it needs little memory."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. The score of a prompt is the mean weighted reward of its scored completions.

    score, low, high  mean over prompts and its 95 % interval over `over`; NaN where nothing, or too little, was scored
    prompts           how many prompts have a score
    per_prompt        one score per prompt, in the order given; NaN where no completion was scored
    ids               the prompts' ids, by which two evaluations are paired
    rewards           mean of each reward over the completions it scored, unweighted; monitors too. Beside them, where the policy
                      guides searches, what these solve (searched.py)
    per_prompt_rewards  each reward's mean per prompt, as `per_prompt`
    per_prompt_metrics  each figure of evaluation/metric.py per prompt; not recorded
    families          the prompts' families; empty where they have none
    pass_at_k         mean over prompts of the unbiased pass@k; empty unless every total reward is 0 or 1
    mean_length       elementary choices (tokens) per completion
    stop              share of completions per reason they ended
    unscored          completions that no reward of any weight scored
    samples           the first completion of every prompt: {"prompt", "completion", "score"}, and what is known of the truth
    kl, entropy       nats per decision, over all decisions: exact KL to the reference, and entropy; NaN where not asked for
    """

    score: float
    low: float
    high: float
    prompts: int
    per_prompt: tuple[float, ...]
    ids: tuple[int, ...]
    rewards: Mapping[str, float]
    pass_at_k: Mapping[int, float]
    mean_length: float
    stop: Mapping[str, float]
    unscored: int
    samples: tuple[Mapping[str, Any], ...]
    per_prompt_rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    kl: float = math.nan
    entropy: float = math.nan
    families: tuple[str, ...] = ()
    per_prompt_metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def over(self) -> str:
        """What its intervals are over: "prompts", or "families" where the prompts come in such."""
        return "families" if self.families else "prompts"

    @property
    def units(self) -> int:
        """How many of these were scored."""
        if not self.families:
            return self.prompts
        scored = zip(self.families, self.per_prompt, strict=True)
        return len({family for family, score in scored if not math.isnan(score)})

    def to_record(
        self, step: int, name: str, baseline: Evaluation | None = None, *, weights: int | None = None
    ) -> dict[str, Any]:
        """One line of evaluations.jsonl, of the weights of step `weights` (None: of `step` itself).

        With a `baseline`, also the paired differences to it and their intervals.
        """
        record: dict[str, Any] = {
            "step": step,
            "weights": step if weights is None else weights,
            "name": name,
            "score": self.score,
            "low": self.low,
            "high": self.high,
            "over": self.over,
            "units": self.units,
            "n": self.prompts,
            "rewards": dict(self.rewards),
            "pass_at_k": {str(k): v for k, v in self.pass_at_k.items()},
            "mean_length": self.mean_length,
            "stop": dict(self.stop),
            "unscored": self.unscored,
            "kl": self.kl,
            "entropy": self.entropy,
            "per_prompt": list(self.per_prompt),
            "per_prompt_rewards": {name: list(values) for name, values in self.per_prompt_rewards.items()},
            "ids": list(self.ids),
            "families": list(self.families),
            "samples": [dict(s) for s in self.samples],
        }
        if baseline is not None:
            difference, low, high = compare(baseline, self)
            record |= {"difference": difference, "difference_low": low, "difference_high": high}
            record["reward_differences"] = {name: list(i) for name, i in compare_rewards(baseline, self).items()}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Evaluation:
        """The evaluation that a line of evaluations.jsonl tells of (null, or a key it does not have, is NaN)."""

        def number(value: float | None) -> float:
            return math.nan if value is None else value

        return cls(
            score=number(record["score"]),
            low=number(record["low"]),
            high=number(record["high"]),
            prompts=record["n"],
            per_prompt=tuple(number(v) for v in record["per_prompt"]),
            ids=tuple(record["ids"]),
            rewards={k: number(v) for k, v in record["rewards"].items()},
            pass_at_k={int(k): v for k, v in record["pass_at_k"].items()},
            mean_length=number(record["mean_length"]),
            stop=record["stop"],
            unscored=record["unscored"],
            samples=tuple({**s, "score": number(s["score"])} for s in record["samples"]),
            per_prompt_rewards={
                name: tuple(number(v) for v in values) for name, values in record.get("per_prompt_rewards", {}).items()
            },
            kl=number(record.get("kl")),
            entropy=number(record.get("entropy")),
            families=tuple(record.get("families", ())),
        )


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    *,
    num_generations: int,
    seed: int,
    batch_prompts: int = 16,
    progress: Callable[[int, int], None] | None = None,
    divergence: bool = False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Draw `num_generations` completions per prompt, `batch_prompts` prompts at a time, and score them all.

    `progress(done, total)` is called after every batch, in prompts. `divergence` also measures the exact KL to the policy's
    reference, and the entropy, at one more pass over the completions. Every process of `ranks` takes its share of the prompts.
    Raises RelgradError when there are no prompts, when nothing at all was scored, or where divergence is asked of a policy
    without a reference.
    """
    if not prompts:
        raise RelgradError("evaluate: no prompts to evaluate on; give the task at least one validation or test prompt")
    measured = torch.zeros(3, dtype=torch.float64)

    def after(rollouts: Rollouts) -> None:
        if divergence:
            measured.add_(spread_and_distance(policy, rollouts))

    batches = draw_and_reward(
        policy, prompts, rewards,
        num_generations=num_generations, seed=seed, batch_prompts=batch_prompts, progress=progress, after=after, ranks=ranks,
    )  # fmt: skip
    evaluation = summarise(batches, policy)
    if isinstance(policy, GuidesSearch) and policy.search_evaluations:
        evaluation = _with_search(evaluation, policy, prompts, rewards, seed, ranks)
    if not divergence:
        return evaluation
    ranks.sum(measured)
    kl, entropy, _ = (measured / measured[2]).tolist()  # NaN where nothing was decided
    return replace(evaluation, kl=kl, entropy=entropy)


def _with_search(
    evaluation: Evaluation, policy: GuidesSearch, prompts: Sequence[Prompt], rewards: Rewards, seed: int, ranks: Ranks
) -> Evaluation:
    """The evaluation, with what searches solve (searched.py) beside the rewards. Every process searches for its share."""
    share = ranks.share(len(prompts))
    own = prompts[share.start : share.stop]
    shares = ranks.collect(lambda: search_figures(policy, own, rewards, seed) if own else {})
    names = next(figures for figures in shares if figures)
    per_prompt = {name: tuple(value for figures in shares for value in figures.get(name, ())) for name in names}
    return replace(
        evaluation,
        rewards={**evaluation.rewards, **{name: mean(values) for name, values in per_prompt.items()}},
        per_prompt_rewards={**evaluation.per_prompt_rewards, **per_prompt},
    )


def draw_and_reward(
    policy: Policy,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    *,
    num_generations: int,
    seed: int,
    batch_prompts: int = 16,
    progress: Callable[[int, int], None] | None = None,
    after: Callable[[Rollouts], None] = lambda rollouts: None,
    ranks: Ranks = ALONE,
) -> list[tuple[Rollouts, RewardTable]]:
    """What `evaluate` is made of: the completions of all prompts, in their order, and their rewards.

    `after` is called with every batch before its trace is forgotten. Raises RelgradError when nothing at all was scored.
    """
    draws, share = Draws.of(torch.Generator().manual_seed(seed), len(prompts)), ranks.share(len(prompts))

    def own() -> list[tuple[Rollouts, RewardTable]]:
        batches = []
        for first in range(share.start, share.stop, batch_prompts):
            count = min(batch_prompts, share.stop - first)
            rollouts = policy.sample(prompts[first : first + count], num_generations, draws.part(first, count))
            batches.append((replace(rollouts, trace={}), rewards(rollouts)))
            after(rollouts)
            if progress is not None:
                progress((first + count - share.start) * ranks.size, len(prompts))
        return batches

    with torch.no_grad(), as_judged(policy):
        batches = [batch for of_one in ranks.collect(own) for batch in of_one]
    require_scored([table for _, table in batches])
    return batches


class FilmedPolicy(Policy, Filmed, Protocol):
    """A policy that can be filmed."""


def as_judged(policy: object) -> AbstractContextManager[None]:
    """Inside it, `sample` writes as the policy is judged and used: otherwise than in training, where the policy says so."""
    return policy.evaluation() if isinstance(policy, JudgedDifferently) else nullcontext()


def film(
    policy: FilmedPolicy,
    prompts: Sequence[Prompt],
    each: int,
    generator: torch.Generator,
    rewards: Rewards | None = None,
) -> list[dict[str, Any]]:
    """`each` films per prompt, as `policy.film` takes them; with `rewards`, also what their texts are worth.

    reward  the weighted sum; NaN where the text is unscored
    parts   every reward by name, and the rewards' own parts
    why     why it is unscored, else ""
    """
    films = policy.film(prompts, each, generator)
    if rewards is None or not films:
        return films
    rows = len(films)
    stops: list[Stop] = ["eos"] * rows  # no reward reads why a text ended
    nothing_BT = torch.zeros(rows, 0)
    texts = Rollouts(
        prompts=tuple(prompts),
        group_B=torch.arange(len(prompts)).repeat_interleave(each),
        behaviour_logp_BT=nothing_BT,
        mask_BT=nothing_BT.bool(),
        size_BT=nothing_BT.long(),
        outputs=tuple(Output(one["final"], tuple(one["ids"])) for one in films),
        stop=tuple(stops),
        policy_version=policy.version,
        trace={},
    )
    try:
        table = rewards(texts)
    except RelgradError as error:  # nothing could be scored: a film is worth seeing all the same
        return [{**one, "reward": math.nan, "parts": {}, "why": str(error)} for one in films]
    totals, why = combine(table, texts.group_B).reward_B.tolist(), table.why or ("",) * rows
    parts = [dict(zip(table.names, row, strict=True)) for row in table.value_BR.tolist()]
    own = table.parts or ({},) * rows
    return [
        {**one, "reward": totals[row], "parts": parts[row] | dict(own[row]), "why": why[row]}
        for row, one in enumerate(films)
    ]


def spread_and_distance(policy: Policy, rollouts: Rollouts) -> torch.Tensor:
    """float64 [3]: exact KL to the reference and entropy, summed over all decisions in nats, and how many there are."""
    total = torch.zeros(3, dtype=torch.float64)
    for cells_N2 in policy.plan(rollouts, torch.arange(rollouts.rows), SCORING_TOKENS):
        scores = policy.score(rollouts, cells_N2, entropy=True, reference_kl=True)
        assert scores.kl_N is not None
        assert scores.entropy_N is not None
        sums = float(scores.kl_N.double().sum()), float(scores.entropy_N.double().sum())
        total += torch.tensor([*sums, len(cells_N2)], dtype=torch.float64)
    return total


def summarise(batches: Sequence[tuple[Rollouts, RewardTable]], policy: object) -> Evaluation:
    """The figures of an evaluation from its scored rollouts; its samples beside the truth where the policy knows it."""
    groups: list[list[float]] = []
    samples: list[Mapping[str, Any]] = []
    answers: list[Completions] = []
    for rollouts, table in batches:
        totals = combine(table, rollouts.group_B).reward_B.tolist()
        for group, prompt in enumerate(rollouts.prompts):
            rows = (rollouts.group_B == group).nonzero()[:, 0].tolist()
            groups.append([totals[row] for row in rows])
            answers.append(completions_of(rollouts, rows, groups[-1]))
            first, output = rows[0], rollouts.outputs[rows[0]]
            truth = policy.beside_truth(prompt, output) if isinstance(policy, KnowsTruth) else {}
            samples.append({"prompt": prompt.text, "completion": output.text, "score": totals[first], **truth})
    per_prompt = tuple(mean(group) for group in groups)
    families = families_of([prompt for rollouts, _ in batches for prompt in rollouts.prompts])
    interval = mean_over(per_prompt, families)
    stops = [stop for rollouts, _ in batches for stop in rollouts.stop]
    return Evaluation(
        score=interval.value,
        low=interval.low,
        high=interval.high,
        prompts=sum(not math.isnan(score) for score in per_prompt),
        per_prompt=per_prompt,
        ids=tuple(prompt.id for rollouts, _ in batches for prompt in rollouts.prompts),
        rewards=reward_means([table for _, table in batches]),
        per_prompt_rewards=prompt_means(batches),
        pass_at_k=mean_pass_at_k(groups),
        mean_length=sum(int(r.size_BT.sum()) for r, _ in batches) / len(stops),
        stop={reason: stops.count(reason) / len(stops) for reason in get_args(Stop)},
        unscored=sum(math.isnan(total) for group in groups for total in group),
        samples=tuple(samples),
        families=families,
        per_prompt_metrics={metric.name: tuple(metric(one) for one in answers) for metric in METRICS},
    )


def completions_of(rollouts: Rollouts, rows: Sequence[int], scores: Sequence[float]) -> Completions:
    """What a metric sees of one prompt's rows."""
    tokens_B = rollouts.size_BT.sum(-1)
    return Completions(
        tuple(rollouts.outputs[row] for row in rows), tuple(scores), tuple(int(tokens_B[row]) for row in rows)
    )


def families_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The families of these prompts; empty unless every one has one."""
    families = tuple(prompt.family for prompt in prompts)
    return families if all(families) else ()


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    scored = [v for v in values if not math.isnan(v)]
    return math.fsum(scored) / len(scored) if scored else math.nan


def reward_means(tables: Sequence[RewardTable]) -> dict[str, float]:
    """Mean of each reward by name, over the rows it scored."""
    value_BR = torch.cat([table.value_BR for table in tables])
    return {name: mean(value_BR[:, r].tolist()) for r, name in enumerate(tables[0].names)}


def prompt_means(batches: Sequence[tuple[Rollouts, RewardTable]]) -> dict[str, tuple[float, ...]]:
    """Mean of each reward by name for every prompt, over the rows it scored."""
    means: dict[str, list[float]] = {name: [] for name in batches[0][1].names}
    for rollouts, table in batches:
        for group in range(len(rollouts.prompts)):
            value_KR = table.value_BR[rollouts.group_B == group]
            for r, name in enumerate(table.names):
                means[name].append(mean(value_KR[:, r].tolist()))
    return {name: tuple(values) for name, values in means.items()}


def mean_pass_at_k(groups: Sequence[Sequence[float]]) -> dict[int, float]:
    """pass@k over prompts for k = 1, 2, 4, … up to the fewest scored completions of a scored prompt.

    Empty where a total is neither 0 nor 1, or nothing was scored.
    """
    scored = [[total for total in group if not math.isnan(total)] for group in groups]
    scored = [group for group in scored if group]
    if not scored or any(total not in (0.0, 1.0) for group in scored for total in group):
        return {}
    most = min(len(group) for group in scored)
    powers = [2**i for i in range(most.bit_length())]
    return {k: mean([pass_at_k(len(group), int(sum(group)), k) for group in scored]) for k in powers}


def compare(before: Evaluation, after: Evaluation) -> Interval:
    """Mean paired difference after - before over the same prompts, with its 95 % interval over `after.over`.

    Raises RelgradError when the two were not made on the same prompts.
    """
    _require_same_prompts(before, after)
    return difference_over(before.per_prompt, after.per_prompt, after.families)


def compare_rewards(before: Evaluation, after: Evaluation) -> dict[str, Interval]:
    """The same for every reward that both have per prompt, unweighted."""
    _require_same_prompts(before, after)
    earlier, later = before.per_prompt_rewards, after.per_prompt_rewards
    families = after.families
    return {name: difference_over(earlier[name], later[name], families) for name in later if name in earlier}


def _require_same_prompts(before: Evaluation, after: Evaluation) -> None:
    if before.ids != after.ids:
        raise RelgradError(
            f"compare: the evaluations are of different prompts ({len(before.ids)} before, {len(after.ids)} after); "
            "evaluate both on the same prompts, in the same order"
        )
