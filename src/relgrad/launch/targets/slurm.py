"""A Slurm cluster: an `sbatch` script. Its nodes see this folder under the same path, and use this Python.

Directives as the manual of sbatch describes them (https://slurm.schedmd.com/sbatch.html): `--signal=B:TERM@SECONDS` sends SIGTERM
to the script alone before the time limit, which passes it on; `--requeue` lets Slurm start a job again that was preempted or whose
node failed; `--open-mode=append` keeps one log. The environment of whoever submits is handed on (sbatch's own default), secrets
with it. With several nodes `srun` starts one launcher on each (`relgrad run --nodes`, torchrun's library), and they meet at the
first node.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.launch.following import follow_file
from relgrad.launch.job import LAST_MINUTES, Job
from relgrad.launch.script import EXIT_CODE, script
from relgrad.launch.target import Record, State, Word
from relgrad.launch.targets.local import ended

LOG = "job.log"
PORT = 29500
IN_DIRECTIVES = re.compile(r"""[\s'"%\\#]""")
"""What a directive's value may not have in it."""
WORDS: dict[str, Word] = {
    "PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "waiting", "SUSPENDED": "waiting", "RUNNING": "running",
    "COMPLETING": "running", "COMPLETED": "done", "CANCELLED": "stopped", "TIMEOUT": "stopped", "PREEMPTED": "stopped",
}  # fmt: skip
"""Job states of squeue and sacct; all others have failed."""


class Slurm:
    file = "job.sbatch"
    away = False

    def write(self, job: Job) -> str:
        job.refuse("slurm", ("pip",), "activate an environment that has it before you submit; its Python is used")
        job.refuse("slurm", ("address",), "sbatch knows its cluster")
        launcher = "srun --nodes=$SLURM_NNODES --ntasks-per-node=1" if job.nodes > 1 else ""
        containing = ["apptainer", "exec", *(["--nv"] if job.gpus else []), job.image or ""]
        container = shlex.join(containing) if job.image is not None else ""
        meeting = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):' + str(PORT)
        python = "python" if job.image is not None else sys.executable
        return script(job, python, header=_directives(job), launcher=launcher, container=container, rendezvous=meeting)

    def by_hand(self, record: Record) -> str:
        return f"sbatch {shlex.quote(str(record.folder / record.file))}"

    def submit(self, record: Record) -> dict[str, Any]:
        (record.folder / EXIT_CODE).unlink(missing_ok=True)
        printed = call("sbatch", "--parsable", str(record.folder / record.file))
        number = printed.strip().partition(";")[0]
        if not number.isdecimal():
            raise RelgradError(f"sbatch printed no job number but {printed.strip()[:200]!r}")
        return {"job": number}

    def state(self, record: Record) -> State:
        """squeue knows jobs that have not ended, sacct (where there is accounting) the others; and the script keeps its code."""
        job = str(record.handle["job"])
        try:
            queued = call("squeue", "--noheader", "--jobs", job, "--format", "%T").strip()
        except RelgradError:
            queued = ""  # a job that it has forgotten is an error to it
        if queued:
            return _state(queued.splitlines()[0])
        try:
            return ended((record.folder / EXIT_CODE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass
        past = call("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job, "--format", "State,ExitCode")
        if not past.strip():
            return State("lost", detail="neither squeue nor sacct knows it")
        word, code = past.splitlines()[0].split("|")[:2]
        return _state(word, int(code.partition(":")[0]))

    def follow(self, record: Record) -> State:
        return follow_file(record.folder / LOG, lambda: self.state(record), pause=5.0)

    def stop(self, record: Record) -> None:
        call("scancel", "--batch", "--signal=TERM", str(record.handle["job"]))


def _directives(job: Job) -> list[str]:
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--output={job.folder / LOG}",
        "--open-mode=append",
        f"--signal=B:TERM@{60 * LAST_MINUTES}",
    ]
    options += [f"--gpus-per-node={job.gpus}"] if job.gpus else []
    options += [f"--time={math.ceil(60 * job.hours)}"] if job.hours is not None else []
    options += [f"--partition={job.compute}"] if job.compute is not None else []
    options += ["--requeue"] if job.retries else []
    for option in options:
        if bad := IN_DIRECTIVES.search(option.partition("=")[2]):
            raise RelgradError(
                f"--to slurm: {option} is a directive of sbatch, which may not have {bad[0]!r} in its value: spaces and quotes "
                "end it, % stands for something else. Use another name, or a folder without it (out=FOLDER)"
            )
    return [f"#SBATCH {option}" for option in options]


def _state(word: str, code: int | None = None) -> State:
    first = word.split()[0] if word.split() else word  # "CANCELLED by 1000"
    return State(WORDS.get(first, "failed"), code, word)


def call(program: str, *arguments: str) -> str:
    """What one of Slurm's programs prints. Raises RelgradError where it is missing or fails."""
    if shutil.which(program) is None:
        raise RelgradError(
            f"{program} is not on the PATH, so this is no machine of a Slurm cluster: log in to one, or write the job file only "
            "with --dry-run"
        )
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RelgradError(f"{program} refused: {(result.stderr or result.stdout).strip()[:500]}")
    return result.stdout


TARGET = Slurm()
