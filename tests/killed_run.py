"""`relgrad` in a process forked from one that has imported everything already: a second saved, per process, on imports.

The process can be told to kill itself at its N-th change to the files in a folder: files opened for writing, renamed
and removed, and folders made and removed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "relgrad.commands.cli",
        "relgrad.runs.use",
        "relgrad.policies.autoregressive.policy",
        "relgrad.policies.fill_in.policy",
        "relgrad.judges.refill",
        "relgrad.rewards.judge",
        "transformers.models.qwen3.modeling_qwen3",
        "peft",
    ]
)


def start(arguments: list[str], log: Path, folder: Path, last_change: int = 0) -> BaseProcess:
    """Start the command line with `arguments`, its output in `log`; it dies at its `last_change`-th change in `folder`.

    Where it survives, `log` ends with the number of changes it made.
    """
    process = CONTEXT.Process(target=_main, args=(arguments, str(log), str(folder), last_change), daemon=True)
    process.start()
    return process


def _main(arguments: list[str], log: str, folder: str, last_change: int) -> None:
    from relgrad.commands import cli

    changes = 0

    def watch(event: str, details: tuple[object, ...]) -> None:
        nonlocal changes
        if event not in CHANGES or not str(details[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        changes += 1
        if changes == last_change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.argv[1:] = arguments
    with open(log, "w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        sys.addaudithook(watch)
        try:
            cli.main()
        finally:
            print(f"changes: {changes}")
