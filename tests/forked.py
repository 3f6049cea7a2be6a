"""Commands and scripts in processes of their own, forked from one that has imported everything already.

A new interpreter takes seconds to import torch and transformers; a forked one has them. In all else such a process is a real one:
its own working directory, environment, output files and end.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "relgrad.commands.cli",
        "relgrad.runs.run",
        "relgrad.runs.use",
        "relgrad.policies.autoregressive.policy",
        "relgrad.policies.fill_in.policy",
        "relgrad.policies.flow.policy",
        "relgrad.judges.refill",
        "relgrad.rewards.judge",
        "transformers.models.qwen3.modeling_qwen3",
        "torch.distributed.nn",
        "peft",
    ]
)
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def start(
    command: Sequence[str],
    output: Path,
    *,
    errors: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] = {},
    watched: Path | None = None,
    last_change: int = 0,
) -> BaseProcess:
    """Start `relgrad ...` or `python FILE ...` in `folder`, with more `environment`; its output goes to files, errors to the same.

    With a `watched` folder it kills itself at its `last_change`-th change there: files opened for writing, renamed and removed,
    folders made and removed. Where it survives, `output` ends with the number of changes it made.
    """
    files = (str(output), None if errors is None else str(errors))
    where = (None if folder is None else str(folder), dict(environment))
    watch = (None if watched is None else str(watched), last_change)
    process = CONTEXT.Process(target=_main, args=(list(command), files, where, watch))
    process.start()
    return process


def run(
    *command: object, cwd: Path | None = None, timeout: float = 900, environment: Mapping[str, str] = {}
) -> CompletedProcess[str]:
    """What `subprocess.run` gives of `relgrad ...` or `python FILE ...`."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = start(words, output, errors=errors, folder=cwd, environment=environment)
        process.join(timeout)
        process.kill()
        process.join()
        texts = [file.read_text(encoding="utf-8") if file.exists() else "" for file in (output, errors)]
        return CompletedProcess(words, process.exitcode or 0, *texts)


def ranks(count: int, *command: object, cwd: Path | None = None, timeout: float = 600) -> list[CompletedProcess[str]]:
    """The same for so many processes of one job, as torchrun would start them."""

    def one(place: dict[str, str]) -> CompletedProcess[str]:
        return run(*command, cwd=cwd, environment=place, timeout=timeout)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, places(count)))


def places(count: int) -> list[dict[str, str]]:
    """What torchrun tells each process of a job in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""} for rank in range(count)]


def _main(
    command: list[str],
    files: tuple[str, str | None],
    where: tuple[str | None, dict[str, str]],
    watch: tuple[str | None, int],
) -> None:
    _redirect(*files)
    folder, environment = where
    os.environ.update(environment)
    os.chdir(folder or os.getcwd())
    changes = _Changes(*watch)
    if changes.folder is not None:
        sys.addaudithook(changes)
    program, *sys.argv[1:] = command
    try:
        if program == "python":
            sys.argv = command[1:]
            sys.path.insert(0, str(Path(command[1]).resolve().parent))
            runpy.run_path(command[1], run_name="__main__")
        else:
            from relgrad.commands import cli

            cli.main()
    finally:
        if changes.folder is not None:
            print(f"changes: {changes.count}")
        sys.stdout.flush()
        sys.stderr.flush()


def _redirect(output: str, errors: str | None) -> None:
    """Of the process, not of Python alone: what libraries in C write goes there too."""
    for stream, name in ((sys.stdout, output), (sys.stderr, errors)):
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if name else os.dup(sys.stdout.fileno())
        os.dup2(target, stream.fileno())
        os.close(target)


class _Changes:
    """An audit hook that counts changes in a folder, and ends the process at one of them."""

    def __init__(self, folder: str | None, last: int) -> None:
        self.folder, self.last, self.count = folder, last, 0

    def __call__(self, event: str, details: tuple[object, ...]) -> None:
        if event not in CHANGES or not str(details[0]).startswith(str(self.folder)):
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
