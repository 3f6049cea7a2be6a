"""`relgrad run` in several processes: starting them on this machine, and what each of them says.

`relgrad run RECIPE --processes N` is what `torchrun --nproc-per-node N -m relgrad run RECIPE` does, by the same library. The one
difference: when a process is lost, one message says which one and how, in place of a traceback.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import TYPE_CHECKING

import psutil
import typer

from relgrad.core.errors import RelgradError, Stopped

if TYPE_CHECKING:
    from relgrad.core.ranks import Ranks

LOST = 75
"""Exit code of a process that ends because another one did (EX_TEMPFAIL: start the same command again)."""
STOPPED = 124
"""Exit code of a command that a limit ended, as of one that `timeout` ended: the same command goes on."""
COURTESY, SILENCE = 10.0, 30.0
"""Seconds for which a process lets the first one speak, whose error it may share; and for which one with nothing of its own to say
waits to be ended. Whoever started them ends all when one has ended, so that neither is waited for to the end."""


class ProcessLost(RelgradError):
    """A process of several was killed, or lost its connection: the same command goes on."""


def launch(arguments: Sequence[str], processes: int, nodes: int = 1, rendezvous: str | None = None) -> int:
    """Run `python -m relgrad ARGUMENTS` in so many processes; the exit code of the first that failed, or 0.

    With several `nodes` every one of them launches, and they meet at `rendezvous`, HOST:PORT of one of them. Without
    OMP_NUM_THREADS every process gets its share of the processors. SIGTERM is passed on to all of them. Raises ProcessLost where a
    process was lost, and RelgradError inside a job of several processes, and for nodes that have nowhere to meet.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from relgrad.runs.environment import cores

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RelgradError(
            f"--processes {processes} in a job of WORLD_SIZE={os.environ['WORLD_SIZE']} processes: leave it out, they are started "
            "already"
        )
    if (nodes > 1) != (rendezvous is not None):
        raise RelgradError(
            f"--nodes {nodes} and --rendezvous {rendezvous}: several nodes meet at HOST:PORT of one of them, and one node needs "
            "neither"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what it says of its children is said below
    config = LaunchConfig(
        run_id="relgrad" if nodes > 1 else f"relgrad-{os.getpid()}",
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # on SIGTERM the library would wait 30 seconds and kill
    )
    try:
        with _passing_on_sigterm() as passed:
            elastic_launch(config, entrypoint=sys.executable)("-m", "relgrad", *arguments)
    except SignalException as error:
        if error.sigval != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0 and failure.exitcode != LOST:
            return int(failure.exitcode)  # the process has said why
        if passed and failure.exitcode == -signal.SIGTERM:
            return 128 + signal.SIGTERM  # before there was a run to end, or the second one: as of a single process
        raise ProcessLost(
            f"process {rank + 1} of {nodes * processes} (pid {failure.pid}) {_ending(failure.exitcode)}, so the others were ended "
            "too. Start the same command again: it goes on from the newest checkpoint"
        ) from None
    return 0


@contextmanager
def _passing_on_sigterm() -> Iterator[list[int]]:
    """Inside it, SIGTERM goes to every process that this one started, and ends this one where there is none; those it went to."""
    before, passed = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL, list[int]()

    def pass_on(number: int, frame: FrameType | None) -> None:
        started = psutil.Process().children()
        if not started:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)
        for process in started:
            with suppress(psutil.Error):
                process.terminate()
                passed.append(process.pid)

    signal.signal(signal.SIGTERM, pass_on)
    try:
        yield passed
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(exitcode: int) -> str:
    if exitcode == LOST:
        return "lost its connection to another one"
    return f"was killed by {signal.Signals(-exitcode).name}"


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this job, this one among them; alone where nobody started several.

    Only the first one speaks. An error that all have is told by the first, and the others are ended before they tell it again. One
    that this process has alone, it tells, and the others are silent.
    """
    from relgrad.core import ranks

    met = ranks.start()
    if met.alone:
        yield met
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(sys.stdout if met.first else nowhere):
        try:
            yield met
        except (ranks.Lost, ranks.Elsewhere):
            time.sleep(SILENCE)
            raise typer.Exit(LOST) from None
        except KeyboardInterrupt:
            if met.first:
                raise
            raise typer.Exit(130) from None
        except Stopped:
            if met.first:
                raise
            time.sleep(COURTESY)
            raise typer.Exit(STOPPED) from None
        except Exception:
            if not met.first:
                time.sleep(COURTESY)
            raise
