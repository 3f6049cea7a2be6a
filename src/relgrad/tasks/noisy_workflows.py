"""Descriptions of problems for which a workflow is to be written: how often each operator errs there, and what it costs.

The answer is one expression of the language of workflows (docs/workflows.md), and the reward `workflow` says what it is worth.
Kinds of problems belong to one part each by their own parameters (environments/workflows/described.py), so no part has a kind of
another.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import derived
from relgrad.core.settings import Strict
from relgrad.core.types import Message, Prompt
from relgrad.environments.workflows.described import (
    TEMPLATES,
    Kind,
    Part,
    described,
    draw_kind,
    judge_of,
    random_program,
)
from relgrad.environments.workflows.edits import Space
from relgrad.tasks import Task
from relgrad.tasks._rows import Wording, content_of

HELD_OUT_SEED = 11
MOST = 400
"""Kinds to judge by; of either part there are more than six hundred."""


class Settings(Strict):
    """What is described, and how.

    templates    each problem is described by one of them, with the fields {type}, {plain}, {careful}, {program}, {miss}, {fixes},
                 {careful_price}, {program_price} and {cost_weight}; none: described.TEMPLATES
    rates        fields are words (rarely, cheap) or numbers (10%, 1)
    cost_weight  right answers that a unit of cost is worth; `generate()` costs one
    max_size     operators of the largest workflow; the best of all is enumerated
    best_of      a demonstration is the best, by expected worth, of so many workflows that are drawn without regard to the problem
    """

    templates: tuple[str, ...] = ()
    rates: Literal["words", "numbers"] = "words"
    system: str | None = None
    chat: bool = False
    cost_weight: float = Field(0.05, ge=0)
    max_size: int = Field(5, ge=1, le=6)
    best_of: int = Field(1, ge=1)
    train_size: int = Field(20_000, ge=1)
    held_out_size: int = Field(100, ge=0, le=MOST, description="kinds to validate by")
    test_size: int | None = Field(None, ge=0, le=MOST, description="kinds to test by; null: as many as to validate by")

    @field_validator("templates")
    @classmethod
    def _have_known_fields(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        example = draw_kind("train", random.Random(0), 0.05)
        for template in templates:
            try:
                empty = not described(example, template, "words").strip()
            except RelgradError as error:
                raise ValueError(str(error)) from None
            if empty:
                raise ValueError("a template is empty; a description tells something of the problem")
        return templates


def load(settings: Settings, seed: int) -> Task:
    """Columns: `kind_of_problem` (plain data of environments/workflows/described.Kind), `max_size`, `seed` (of its problems), and
    `demonstration`, a workflow: with `best_of: 1` it teaches the language alone, with more something of the answer too.

    What is judged by depends on the settings alone, not on `seed`.
    """
    test_size = settings.held_out_size if settings.test_size is None else settings.test_size
    validation = _distinct("validation", settings.held_out_size, settings)
    test = _distinct("test", test_size, settings)
    return Task("noisy-workflows", Descriptions(settings, seed), validation, test or None, ask=_asker(settings))


class Descriptions(Sequence[Prompt]):
    """Prompts to train on, each made when it is asked for."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def __len__(self) -> int:
        return self.settings.train_size

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _prompt("train", index % len(self), self.seed, self.settings)


def _prompt(part: Part, number: int, seed: int, settings: Settings) -> Prompt:
    own_seed = derived(seed, "noisy workflows", part, number)
    draw = random.Random(own_seed)
    kind = draw_kind(part, draw, settings.cost_weight)
    text = described(kind, draw.choice(settings.templates or TEMPLATES), settings.rates)
    space = Space(max_size=settings.max_size)
    drawn = [random_program(space, draw) for _ in range(settings.best_of)]
    demonstration = drawn[0] if len(drawn) == 1 else max(drawn, key=judge_of(kind.model_dump(), space).worth)
    columns: Mapping[str, Any] = {
        "kind_of_problem": kind.model_dump(),
        "max_size": settings.max_size,
        "seed": own_seed,
        "demonstration": demonstration.text,
    }
    return Prompt(_worded(text, settings), columns, number)


def _distinct(part: Part, size: int, settings: Settings) -> list[Prompt]:
    """So many prompts of different kinds."""
    prompts: dict[str, Prompt] = {}
    for number in itertools.count():
        if len(prompts) == size:
            break
        prompt = _prompt(part, number, HELD_OUT_SEED, settings)
        prompts.setdefault(Kind(**prompt.columns["kind_of_problem"]).model_dump_json(), prompt)
    return list(prompts.values())


def _worded(text: str, settings: Settings) -> str | list[Message]:
    return content_of({}, Wording(system=settings.system, chat=settings.chat), text)


def _asker(settings: Settings) -> Callable[[str], str | Sequence[Message]]:
    return lambda text: _worded(text, settings)
