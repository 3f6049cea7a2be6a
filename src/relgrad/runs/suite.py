"""A comparison from what was written: figures, the evaluation suite, tests, curves. From a file it needs no policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import KnowsTargets
from relgrad.core.settings import RewardComponent, checked
from relgrad.core.types import Example
from relgrad.evaluation import generations
from relgrad.evaluation.adapter_norms import adapter_norms
from relgrad.evaluation.answers import Answers, answers_of
from relgrad.evaluation.comparison import Contender, Training, compare_all
from relgrad.evaluation.curves import band, efficiency
from relgrad.evaluation.generations import Generations, Written, batch_of, prompt_of
from relgrad.evaluation.held_out import mean, summarise
from relgrad.evaluation.passing import best_of, passes_at
from relgrad.evaluation.suite import Judges, PassJudge, SuiteSettings, measure, require_primary, verdicts_of
from relgrad.evaluation.verdicts import verdicts
from relgrad.rewards.combine import RewardSet
from relgrad.runs.build import build_rewards
from relgrad.runs.contenders import Opened
from relgrad.runs.pairwise import duels
from relgrad.runs.recipe import with_overrides
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage
from relgrad.text.embedding import Encodings, require_encoder

PASS_SECONDS = 60.0
"""What the pass judge may take for one prompt's completions."""


class Judged(NamedTuple):
    """One training with its answers, and the pass judge's verdicts on them (None without one)."""

    training: Training
    answers: list[Answers]
    passes: list[list[bool | None]] | None


