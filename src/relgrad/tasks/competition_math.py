"""Competition mathematics: MATH's problems, one a line, with `problem` and `solution`, whose answer is in its last \\boxed{...}.

Hendrycks et al. 2021, https://github.com/hendrycks/math. Its files hold one problem each; `jq -c . */*.json` puts a folder of them
into lines. The reward of the same name scores.
"""

from __future__ import annotations

from pydantic import Field

from relgrad.tasks import Task
from relgrad.tasks._files import FileSettings, load_files


class Settings(FileSettings):
    """A line is a problem."""

    prompt_column: str = Field("problem", description="text or a list of {role, content}; not read with a template")


def load(settings: Settings, seed: int) -> Task:
    """Raises RelgradError for a missing, broken or empty file, or one without the needed columns."""
    return load_files(settings, seed, lambda row: {**row, "solution": row["solution"]})
