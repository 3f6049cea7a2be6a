"""Functions to write: mbpp.jsonl or sanitized-mbpp.json as published, a sentence and three assertions.

Austin et al. 2021, https://github.com/google-research/google-research/tree/master/mbpp. The reward `code` scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._files import FileSettings, load_files, prompts_in
from relgrad.tasks._rows import HELD_OUT, Parts, Row, task_of

TEMPLATE = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{shown_tests}\n"
)
"""The authors' wording, without their [BEGIN] and [DONE]."""
TEST, VALIDATION, TRAIN = range(11, 511), range(511, 601), range(601, 975)
"""The authors' parts, by `task_id`; 1 to 10 are examples for prompts."""


class Settings(FileSettings):
    """A template may use `text`, `shown_tests` and every column."""

    template: str | None = Field(TEMPLATE, description="built from columns with str.format")
    split: Literal["published", "fractions"] = Field(
        "published", description="the authors' parts, by task_id; or fractions and files of your own"
    )

    @model_validator(mode="after")
    def _one_split(self) -> Settings:
        own = self.held_out_path or self.test_path or self.test_fraction or self.held_out_fraction != HELD_OUT
        if self.split == "published" and own:
            raise ValueError("parts of your own need split: fractions; the published ones go by task_id")
        return self


def load(settings: Settings, seed: int) -> Task:
    """Raises RelgradError for a missing, broken or empty file, one without the needed columns, or without problems of a part."""
    if settings.split == "fractions":
        return load_files(settings, seed, _prepared)
    prompts = prompts_in(settings.path, settings, _prepared)
    train, validation, test = (_part(prompts, part, settings, name) for name, part in _PARTS.items())
    return task_of(settings.path.stem, Parts(train[: settings.limit], validation, test), settings, seed)


_PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def _part(prompts: Sequence[Prompt], numbers: range, settings: Settings, name: str) -> list[Prompt]:
    chosen = [prompt for prompt in prompts if prompt.columns["task_id"] in numbers]
    if not chosen:
        raise RelgradError(
            f"{settings.path}: no problem with a task_id of {numbers.start} to {numbers.stop - 1}, the published {name} part; "
            "say split: fractions for parts of your own"
        )
    return chosen


def _prepared(row: Row) -> Row:
    """With `text` (sanitized files call it `prompt`), `setup` and `tests`, as the reward `code` wants them."""
    text = row["text"] if "text" in row else row["prompt"]
    setup = "\n".join([*row.get("test_imports", ()), row.get("test_setup_code") or ""]).strip()
    tests = row["test_list"]
    return {
        **row,
        "task_id": row["task_id"],
        "text": text,
        "setup": setup,
        "tests": tests,
        "shown_tests": "\n".join(tests),
    }
