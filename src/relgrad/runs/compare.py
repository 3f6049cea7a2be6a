"""Comparing policies: each source opened, asked its prompts and judged by the same rewards, then compared by evaluation/.

Rewards, and how much is drawn, are those of the *yardstick*: the first source that has its own, or what `--on` names. So are the
prompts of what has none of its own, and of all with `--on`. A recipe's own prompts must be those of every other source of its seed;
tasks may hold out others for another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component
from relgrad.core.types import Prompt
from relgrad.evaluation import generations
from relgrad.evaluation.generations import Generations, Written
from relgrad.evaluation.held_out import draw_and_reward
from relgrad.evaluation.suite import require_primary, require_references
from relgrad.rewards.combine import RewardSet
from relgrad.runs.build import is_linked, load_task
from relgrad.runs.contenders import Opened, grouped, open_all, open_one, seed_of, with_policy
from relgrad.runs.pairwise import backend_of
from relgrad.runs.suite import adapters_of, record_of, with_base
from relgrad.runs.use import rewards_of
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage

Part = Literal["validation", "test"]
Progress = Callable[[str, int, int], None]
"""(which source, prompts done of all sources, prompts of all sources)"""


@dataclass(frozen=True)
class Yardstick:
    """By what all are measured: prompts, rewards, and how much is drawn.

    source  whose they are
    part    which part of the task the prompts are
    """

    source: str
    stage: Stage
    part: str
    prompts: Sequence[Prompt]
    rewards: RewardSet


@dataclass(frozen=True)
class Conditions:
    """What `relgrad compare` may be told beside the sources.

    on         a recipe or run whose prompts and rewards are used for all; None: each has its own, and they must agree
    test_file  a file of test prompts in place of the task's
    part       the prompts of the task to score on
    mirrored   differences are the first source's minus the others', not the others' minus the first's
    keep       a file for everything that was written, from which metrics can be computed again
    """

    on: str | None = None
    test_file: Path | None = None
    part: Part = "test"
    mirrored: bool = False
    keep: Path | None = None


def compare_sources(
    sources: Sequence[str], overrides: Sequence[str], conditions: Conditions, progress: Progress
) -> dict[str, Any]:
    """Every figure of every source, as a record: Comparison.to_record and by what all were measured.

    Raises RelgradError for a source that is none, and for sources with other test prompts or rewards, which it names.
    """
    opened = open_all(sources, overrides)
    yardstick = _yardstick(opened, overrides, conditions)
    settings = yardstick.stage.evaluation
    if settings.suite is not None:
        require_primary(settings.suite, yardstick.rewards.names, settings.num_generations)
        if settings.suite.pairwise is not None:
            backend_of(settings.suite.pairwise)
    groups = grouped(opened)
    prompts = _prompts_of_all(opened, yardstick, conditions)
    _require_common_prompts(groups, prompts)
    if settings.suite is not None:
        require_references(settings.suite, [prompt for own in prompts.values() for prompt in own])
    written: dict[str, Written] = {}
    for number, one in enumerate(opened):
        report = _after(number, len(opened), one.label, progress)
        written[one.source] = _written(one, prompts[one.source], yardstick, report)
    yardstick.rewards.close()
    if settings.suite is not None and settings.suite.perplexity:
        written = with_base(written, yardstick.stage, progress)
    facts = {
        "task": yardstick.stage.task.kind,
        "part": yardstick.part,
        "measured_as": yardstick.source,
        "prompts": len(yardstick.prompts),
        "num_generations": settings.num_generations,
        "evaluation_seed": settings.seed,
        "mirrored": conditions.mirrored,
        "notes": [note for one in opened if (note := _seen(one, prompts[one.source]))],
        "adapters": adapters_of(opened),
    }
    kept = Generations(
        facts,
        None if settings.suite is None else settings.suite.model_dump(mode="json"),
        yardstick.rewards.names,
        tuple(yardstick.rewards.weights),
        tuple((_called(group), tuple(written[one.source] for one in group)) for group in groups),
    )
    if conditions.keep is not None:
        generations.write(kept, conditions.keep)
    return record_of(kept)


def _written(
    opened: Opened, prompts: Sequence[Prompt], yardstick: Yardstick, progress: Callable[[int, int], None]
) -> Written:
    """What one source writes to these prompts, with the yardstick's rewards."""
    settings = yardstick.stage.evaluation
    with yardstick.rewards.fixed():
        batches = draw_and_reward(
            build_policy(with_policy(opened, yardstick.stage), opened.start),
            prompts,
            yardstick.rewards,
            num_generations=settings.num_generations,
            seed=settings.seed,
            progress=progress,
        )
    return Written(opened.source, seed_of(opened), tuple(generations.records_of(batches)))


def _after(number: int, count: int, label: str, progress: Progress) -> Callable[[int, int], None]:
    """Tells of one evaluation's progress as part of `count` of them, `number` of which are done."""
    return lambda done, total: progress(label, number * total + done, count * total)


def _called(group: Sequence[Opened]) -> str:
    """A contender's name: its source, and how many other seeds there are."""
    first = group[0].label
    return first if len(group) == 1 else f"{first} and {len(group) - 1} more seed{'s' * (len(group) > 2)}"


# ---------------------------------------------------------------------- by what all are measured


