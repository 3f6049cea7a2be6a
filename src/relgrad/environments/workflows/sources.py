"""Where problems come from, by the `kind` that a recipe names, and how they are parted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
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
    test: list[Problem] = []
    for kind, own in by_type.items():
        random.Random(derived(seed, "parted", kind)).shuffle(own)
        test += own[: round(test_share * len(own))]
    test = test or [problems[-1]]
    chosen = {problem.id for problem in test}
    search = [problem for problem in problems if problem.id not in chosen]
    return (search, test) if search else ([test[0]], test[1:])
