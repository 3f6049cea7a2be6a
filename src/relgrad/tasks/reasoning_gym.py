"""Generated tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym): one task by name, as many prompts
as asked for. The reward of the same name asks the task's own verifier.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._rows import Wording, asker, content_of

_ROUNDS = 20
"""How many times the wanted number of prompts is generated before a task counts as too small."""


class Settings(Wording):
    """A task's name and its parameters, as reasoning-gym documents them; a template may use {question}."""

    task: str = Field(description="a reasoning-gym name, for example countdown or chain_sum")
    params: dict[str, Any] = Field(default_factory=dict, description="the task's own parameters")
    train_size: int = Field(2000, ge=1)
    held_out_size: int = Field(200, ge=0, description="prompts to validate by")
    test_size: int | None = Field(
        None, ge=0, description="prompts to test by; null: as many as to validate by, as far as the task has others"
    )

    @field_validator("params")
    @classmethod
    def _legal(cls, params: dict[str, Any]) -> dict[str, Any]:
        if reserved := {"seed", "size"} & set(params):
            raise ValueError(
                f"{' and '.join(sorted(reserved))} cannot be set here; use seed, train_size, held_out_size and test_size"
            )
        return params


def load(settings: Settings, seed: int) -> Task:
    """Distinct prompts to validate and to test by, and training prompts none of which is among them.

    Columns: `question`, `answer`, `metadata` (the verifier reads it), and `task` and `params`, which name the verifier.
    Raises RelgradError for an unknown task or parameter, or a task with too few distinct prompts.
    """
    held_out = _draw(settings, f"{seed}/held_out", settings.held_out_size, set(), distinct=True)
    questions = {entry["question"] for entry in held_out}
    train = _draw(settings, f"{seed}/train", settings.train_size, questions, distinct=False)
    questions |= {entry["question"] for entry in train}
    if settings.test_size is None:
        test = _drawn(settings, f"{seed}/test", settings.held_out_size, questions, distinct=True)
    else:
        test = _draw(settings, f"{seed}/test", settings.test_size, questions, distinct=True)
    ids = itertools.count()
    parts = [[_prompt(entry, next(ids), settings) for entry in part] for part in (train, held_out, test)]
    return Task(settings.task, parts[0], parts[1], parts[2] or None, ask=asker(settings))


def _draw(settings: Settings, seed: str, size: int, avoid: set[str], *, distinct: bool) -> list[dict[str, Any]]:
    """As `_drawn`. Raises RelgradError where there are fewer."""
    entries = _drawn(settings, seed, size, avoid, distinct=distinct)
    if len(entries) < size:
        raise RelgradError(
            f"reasoning_gym {settings.task!r}: only {len(entries)} usable prompts in {_ROUNDS * size} drawn, {size} wanted (the "
            "parts must differ); make the task larger through params, or lower the sizes"
        )
    return entries


def _drawn(settings: Settings, seed: str, size: int, avoid: set[str], *, distinct: bool) -> list[dict[str, Any]]:
    """Up to `size` entries whose question is not in `avoid`, and where `distinct` all different."""
    used = set(avoid)
    entries: list[dict[str, Any]] = []
    for entry in _entries(settings, random.Random(seed), size) if size else ():
        if entry["question"] in used:
            continue
        if distinct:
            used.add(entry["question"])
        entries.append(entry)
        if len(entries) == size:
            break
    return entries


def _entries(settings: Settings, numbers: random.Random, size: int) -> Iterator[dict[str, Any]]:
    for _ in range(_ROUNDS):
        # A task seeds entry i with seed + i, so seeds are drawn far apart.
        generator = create(settings.task, settings.params, numbers.getrandbits(31), size)
        yield from (generator[i] for i in range(size))


def create(task: str, params: Mapping[str, Any], seed: int, size: int) -> Any:
    """The reasoning-gym dataset. Raises RelgradError naming the nearest task or the parameters that there are."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise RelgradError("task reasoning_gym needs reasoning-gym; pip install 'relgrad[gym]'") from None
    if task == "composite":
        raise RelgradError("reasoning_gym: 'composite' is a mixture, not a task; name one task (or one per stage)")
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, 5, cutoff=0.4)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(DATASETS))}"
        raise RelgradError(f"reasoning_gym has no task {task!r} ({len(DATASETS)} others); {hint}")
    allowed = sorted(set(DATASETS[task][1].__dataclass_fields__) - {"seed", "size"})
    if unknown := sorted(set(params) - set(allowed)):
        raise RelgradError(f"reasoning_gym {task!r}: unknown params {', '.join(unknown)}; known: {', '.join(allowed)}")
    try:
        return reasoning_gym.create_dataset(task, **copy.deepcopy(dict(params)), seed=seed, size=size)
    except (AssertionError, ValueError, TypeError) as error:
        raise RelgradError(f"reasoning_gym {task!r} refuses params {dict(params)}: {error}") from None


def _prompt(entry: dict[str, Any], id: int, settings: Settings) -> Prompt:
    columns = {
        "question": entry["question"],
        "answer": entry["answer"],
        "metadata": entry["metadata"],
        "task": settings.task,
        "params": settings.params,
    }
    try:
        return Prompt(content_of(columns, settings, entry["question"]), columns, id)
    except ValueError as error:
        raise RelgradError(f"reasoning_gym {settings.task!r}: {error}") from None
