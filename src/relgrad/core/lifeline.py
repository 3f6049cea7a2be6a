"""A process that ends when the one that started it does, however that ends. Standard library only.

The starting process holds the write end of a pipe, alone; the started one leads a group of processes and holds the read end. When
the pipe closes, its holder is gone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading


def end_with(lifeline: int) -> None:
    """End this process and all of its group when the pipe's other end closes, whatever they are doing then.

    On Linux the kernel does it, which no code can hold up; elsewhere a thread, which needs the interpreter.
    """
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_watch, args=(lifeline,), name="relgrad-lifeline", daemon=True).start()


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the pipe closes, also before this process looked
    os.killpg(os.getpgrp(), signal.SIGKILL)
