"""This machine: a shell script in a process group of its own, which goes on when the terminal is closed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil

from relgrad.core.errors import RelgradError
from relgrad.launch.following import follow_file
from relgrad.launch.job import Job
from relgrad.launch.script import EXIT_CODE, script
from relgrad.launch.target import Record, State

LOG = "job.log"
STOPPING = "stopping"
"""The file, in the job's folder, that says that SIGTERM was sent."""


class Local:
    file = "job.sh"
    away = False

    def write(self, job: Job) -> str:
        job.refuse("local", ("nodes", "image", "pip", "address", "compute"), "it runs here, in this environment")
        return script(job, sys.executable)

    def by_hand(self, record: Record) -> str:
        return f"bash {shlex.quote(str(record.folder / record.file))}"

    def submit(self, record: Record) -> dict[str, Any]:
        for left in (EXIT_CODE, STOPPING):
            (record.folder / left).unlink(missing_ok=True)
        with open(record.folder / LOG, "ab") as log:
            process = subprocess.Popen(
                ["bash", str(record.folder / record.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}

    def state(self, record: Record) -> State:
        if _process(record) is not None:
            return State("running", detail=f"pid {record.handle['pid']}")
        try:
            return ended((record.folder / EXIT_CODE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return State("lost", detail="it was killed")

    def follow(self, record: Record) -> State:
        return follow_file(record.folder / LOG, lambda: self.state(record))

    def stop(self, record: Record) -> None:
        """SIGTERM to the shell, which passes it on; a second one ends the whole group at once."""
        process = _process(record)
        if process is None:
            raise RelgradError(f"job {record.name} is not running")
        again = record.folder / STOPPING
        if not again.exists():
            again.touch()
            process.terminate()
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ended(text: str) -> State:
    """How a job ended, from the text of its exit code. Raises ValueError for what is none."""
    code = int(text)
    if code in (124, 130, 143):
        return State("stopped", code, "the same command continues")
    return State("failed" if code else "done", code)


def _process(record: Record) -> psutil.Process | None:
    """The job's shell, if it runs: another process may have its number by now."""
    try:
        process = psutil.Process(record.handle["pid"])
        same = abs(process.create_time() - record.handle["created"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


TARGET = Local()
