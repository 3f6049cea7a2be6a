"""The shell script that a job runs, whatever the target: plain bash, to be read and changed.

It starts `relgrad run` and starts it again when it was lost (killed, a lost process, a traceback), up to `retries` times; every
time the run goes on from its newest checkpoint. What would not go away ends it at once: 2 (a message that says what is wrong), 3
(a gate that was not reached), 124 (a limit, with a checkpoint), 130 and 143 (stopped by a person). Then `relgrad evaluate`,
within the same hours. The exit code is that of the last command.

SIGTERM: bash passes it on, once, and waits for the checkpoint, or the end of the evaluation. A target that sends it to
every process itself (Ray) gets a script that only waits, since a second SIGTERM would end the run without a checkpoint.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from relgrad.launch.job import LAST_MINUTES, Job

EXIT_CODE = "exit_code"
"""The file, in the job's folder, that keeps how the job ended."""


def run_command(job: Job, python: str, rendezvous: str | None = None) -> str:
    """The command that trains, as bash reads it. `rendezvous`: where several nodes meet, an expression of the shell."""
    several = job.processes > 1 or job.nodes > 1
    settings = [*job.overrides, f"out={job.run.parent}"]
    words = [shlex.quote(word) for word in (python, "-m", "relgrad", "run", job.recipe, *settings)]
    words += ['"$limit"'] if job.hours is not None else []
    words += ["--processes", str(job.processes)] if several else []
    words += ["--nodes", str(job.nodes), "--rendezvous", f'"{rendezvous}"'] if job.nodes > 1 else []
    return " ".join(words)


def script(
    job: Job,
    python: str,
    *,
    header: Sequence[str] = (),
    directory: bool = True,
    launcher: str = "",
    container: str = "",
    rendezvous: str | None = None,
    forward: bool = True,
    record: bool = True,
) -> str:
    """The whole script.

    header     lines for the target, after the first
    directory  whether it begins by going to the job's working directory
    launcher   what stands before the training command: `srun ...`
    container  what stands before every command: `apptainer exec ...`
    forward    whether SIGTERM is passed on
    record     whether the exit code is kept in the job's folder
    """
    lines = ["#!/usr/bin/env bash", *header, f"# Job {job.name}: {job.recipe}, written by `relgrad submit`.", "set -u"]
    lines += [f"cd {shlex.quote(str(job.directory))} || exit 2"] if directory else []
    lines += _ending(job) if record else []
    for name in job.secrets:
        lines.append(f'[ -n "${{{name}:-}}" ] || {{ echo "error: the variable {name} is not set" >&2; exit 2; }}')
    training = " ".join(filter(None, [launcher, container, run_command(job, python, rendezvous)]))
    lines += ["", *_attempts(job, training, forward)]
    if job.evaluate:
        limit = 'timeout --foreground "$(seconds_left)"' if job.hours is not None else ""
        words = shlex.join((python, "-m", "relgrad", "evaluate", str(job.run)))
        lines += _evaluation(" ".join(filter(None, [limit, container, words])))
    return "\n".join([*lines, 'exit "$code"', ""])


def _ending(job: Job) -> list[str]:
    file = shlex.quote(str(job.folder / EXIT_CODE))
    return [f"file={file}", 'rm -f "$file"', "trap 'echo $? > \"$file\"' EXIT"]


def _attempts(job: Job, command: str, forward: bool) -> list[str]:
    on_term = 'stopped=1; [ -z "$child" ] || kill -TERM "$child";' if forward else "stopped=1;"
    return [
        "child= stopped= attempt=0",
        f"on_term() {{ {on_term} }}",
        "trap on_term TERM",
        "finish() {  # waits for the last command; a signal ends the first `wait`",
        "  child=$!",
        '  wait "$child"; code=$?',
        '  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done',
        "  child=",
        "}",
        *_time_left(job),
        "while :; do",
        *(['  limit="max_hours=$(max_hours)"'] if job.hours is not None else []),
        f"  {command} &",
        "  finish",
        '  case "$code" in 0 | 2 | 3 | 124 | 130 | 143) break ;; esac',
        f'  if [ -n "$stopped" ] || [ "$attempt" -ge {job.retries} ]; then break; fi',
        "  attempt=$((attempt + 1))",
        f'  echo "exit code $code: the run goes on from its newest checkpoint (retry $attempt of {job.retries})" >&2',
        "done",
    ]


def _time_left(job: Job) -> list[str]:
    """Functions of the shell: seconds until the job's last minutes begin, at least 1, and the hours that a training may take."""
    if job.hours is None:
        return []
    seconds = max(round(3600 * job.hours) - 60 * LAST_MINUTES, 1)
    most = None if job.max_hours is None else max(round(3600 * job.max_hours), 1)
    own = "" if most is None else f"; if (left > {most}) left = {most}"
    return [
        f"seconds_left() {{ local left=$(({seconds} - SECONDS)); echo $((left > 1 ? left : 1)); }}",
        f'max_hours() {{ awk "BEGIN {{ left = $(seconds_left){own}; print left / 3600 }}"; }}',
    ]


def _evaluation(command: str) -> list[str]:
    """What follows a run that is done, unless the job was stopped by then."""
    return [
        'if [ "$code" -eq 0 ]; then',
        "  code=143  # of a job that was stopped before its evaluation",
        f'  if [ -z "$stopped" ]; then {command} & finish; fi',
        "fi",
    ]
