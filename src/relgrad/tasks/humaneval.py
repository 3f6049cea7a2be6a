"""Functions to finish: HumanEval.jsonl as published, a function's head and docstring, to be tested by `check`.

Chen et al. 2021, https://github.com/openai/human-eval (unpack HumanEval.jsonl.gz). The reward `code` scores.
"""

from __future__ import annotations

from relgrad.tasks import Task
from relgrad.tasks._files import FileSettings, load_files
from relgrad.tasks._rows import Row


class Settings(FileSettings):
    """All problems are in one file: what is to validate and to test by is split off."""


def load(settings: Settings, seed: int) -> Task:
    """Raises RelgradError for a missing, broken or empty file, or one without the needed columns."""
    return load_files(settings, seed, _prepared)


def _prepared(row: Row) -> Row:
    """With `before` (the prompt, which the program goes on from), `setup` (helpers in the prompt that tests use) and `tests`."""
    return {
        **row,
        "before": row["prompt"],
        "setup": row["prompt"],
        "tests": row["test"],
        "entry_point": row["entry_point"],
    }
