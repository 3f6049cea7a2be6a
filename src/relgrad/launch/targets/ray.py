"""A Ray cluster: a job of its Jobs API, on one node that has the GPUs.

The job file holds the arguments of `JobSubmissionClient.submit_job`, which are the body of the REST API's POST /api/jobs/ too
(https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html); a new `submission_id` is added whenever it is
sent. The working directory is uploaded (up to 500 MiB, `excludes` in the file). Ray sends SIGTERM to every process of a job itself,
and kills after RAY_JOB_STOP_WAIT_TIME_S seconds. Values of secrets are put into the request when it is sent, and kept by the
cluster: who reaches its dashboard can read them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from relgrad.core.errors import RelgradError
from relgrad.launch.job import Job, refuse_secret
from relgrad.launch.job_yaml import as_yaml
from relgrad.launch.script import script
from relgrad.launch.target import Record, State, Word

Result = TypeVar("Result")

INSTALL = "pip install 'relgrad[ray]'"
DEFAULT = "http://127.0.0.1:8265"
EXCLUDED = ("/.git", "/.venv", "/runs", "**/__pycache__")
TO_SAVE = 600
"""Seconds that a job which is stopped has to end its step and save."""
WORDS: dict[str, Word] = {
    "PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "done", "STOPPED": "stopped", "FAILED": "failed",
}  # fmt: skip


class Ray:
    file = "job.yaml"
    away = True

    def write(self, job: Job) -> str:
        job.refuse("ray", ("nodes",), "a job of Ray has one node; use --to slurm, or torchrun on every machine")
        job.refuse("ray", ("compute",), "the cluster is there already; say where with --address")
        environment: dict[str, Any] = {
            "working_dir": str(job.directory),
            "excludes": list(EXCLUDED),
            "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(TO_SAVE)},
        }
        environment |= {"pip": list(job.pip)} if job.pip else {}
        environment |= {"image_uri": job.image} if job.image is not None else {}
        text = script(job, "python", directory=False, forward=False, record=False)
        request: dict[str, Any] = {
            "entrypoint": f"bash -c {shlex.quote(text)}",
            "entrypoint_num_cpus": job.processes if not job.gpus else 1,
            "runtime_env": environment,
            "metadata": {"recipe": job.recipe, "run": str(job.run)},
        }
        request |= {"entrypoint_num_gpus": job.gpus} if job.gpus else {}
        return as_yaml(request)

    def by_hand(self, record: Record) -> str:
        return record.command("start")

    def submit(self, record: Record) -> dict[str, Any]:
        request = yaml.safe_load((record.folder / record.file).read_text(encoding="utf-8"))
        address = address_of(record.handle.get("address"))
        variables = request.setdefault("runtime_env", {}).setdefault("env_vars", {})
        variables |= {name: os.environ[name] for name in record.secrets}
        client = client_at(address)
        request["submission_id"] = f"{record.name}-{secrets.token_hex(4)}"  # is used once on a cluster, by whomever
        number = reached(address, lambda: client.submit_job(**request))
        return {"address": address, "id": str(number)}

    def state(self, record: Record) -> State:
        address, number = record.handle["address"], record.handle["id"]
        client = client_at(address)
        details = reached(address, lambda: client.get_job_info(number))
        word = WORDS.get(str(details.status), "failed")
        code = details.driver_exit_code
        if word == "failed" and code in (124, 130, 143):
            word = "stopped"
        return State(word, 0 if word == "done" else code, "" if word == "done" else str(details.message or ""))

    def follow(self, record: Record) -> State:
        address, number = record.handle["address"], record.handle["id"]
        client = client_at(address)

        async def show() -> None:
            async for lines in client.tail_job_logs(number):
                print(lines, end="", flush=True)

        reached(address, lambda: asyncio.run(show()))
        return self.state(record)

    def stop(self, record: Record) -> None:
        address = record.handle["address"]
        client = client_at(address)
        if not reached(address, lambda: client.stop_job(record.handle["id"])):
            raise RelgradError(f"job {record.name} is not running")


def address_of(given: str | None) -> str:
    """The address of the cluster's job server: the one given, what Ray's own variables say, or this machine's.

    Raises RelgradError for one with a password, since it is kept.
    """
    set_here = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    address = given or (set_here if set_here.startswith("http") else DEFAULT)
    refuse_secret("the address of the Ray cluster", address)
    return address


def client_at(address: str) -> Any:
    """Ray's client. Raises RelgradError without Ray, and where no cluster answers."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise RelgradError(f"--to ray needs Ray: {INSTALL}") from None
    return reached(address, lambda: JobSubmissionClient(address))


def reached(address: str, ask: Callable[[], Result]) -> Result:
    """What Ray's client returns; what it raises as RelgradError."""
    try:
        return ask()
    except (ConnectionError, OSError) as error:
        raise RelgradError(
            f"no Ray cluster answers at {address} ({type(error).__name__}). Start one with `ray start --head`, or say where it is: "
            "--address http://HOST:8265"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise RelgradError(f"Ray at {address} refused: {str(error).strip()[:600]}") from None


TARGET = Ray()
