"""`relgrad run --processes N`: the same command in N processes on this machine, by torch's own launcher.

It is what `torchrun --nproc-per-node N -m relgrad run ...` does, with one difference: when a process is lost, one message says
which one and how, in place of a traceback.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.runs.environment import cores

LOST = 75
"""Exit code of a process that ends because another one did (EX_TEMPFAIL: start the same command again)."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m relgrad ARGUMENTS` in so many processes; the exit code of the first that failed, or 0.

    Without OMP_NUM_THREADS every process gets its share of the processors. Raises RelgradError where a process was lost, and for
    a number of processes that is not positive.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if processes < 1:
        raise RelgradError(f"--processes {processes}: give the number of processes, 1 or more")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what it says of its children is said below
    config = LaunchConfig(
        run_id=f"relgrad-{os.getpid()}",
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, entrypoint=sys.executable)("-m", "relgrad", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0 and failure.exitcode != LOST:
            return int(failure.exitcode)  # the process has said why
        raise RelgradError(
            f"process {rank + 1} of {processes} (pid {failure.pid}) {_ending(failure.exitcode)}, so the others were ended too. "
            "Start the same command again: it goes on from the newest checkpoint"
        ) from None
    return 0


def _ending(exitcode: int) -> str:
    if exitcode == LOST:
        return "lost its connection to another one"
    return f"was killed by {signal.Signals(-exitcode).name}"
