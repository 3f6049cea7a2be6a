"""What is to be started: everything that `relgrad submit` knows before a target writes it down in its own format."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import NAME, PREFIX

LAST_MINUTES = 5
"""Minutes before a time limit in which a run has to end its step and save."""
IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Job:
    """One run to be started.

    name        of the job; the run's own name with a number
    recipe      a path, or the name of a built-in recipe, as the job's machine finds it
    overrides   `key.sub=value`
    run         the run's folder as the job's machine sees it, `storage/name`
    folder      the job's own folder on this machine, beside the run
    directory   the working directory of the job, on this machine
    processes   on every node
    gpus        on every node; 0: none is asked for
    hours       after which the job ends, with a checkpoint; None: no limit
    image       a container image
    pip         requirements to install first
    secrets     names of environment variables that the job needs; their values are nowhere in it
    retries     how often a run that was lost is started again
    evaluate    whether `relgrad evaluate` follows
    address     of the target's server; None: the target's own default
    compute     the partition, or the compute configuration
    """

    name: str
    recipe: str
    run: Path
    folder: Path
    directory: Path
    overrides: tuple[str, ...] = ()
    processes: int = 1
    nodes: int = 1
    gpus: int = 0
    hours: float | None = None
    image: str | None = None
    pip: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    retries: int = 0
    evaluate: bool = False
    address: str | None = None
    compute: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def refuse(self, target: str, settings: Sequence[str], why: str) -> None:
        """Raise RelgradError where one of these settings was given to a target that has no use for it."""
        for setting in settings:
            if dict(vars(self))[setting] not in (None, (), 0, 1):
                raise RelgradError(f"--{setting} has no meaning with --to {target}: {why}")


def require_hours(hours: float | None) -> None:
    """Raise RelgradError for a time that is no time."""
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise RelgradError(f"--hours {hours:g}: give a positive number of hours")


def secret_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Names of variables from `NAME` or `env:NAME`, each once.

    Raises RelgradError for what is no name, without repeating it, and for a variable that is not set.
    """
    names = [text.removeprefix(PREFIX) for text in texts]
    for name in names:
        if not NAME.fullmatch(name):
            raise RelgradError(
                "--secret takes the name of an environment variable, for example --secret HF_TOKEN, and never its value "
                f"(received {len(name)} characters that are no name)"
            )
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise RelgradError(f"the job needs the environment variable {name}, which {state} here; export {name}=...")
    return tuple(dict.fromkeys(names))


def name_for(run: str, taken: Sequence[str]) -> str:
    """A name for another job of a run, which targets and file systems take: `quick-2` after `quick-1`."""
    base = IN_NAMES.sub("-", run).strip("-.") or "run"
    number = 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"
