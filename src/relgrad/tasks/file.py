"""Prompts from a file on disk: JSON lines, JSON, CSV or Parquet."""

from __future__ import annotations

from relgrad.tasks import Task
from relgrad.tasks._files import FileSettings, load_files


class Settings(FileSettings):
    """A file of rows; those to validate and to test by come from other files, or are split off the first."""


def load(settings: Settings, seed: int) -> Task:
    """Read the file(s). Raises RelgradError for a missing, broken or empty file, or one without the needed column."""
    return load_files(settings, seed)
