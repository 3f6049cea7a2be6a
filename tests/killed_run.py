"""`relgrad` in this process, killed just before its N-th change to the files in a folder: killed_run.py FOLDER N ARGUMENTS...

N counts files opened for writing, renamed and removed, and folders made and removed. A run that reaches its end says
how many there were.
"""

from __future__ import annotations

import os
import signal
import sys

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def main(folder: str, last: int, arguments: list[str]) -> None:
    """Run the command line with `arguments`, watched by an audit hook."""
    from relgrad import cli

    done = 0

    def watch(event: str, details: tuple[object, ...]) -> None:
        nonlocal done
        if event not in CHANGES or not str(details[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv[1:] = arguments
    try:
        cli.main()
    finally:
        print(f"changes: {done}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
