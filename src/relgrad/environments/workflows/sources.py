"""Where problems come from, by the `kind` that a recipe names, and how they are parted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import derived
from relgrad.core.settings import Component, NamesFiles, Strict, written_settings
from relgrad.environments.workflows import noisy
from relgrad.environments.workflows.problem import Problem, read_problems


class FileSettings(Strict):
    """A .jsonl file, and how many of its problems are taken, from the first."""

    path: Annotated[Path, NamesFiles()]
    limit: int | None = Field(None, ge=1)


def from_file(settings: FileSettings, seed: int) -> list[Problem]:
    """The file's problems in its order. Raises RelgradError."""
    return read_problems(settings.path)[: settings.limit]


@dataclass(frozen=True)
class Source:
    settings: type[BaseModel]
    load: Callable[[Any, int], list[Problem]]


KINDS = {"noisy": Source(noisy.Settings, noisy.problems), "file": Source(FileSettings, from_file)}


def settings_of(section: Component) -> Any:
    """The settings of a section. Raises RelgradError."""
    if section.kind not in KINDS:
        raise RelgradError(f"problems: unknown kind {section.kind!r}. Known: {', '.join(KINDS)}")
    return written_settings(section, KINDS[section.kind].settings, "problems")


def load(section: Component, seed: int) -> list[Problem]:
    """The problems of a section. Raises RelgradError."""
    settings = settings_of(section)
    return KINDS[section.kind].load(settings, seed)


def parted(problems: Sequence[Problem], test_share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(to search with, to test on): a share is drawn for the test, by type where problems have types. Neither is empty.

    Raises RelgradError for fewer than two problems.
    """
    if len(problems) < 2:
        raise RelgradError(
            f"problems: {len(problems)} problem cannot be parted into some to search with and some to test on"
        )
    by_type: dict[str, list[Problem]] = {}
    for problem in problems:
        by_type.setdefault(problem.type, []).append(problem)
    count = min(max(round(test_share * len(problems)), 1), len(problems) - 1)
    counts = _shared_out(count, {kind: len(own) for kind, own in by_type.items()}, seed)
    test: list[Problem] = []
    for kind, own in by_type.items():
        random.Random(derived(seed, "parted", kind)).shuffle(own)
        test += own[: counts[kind]]
    chosen = {problem.id for problem in test}
    return [problem for problem in problems if problem.id not in chosen], test


def _shared_out(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, int]:
    """How many of `count` fall to each type: in proportion, rounded down; the rest to the largest remainders, equal ones by lot."""
    total = sum(sizes.values())
    counts = {kind: count * size // total for kind, size in sizes.items()}
    kinds = list(sizes)
    random.Random(derived(seed, "parted")).shuffle(kinds)
    kinds.sort(key=lambda kind: count * sizes[kind] % total, reverse=True)
    for kind in kinds[: count - sum(counts.values())]:
        counts[kind] += 1
    return counts
