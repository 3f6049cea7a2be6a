"""What a target is: it writes a job in its own format, starts it, and is asked what became of it. One file a target."""

from __future__ import annotations

import importlib
import pkgutil
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from relgrad.core.errors import RelgradError
from relgrad.launch.job import Job

Word = Literal["waiting", "running", "done", "stopped", "failed", "lost"]
DEFAULT_OUT = "runs"
"""The folder in which `relgrad jobs` looks, without --out."""
ENDED: frozenset[Word] = frozenset({"done", "stopped", "failed", "lost"})


@dataclass(frozen=True)
class State:
    """What became of a job, in the target's own words too.

    word  lost: it is gone, and nobody knows how it ended
    code  its exit code, where the target tells it
    """

    word: Word
    code: int | None = None
    detail: str = ""

    @property
    def ended(self) -> bool:
        return self.word in ENDED


@dataclass(frozen=True)
class Record:
    """A job as it is kept (records.py).

    file    the job file, in the target's format
    handle  what the target finds the job by: a process, a number, an address; empty: it was not submitted
    """

    name: str
    target: str
    run: Path
    folder: Path
    file: str
    secrets: tuple[str, ...] = ()
    submitted: str = ""
    handle: dict[str, Any] = field(default_factory=dict)

    def command(self, action: Literal["start", "stop", "logs"]) -> str:
        """The command that does this to the job, typed in the working directory."""
        out = self.folder.absolute().parents[2]
        words = ["relgrad", "jobs", action, self.name]
        if out.resolve() != Path(DEFAULT_OUT).resolve():
            words += ["--out", str(out)]
        return shlex.join(words)


@runtime_checkable
class Target(Protocol):
    """Where jobs are started. All but `write` and `by_hand` raise RelgradError for a target that cannot be reached."""

    file: str
    """What the job file is called."""
    away: bool
    """Whether its machines see other files than this one: then the run needs storage of its own."""

    def write(self, job: Job) -> str:
        """The job file. Raises RelgradError for settings that the target cannot have."""
        ...

    def by_hand(self, record: Record) -> str:
        """The command that submits the job file without relgrad, for people."""
        ...

    def submit(self, record: Record) -> dict[str, Any]:
        """Start what the file says; the handle."""
        ...

    def state(self, record: Record) -> State: ...

    def follow(self, record: Record) -> State:
        """Print the job's log until it has ended."""
        ...

    def stop(self, record: Record) -> None:
        """Let it end with a checkpoint."""
        ...


def names() -> tuple[str, ...]:
    """All targets: the files of targets/."""
    package = importlib.import_module("relgrad.launch.targets")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def target(name: str) -> Target:
    """The target of this name. Raises RelgradError, naming those there are."""
    if name not in names():
        raise RelgradError(f"--to {name}: no such target; there are {', '.join(names())}")
    offered = vars(importlib.import_module(f"relgrad.launch.targets.{name}")).get("TARGET")
    if not isinstance(offered, Target):
        raise RelgradError(f"relgrad/launch/targets/{name}.py offers no TARGET (see relgrad/launch/target.py)")
    return offered