def _yardstick(opened: Sequence[Opened], overrides: Sequence[str], conditions: Conditions) -> Yardstick:
    """The prompts and rewards of `on`, else of the first source that has its own."""
    chosen = _measure(opened) if conditions.on is None else open_one(conditions.on, overrides)
    stage = chosen.stage
    if stage is None:
        raise RelgradError(
            f"compare: {chosen.source} is a bare adapter, which has no prompts and no rewards of its own; say by what all are "
            "measured with --on RECIPE_OR_RUN"
        )
    rewards = rewards_of(stage, chosen.start)
    if rewards is None:
        raise RelgradError(f"{chosen.source}: nothing to score with; add rewards to the recipe")
    prompts, part = _prompts(stage, conditions.part)
    if conditions.test_file is not None:
        prompts, part = _read(conditions.test_file, stage), str(conditions.test_file)
    if not prompts:
        raise RelgradError(f"{chosen.source}: its task has no {part} prompts; give others with --test-file FILE")
    return Yardstick(chosen.source, stage, part, prompts, rewards)


def _measure(opened: Sequence[Opened]) -> Opened:
    """The first source with prompts and rewards that can be had: an untrained recipe's own judges are not trained yet."""
    with_own = [one for one in opened if one.stage is not None]
    ready = (one for one in with_own if one.start is not None or not (one.stage and is_linked(one.stage)))
    return next(ready, opened[0])


def _prompts(stage: Stage, part: Part) -> tuple[Sequence[Prompt], str]:
    """The prompts that a stage is evaluated on, and which part of its task they are."""
    task = load_task(stage)
    prompts = task.test if part == "test" else task.validation
    return prompts[: stage.evaluation.num_prompts], "validation" if task.two_parts else part


def _read(test_file: Path, stage: Stage) -> Sequence[Prompt]:
    """The prompts of a file, worded as the stage's own task words those of its files."""
    own = stage.task.options if stage.task.kind == "file" else {}
    wording = {name: own[name] for name in ("template", "system", "chat", "prompt_column") if name in own}
    task = Component(kind="file", path=str(test_file), held_out_fraction=0.0, **wording)
    return load_task(stage.model_copy(update={"task": task})).train[: stage.evaluation.num_prompts]


def _prompts_of_all(
    opened: Sequence[Opened], yardstick: Yardstick, conditions: Conditions
) -> dict[str, Sequence[Prompt]]:
    """The prompts of every source. Raises RelgradError where one has other rewards, or other prompts than one of its seed."""
    one_test = conditions.on is not None or conditions.test_file is not None
    remedy = f"give --on {yardstick.source} to measure all as that one is"
    prompts: dict[str, Sequence[Prompt]] = {}
    of_seed: dict[int, Opened] = {}
    for one in opened:
        if one.stage is None or one.source == yardstick.source or conditions.on is not None:
            prompts[one.source] = yardstick.prompts
        else:
            own, shared = ([r.model_dump(mode="json") for r in s.judged_by] for s in (one.stage, yardstick.stage))
            if own != shared:
                raise RelgradError(
                    f"compare: {one.source} is judged by other rewards than {yardstick.source}: {_named(own)} there, "
                    f"{_named(shared)} here; {remedy}"
                )
            as_many = one.stage.model_copy(update={"evaluation": yardstick.stage.evaluation})
            prompts[one.source] = yardstick.prompts if one_test else _prompts(as_many, conditions.part)[0]
        first = of_seed.setdefault(seed_of(one), one) if one.stage is not None else one
        if difference := _first_difference(prompts[one.source], prompts[first.source]):
            raise RelgradError(
                f"compare: {one.source} is tested on other prompts than {first.source}: {difference}; {remedy}"
            )
    return prompts


def _require_common_prompts(groups: Sequence[Sequence[Opened]], prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Raise RelgradError where a contender cannot be paired with the first: one of them has one seed, and they share no prompts."""
    first = groups[0]
    for group in groups[1:]:
        if min(len(first), len(group)) > 1:
            continue
        pairs = [(one, other) for one in first for other in group]
        if all(_first_difference(prompts[a.source], prompts[b.source]) for a, b in pairs):
            one, other = pairs[0]
            raise RelgradError(
                f"compare: {other.source} (seed {seed_of(other)}) is tested on other prompts than {one.source} (seed "
                f"{seed_of(one)}): {_first_difference(prompts[other.source], prompts[one.source])}. Compare trainings of the same "
                f"seed or several seeds of both, or give --on {one.source}"
            )


def _named(rewards: Sequence[dict[str, Any]]) -> str:
    """Rewards as a message names them: their names or kinds, weights and other settings."""
    shown = []
    for reward in rewards:
        rest = ", ".join(f"{k}={v!r}" for k, v in reward.items() if k not in ("kind", "name") and v is not None)
        shown.append(f"{reward.get('name') or reward['kind']} ({rest})")
    return "; ".join(shown) or "none"


def _first_difference(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> str:
    """Where two lists of prompts first differ, in words; "" where they do not."""
    for number, (one, other) in enumerate(zip(prompts, others, strict=False), 1):
        if one.content != other.content:
            return f"prompt {number} is {one.text[:40]!r} there and {other.text[:40]!r} here"
    return "" if len(prompts) == len(others) else f"{len(prompts)} prompts there and {len(others)} here"


def _seen(opened: Opened, prompts: Sequence[Prompt]) -> str:
    """A warning where a trained source's task names some of these prompts as training prompts; "" where it does not.

    Tasks that make their prompts when they are asked for, and hold them apart themselves, are not looked through.
    """
    if opened.stage is None or opened.start is None:
        return ""
    trained = load_task(opened.stage).train
    if not isinstance(trained, list):
        return ""
    trained_texts = {prompt.text for prompt in trained}
    count = sum(prompt.text in trained_texts for prompt in prompts)
    return f"{opened.source} was trained on {count} of these {len(prompts)} prompts" if count else ""
