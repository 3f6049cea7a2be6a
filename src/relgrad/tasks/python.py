"""A task that the Python script which started the run has built by hand (`relgrad.train`)."""

from __future__ import annotations

from pydantic import Field

from relgrad.core import live
from relgrad.core.settings import Strict
from relgrad.tasks import Task


class Settings(Strict):
    """`relgrad.train` writes this section."""

    task: str = Field(description="where it comes from")
    run: str = Field(description="the folder of the run that it was given for")


def load(settings: Settings, seed: int) -> Task:
    """The task as it is; `seed` changes nothing. Raises RelgradError in any process but the script's own."""
    task: Task = live.find(settings.run, settings.task)
    return task