def from_file(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The comparison of a file that `relgrad compare --generations` wrote. Overrides may change `evaluation.suite`.

    Raises RelgradError for a file that is none, and for other overrides.
    """
    kept = generations.read(path)
    if foreign := [text for text in overrides if not text.startswith("evaluation.suite")]:
        raise RelgradError(f"{foreign[0]}: what was written is in {path}; only evaluation.suite can still be changed")
    suite = with_overrides({"evaluation": {"suite": kept.suite}} if kept.suite else {}, overrides)
    return record_of(replace(kept, suite=suite.get("evaluation", {}).get("suite")))


def record_of(kept: Generations) -> dict[str, Any]:
    """Every figure of every contender as plain data: Comparison.to_record, what was asked, and what the suite has to say.

    Raises RelgradError for a pass judge or encoder that cannot be had, and a primary figure that there is not.
    """
    suite = None if kept.suite is None else checked(kept.suite, SuiteSettings, "evaluation.suite")
    if suite is not None:
        require_primary(suite, kept.names, kept.fewest)
    measuring = _Suite(suite) if suite is not None else None
    groups = [(label, [_judged(kept, one, measuring) for one in trainings]) for label, trainings in kept.contenders]
    if measuring is not None:
        measuring.close()
    contenders = [Contender(label, tuple(one.training for one in group)) for label, group in groups]
    comparison = compare_all(contenders, mirrored=bool(kept.facts["mirrored"]))
    record = {**kept.facts, **comparison.to_record(), "suite": None}
    if suite is None:
        return record
    tests = verdicts(comparison, suite.primary)
    for figure in record["figures"]:
        figure["verdicts"] = [one and one.to_record() for one in tests[figure["name"]]]
    curves = _curves([group for _, group in groups])
    record["suite"] = {
        "primary": suite.primary,
        "settings": suite.model_dump(mode="json"),
        "passing": None if suite.passing is None else _described(suite.passing),
        "curves": curves,
        "pairwise": None
        if suite.pairwise is None
        else duels(suite.pairwise, [[one.answers for one in group] for _, group in groups]),
        "efficiency": [efficiency(one["mean"]) for one in curves.get("pass@k", [])],
    }
    return record


def _described(judge: PassJudge) -> str:
    return f"{judge.name or judge.kind} of at least {judge.threshold:g}"


class _Suite:
    """The suite of one comparison: its settings, and what it judges by, built once."""

    def __init__(self, settings: SuiteSettings) -> None:
        self.settings = settings
        self.rewards: RewardSet | None = None
        if settings.passing is not None:
            judge = settings.passing
            component = RewardComponent(kind=judge.kind, name=judge.name, isolate=judge.isolate, **judge.options)
            self.rewards = build_rewards([component], PASS_SECONDS)
        self.encodings = Encodings(settings.encoder) if settings.semantic else None
        if settings.semantic:
            require_encoder(settings.encoder)

    def passes(self, batch: generations.Batch) -> list[list[bool | None]] | None:
        """The pass judge's verdicts, prompt by prompt."""
        if self.rewards is None or self.settings.passing is None:
            return None
        rollouts, _ = batch
        score_B = self.rewards(rollouts).value_BR[:, 0]
        threshold = self.settings.passing.threshold
        groups = range(len(rollouts.prompts))
        return [verdicts_of(score_B[rollouts.group_B == group].tolist(), threshold) for group in groups]

    def measure(self, answers: list[Answers], passes: list[list[bool | None]] | None) -> dict[str, list[float]]:
        """Every metric of the suite."""
        verdicts = None if passes is None else lambda _: passes
        if self.encodings is None:
            return measure(answers, self.settings, Judges(verdicts))
        judges = Judges(verdicts, self.encodings.embed, self.encodings.embed_tokens)
        measured = measure(answers, self.settings, judges)
        self.encodings.forget()
        return measured

    def close(self) -> None:
        if self.rewards is not None:
            self.rewards.close()


def _judged(kept: Generations, written: Written, measuring: _Suite | None) -> Judged:
    batch = batch_of(written.records, kept.names, kept.weights)
    evaluation = summarise([batch], None)
    base = [_base(record["base"]) for record in written.records]
    answers = answers_of(batch, base)
    passes = None
    if measuring is not None:
        passes = measuring.passes(batch)
        measured = {name: tuple(values) for name, values in measuring.measure(answers, passes).items()}
        evaluation = replace(evaluation, per_prompt_metrics={**evaluation.per_prompt_metrics, **measured})
    return Judged(Training(written.source, written.seed, evaluation), answers, passes)


def _base(record: Mapping[str, Any] | None) -> tuple[float, int]:
    return (math.nan, 0) if record is None or record["nll"] is None else (record["nll"], record["tokens"])


# ---------------------------------------------------------------------- curves


def _curves(groups: Sequence[Sequence[Judged]]) -> dict[str, list[dict[str, list[float]]]]:
    """pass@k and best of k for k = 1 … n, one band a contender; n is the fewest completions of any prompt."""
    fewest = min(len(one.texts) for group in groups for judged in group for one in judged.answers)
    ks = range(1, fewest + 1)

    def best(judged: Judged) -> list[list[float]]:
        return [[best_of(one.completions.score_K, k) for k in ks] for one in judged.answers]

    def passing(judged: Judged) -> list[list[float]]:
        return [[passes_at(one, k) for k in ks] for one in judged.passes or ()]

    curves = {"best of k": [_band(group, best) for group in groups]}
    if all(judged.passes is not None for group in groups for judged in group):
        curves = {"pass@k": [_band(group, passing) for group in groups], **curves}
    return curves


def _band(group: Sequence[Judged], values: Callable[[Judged], list[list[float]]]) -> dict[str, list[float]]:
    """The band of a contender: a prompt's values are its means over the trainings that were asked it."""
    by_prompt: dict[Any, list[list[float]]] = {}
    for judged in group:
        for one, row in zip(judged.answers, values(judged), strict=True):
            by_prompt.setdefault((one.prompt.id, one.prompt.text), []).append(row)
    return band([[mean(column) for column in zip(*rows, strict=True)] for rows in by_prompt.values()])


# ---------------------------------------------------------------------- what needs models or folders


def with_base(
    written: Mapping[str, Written], stage: Stage, progress: Callable[[str, int, int], None]
) -> dict[str, Written]:
    """The same with -log p of every prompt's completions under the stage's untrained policy.

    Raises RelgradError for a policy that has no likelihood of given texts.
    """
    policy = build_policy(stage, None)
    if not isinstance(policy, KnowsTargets):
        raise RelgradError(
            f"evaluation.suite.perplexity=true: a policy of kind {stage.policy.kind} has no likelihood of given texts; leave it out"
        )
    total = sum(len(one.records) for one in written.values())
    done, measured = 0, {}
    for source, one in written.items():
        records = []
        for record in one.records:
            prompt = prompt_of(record)
            nll, tokens = policy.target_nll([Example(prompt, sample["text"]) for sample in record["samples"]])
            records.append({**record, "base": {"nll": nll, "tokens": tokens}})
            done += 1
            progress("base model", done, total)
        measured[source] = replace(one, records=tuple(records))
    return measured


def adapters_of(opened: Sequence[Opened]) -> dict[str, dict[str, float]]:
    """Of every source that is an adapter, how large it is layer by layer."""
    norms = {one.source: adapter_norms(one.start) for one in opened if one.start is not None}
    return {source: own for source, own in norms.items() if own}
