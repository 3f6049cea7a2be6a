"""Anyscale: the YAML of a job, submitted by its own SDK.

Fields as the reference of JobConfig names them (https://docs.anyscale.com/reference/job-api): `name`, `entrypoint`, `working_dir`,
`excludes`, `image_uri`, `requirements`, `compute_config`, `env_vars`, `max_retries`, `timeout_s`. Functions as the SDK's reference
has them (https://docs.anyscale.com/reference/sdk/job): submit, status, terminate, wait, get_logs. None of it was ever run against
Anyscale.

The job runs on the head node, so the compute configuration names a head with the GPUs. The script starts a run that was lost again;
Anyscale itself does not (`max_retries` is 0, or the two would multiply), so that a lost machine ends the job: `relgrad jobs start`
continues it. Values of secrets are added when it is submitted.
"""

from __future__ import annotations

import os
import shlex
import time
from typing import Any

import yaml

from relgrad.core.errors import RelgradError
from relgrad.launch.job import Job
from relgrad.launch.job_yaml import as_yaml
from relgrad.launch.script import script
from relgrad.launch.target import Record, State, Word

INSTALL = "pip install anyscale, then `anyscale login`"
EXCLUDED = ("**/.git", "**/.venv", "**/runs", "**/__pycache__")
WORDS: dict[str, Word] = {
    "STARTING": "waiting", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "UNKNOWN": "lost",
}  # fmt: skip


class Anyscale:
    file = "job.yaml"
    away = True

    def write(self, job: Job) -> str:
        job.refuse("anyscale", ("nodes",), "the run is on the head node; choose one with more GPUs")
        job.refuse("anyscale", ("address",), "`anyscale login` knows where it is")
        if job.gpus and job.compute is None:
            raise RelgradError(
                f"--gpus {job.gpus} with --to anyscale: name the compute configuration whose head node has them, --compute NAME"
            )
        text = script(job, "python", directory=False, forward=False, record=False)
        config: dict[str, Any] = {
            "name": job.name,
            "entrypoint": f"bash -c {shlex.quote(text)}",
            "working_dir": str(job.directory),
            "excludes": list(EXCLUDED),
            "env_vars": {"PYTHONUNBUFFERED": "1"},
            "max_retries": 0,
        }
        config |= {"image_uri": job.image} if job.image is not None else {}
        config |= {"requirements": list(job.pip)} if job.pip else {}
        config |= {"compute_config": job.compute} if job.compute is not None else {}
        config |= {"timeout_s": round(3600 * job.hours)} if job.hours is not None else {}
        return as_yaml(config)

    def by_hand(self, record: Record) -> str:
        named = "".join(f' --env {name}="${name}"' for name in record.secrets)
        return f"anyscale job submit --config-file {shlex.quote(str(record.folder / record.file))}{named}"

    def submit(self, record: Record) -> dict[str, Any]:
        anyscale = _library()
        config = yaml.safe_load((record.folder / record.file).read_text(encoding="utf-8"))
        config.setdefault("env_vars", {}).update({name: os.environ[name] for name in record.secrets})
        return {"id": str(anyscale.job.submit(anyscale.job.models.JobConfig(**config)))}

    def state(self, record: Record) -> State:
        word = str(_library().job.status(id=record.handle["id"]).state).rpartition(".")[2]
        return State(WORDS.get(word, "failed"), 0 if word == "SUCCEEDED" else None, word)

    def follow(self, record: Record) -> State:
        job = _library().job
        while not (now := self.state(record)).ended:
            time.sleep(15)
        print(job.get_logs(id=record.handle["id"]))
        return now

    def stop(self, record: Record) -> None:
        _library().job.terminate(id=record.handle["id"])


def _library() -> Any:
    try:
        import anyscale
        import anyscale.job.models
    except ImportError:
        raise RelgradError(f"--to anyscale needs Anyscale's library: {INSTALL}") from None
    return anyscale


TARGET = Anyscale()
