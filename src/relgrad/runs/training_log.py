"""`training.log`: what a stage told people while it ran, line by line with times, warnings and tracebacks included.

It is appended to when a run goes on, also by what is done again. Values that look like secrets are left out.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import IO

from relgrad.core.errors import Stopped
from relgrad.core.run_folder import RunDir
from relgrad.core.secrets import hide_known

FILE = "training.log"


class TrainingLog:
    """The log of one stage; a context manager that writes down how it ended. Nothing is written before the first line.

    An error that was raised in it is written with its traceback, and goes on.
    """

    def __init__(self, folder: RunDir) -> None:
        self.folder = folder
        self.file: IO[str] | None = None

    def write(self, text: str) -> None:
        """Add a text, with the time before its first line."""
        if not self.folder.writes:
            return
        if self.file is None:
            self.file = self._open()
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.file.write(f"{now}  {hide_known(text)}\n")
        self.file.flush()

    def _open(self) -> IO[str]:
        path = self.folder.root / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            self.folder.set_aside(FILE)
        return path.open("a", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a disk that is full is the error already
            if isinstance(error, Stopped):
                self.write(f"stopped: {error}")
            elif isinstance(error, KeyboardInterrupt):
                self.write("interrupted")
            elif error is not None:
                self.write("".join(traceback.format_exception(error)).rstrip())
            if self.file is not None:
                self.file.close()
