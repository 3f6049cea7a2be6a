"""Grade-school mathematics: GSM8K's files as published, lines of `question` and `answer`, a solution that ends in `#### 72`.

Cobbe et al. 2021, https://github.com/openai/grade-school-math. The reward of the same name scores.
"""

from __future__ import annotations

from pydantic import Field

from relgrad.tasks import Task
from relgrad.tasks._files import FileSettings, load_files


class Settings(FileSettings):
    """`path` is train.jsonl, `test_path` test.jsonl."""

    prompt_column: str = Field("question", description="text or a list of {role, content}; not read with a template")


def load(settings: Settings, seed: int) -> Task:
    """Raises RelgradError for a missing, broken or empty file, or one without the needed columns."""
    return load_files(settings, seed, lambda row: {**row, "answer": row["answer"]})
