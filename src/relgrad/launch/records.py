"""Jobs as they are kept, beside the run that they work on: `runs/<name>/jobs/<job>/` with the job file and `job.json`.

The files are this machine's, also where the run itself lies on a cluster's storage. No value of a secret is in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import write_json
from relgrad.launch.target import Record

FOLDER = "jobs"
FILE = "job.json"


def names_in(out: Path) -> list[str]:
    """The names of jobs that are taken, of all runs of a folder."""
    return sorted(path.name for path in out.glob(f"*/{FOLDER}/*"))


def keep(record: Record) -> None:
    """Write the record into its folder."""
    write_json(record.folder / FILE, {**asdict(record), "run": str(record.run), "folder": str(record.folder)})


def submitted(record: Record, handle: Mapping[str, Any]) -> Record:
    """The record of a job that was just submitted, kept."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    record = replace(record, handle=dict(handle), submitted=now)
    keep(record)
    return record


def read(folder: Path) -> Record:
    """The record of a job's folder. Raises RelgradError for one that cannot be read."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data |= {"run": Path(data["run"]), "folder": folder, "secrets": tuple(data["secrets"])}
        return Record(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RelgradError(f"{path} cannot be read ({type(error).__name__}: {error})") from None


def all_in(out: Path) -> list[Record]:
    """The jobs of all runs of a folder, oldest first. Raises RelgradError where there is no such folder."""
    if not out.is_dir():
        raise RelgradError(
            f"{out} is no folder (working directory {Path.cwd()}): give the one that holds the runs, --out"
        )
    records = [read(path.parent) for path in out.glob(f"*/{FOLDER}/*/{FILE}")]
    return sorted(records, key=lambda record: (record.submitted or "~", record.name))


def find(out: Path, name: str) -> Record:
    """One job by its name, its folder, or the folder of its run: the newest.

    Raises RelgradError that names those there are, and for a name that several have.
    """
    records = all_in(out)
    named = [record for record in records if record.name == name]
    if len(named) > 1:
        folders = " and ".join(str(record.folder) for record in named)
        raise RelgradError(f"several jobs are called {name}: give the folder of the one that you mean, {folders}")
    if named:
        return named[0]
    for record in records:
        if record.folder.resolve() == Path(name).resolve():
            return record
    if Path(name).is_dir():
        of_run = [record for record in records if record.folder.parents[1].resolve() == Path(name).resolve()]
        if of_run:
            return of_run[-1]
        raise RelgradError(f"{name} is no run that a job works on: it has no {FOLDER} folder with a {FILE}")
    known = ", ".join(record.name for record in records) or "none"
    raise RelgradError(f"no job {name!r} in {out}; there are: {known}")
