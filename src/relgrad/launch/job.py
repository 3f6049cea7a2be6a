"""What is to be started: everything that `relgrad submit` knows before a target writes it down in its own format."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import LITERAL, NAME, PREFIX

LAST_MINUTES = 5
"""Minutes before a time limit in which a run has to end its step and save."""
SHORTEST_MINUTES = 2 * LAST_MINUTES
"""The shortest time limit: as long again for the work itself."""
TOKEN_IN_URL = re.compile(r"(?<=https://)[^/\s@]{8,}(?=@)|(?<=http://)[^/\s@]{8,}(?=@)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
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
    max_hours   the recipe's own limit of a training; None: none
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
    max_hours: float | None = None
    image: str | None = None
    pip: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    retries: int = 0
    evaluate: bool = False
    address: str | None = None
    compute: str | None = None

    def __post_init__(self) -> None:
        """Raise RelgradError for what may not be in a job file: control characters, which end its lines, and secrets."""
        for setting, value in vars(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, (str, Path)) and CONTROL.search(str(text)):
                    raise RelgradError(
                        f"the job's {setting} is {str(text)!r}: a job file cannot have the control character in it; leave it out"
                    )
        for option, texts in (
            ("--address", (self.address,)),
            ("--compute", (self.compute,)),
            ("--image", (self.image,)),
            ("--pip", self.pip),
        ):
            for text in texts:
                refuse_secret(option, text or "")

    def refuse(self, target: str, settings: Sequence[str], why: str) -> None:
        """Raise RelgradError where one of these settings was given to a target that has no use for it."""
        for setting in settings:
            if dict(vars(self))[setting] not in (None, (), 0, 1):
                raise RelgradError(f"--{setting} has no meaning with --to {target}: {why}")


def refuse_secret(where: str, text: str) -> None:
    """Raise RelgradError, without repeating it, for a text with a known kind of token, or a URL with a password or a token."""
    if LITERAL.search(text) or TOKEN_IN_URL.search(text):
        raise RelgradError(
            f"{where}: this looks like a secret (a token, or a password in a URL), and job files are kept. Leave it out, and let "
            "the job's machines know it: pip, for one, reads ~/.netrc there"
        )


def require_hours(hours: float | None) -> None:
    """Raise RelgradError for a time that is no time, or too short a one."""
    if hours is None:
        return
    if not (math.isfinite(hours) and hours > 0):
        raise RelgradError(f"--hours {hours:g}: give a positive number of hours")
    if 60 * hours < SHORTEST_MINUTES:
        raise RelgradError(
            f"--hours {hours:g} is {60 * hours:.3g} minutes: the last {LAST_MINUTES} are kept for the step in progress and its "
            f"checkpoint, so give at least {SHORTEST_MINUTES} minutes, --hours {math.ceil(100 * SHORTEST_MINUTES / 60) / 100:g}"
        )


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
