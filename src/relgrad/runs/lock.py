"""One run folder, one writer: two jobs in one folder would mix their steps and checkpoints.

    runs/NAME/lock.json   who writes: host, machine, pid, when the process started, since when; touched every BEAT seconds

The file is made with O_EXCL, which network file systems keep too, and goes with the run. A process that was killed leaves it
behind. On the same machine (name, boot and process namespace) the system knows whether that process still runs. Of another
machine only the last touch is known, by the clock of the file system: after SILENT seconds without one its process counts as gone.
A writer that slept so long finds another's lock before its next step, and ends.

Several processes of one job are one writer: the first rank holds the lock. Reading (evaluate, sample, report) needs none.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from relgrad.core.errors import RelgradError
from relgrad.core.ranks import Ranks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "lock.json"
BEAT, SILENT = 10.0, 120.0
"""Seconds between two touches, and after which a process of another machine counts as gone: network file systems may show a touch a
minute late."""
SAME_START = 60.0
"""Seconds by which the start of one process may seem to differ, when the clock was set in between."""
ATTEMPTS = 5


@contextmanager
def held(folders: Sequence[Path], ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Hold these folders for writing; gives a function that raises RelgradError once one of them is held by another.

    Raises RelgradError where another process holds one, naming it, or where a folder cannot be written.
    """
    locks = [Lock(folder) for folder in dict.fromkeys(folders)] if ranks.first else []

    def require_held() -> None:
        for lock in locks:
            lock.require_held()

    with ExitStack() as stack:
        ranks.together(lambda: [stack.enter_context(lock) for lock in locks])
        yield require_held


def require_free(folder: Path) -> None:
    """Raise RelgradError where a living process holds the folder, naming it. Changes nothing."""
    lock = Lock(folder)
    try:
        content = lock.read()
    except OSError as error:
        raise RelgradError(f"{lock.path} cannot be read: {error}") from None
    if content is not None:
        lock.refuse_living(content)


class Lock:
    """The lock of one folder; hold it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self.own, self.lost = "", False
        self._touched = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Lock:
        """Take the lock. Raises RelgradError where a living process holds it, or the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise RelgradError(
                f"{self.folder} cannot be written: {error}. Give it another place: set `out` and `name`"
            ) from error
        threading.Thread(target=self._beat, name="relgrad-lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        try:
            if self.read() == self.own:
                self.path.unlink(missing_ok=True)
        except OSError:
            return  # the folder cannot be written any more: what is left is recognised as that of a process that ended

    def require_held(self) -> None:
        """Raise RelgradError where somebody took the lock, or removed it, while this process did not touch it."""
        if time.monotonic() - self._touched > 2 * BEAT:
            self.touch()
        if self.lost:
            raise RelgradError(
                f"{self.path} is not this process's any more: its folder was removed, or, while this process stood still for more "
                f"than {SILENT:.0f} s, another one took it over. So this one ends without writing on"
            )

    def touch(self) -> None:
        """Show that the process lives, and notice where the lock is another's by now."""
        self._touched = time.monotonic()
        try:
            self.lost = self.lost or self.read() != self.own
            if not self.lost:
                os.utime(self.path)
        except OSError:
            return  # a network file system that is away for a moment: the next touch tells

    def read(self) -> str | None:
        """What is in the file; None where there is none."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def refuse_living(self, content: str) -> None:
        """Raise RelgradError, naming who holds the lock, unless the process that wrote `content` is gone."""
        record = _parsed(content)
        silent = self._silent()
        since = f"since {record['since']}" if "since" in record else "since an unknown time"
        who = f"process {record.get('pid', '?')} on {record.get('host', '?')}, {since}"
        if record.get("machine") == machine():
            if _runs(record):
                raise RelgradError(
                    f"{self.folder} is written by another run: {who}. Wait for it, stop it, or give this one another name "
                    "(name=...); evaluate, sample and report may read meanwhile"
                )
        elif silent < SILENT:
            raise RelgradError(
                f"{self.folder} is written by another run: {who}; last sign of life {max(silent, 0):.0f} s ago. Should it have "
                f"been killed: it counts as gone after {SILENT:.0f} s without one, or delete {self.path}"
            )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.touch()

    def _take(self) -> None:
        """Make the file, in place of one that a process left which is gone."""
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        process = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self.own = json.dumps({**process, "since": since}) + "\n"
        for _ in range(ATTEMPTS):
            try:
                with open(self.path, "x", encoding="utf-8") as file:
                    self._write(file)
                return
            except FileExistsError:
                content = self._settled()
            if content is not None:
                self.refuse_living(content)
                if self._take_over(content):
                    return
        raise RelgradError(
            f"{self.folder}: other processes start here at this very moment; start again when they have settled"
        )

    def _write(self, file: IO[str]) -> None:
        """Fill the file of the lock; on a full disk no empty one stays."""
        try:
            file.write(self.own)
            file.flush()
        except OSError:
            self.path.unlink(missing_ok=True)
            raise

    def _settled(self) -> str | None:
        """What is in the file, once whoever makes it at this moment has written it."""
        content = self.read()
        for _ in range(10):
            if content is None or _parsed(content) or self._silent() > 1:
                break
            time.sleep(0.05)
            content = self.read()
        return content

    def _take_over(self, content: str) -> bool:
        """Write over a lock that holds `content`; whether it still did: another process may be taking it over too."""
        try:
            with open(self.path, "r+", encoding="utf-8", errors="replace") as file:
                _exclude_others(file)
                if file.read() != content:
                    return False
                file.seek(0)
                file.truncate()
                self._write(file)
        except FileNotFoundError:
            return False
        return True

    def _silent(self) -> float:
        """Seconds since the last touch, by the clock of the file system."""
        try:
            last = self.path.stat().st_mtime
        except FileNotFoundError:
            return SILENT
        try:
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                return os.fstat(probe.fileno()).st_mtime - last
        except OSError:  # nothing can be written there: this machine's clock then
            return time.time() - last


def _exclude_others(file: IO[str]) -> None:
    """Wait until no other process has the open file for itself; where the system or the file system knows no such locks, go on."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)


def machine() -> str:
    """This machine as it runs now: a restart, or another container of the same name, is another one."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        parts += [boot.read_text(encoding="ascii").strip(), os.readlink(namespace)]
    except OSError:
        parts.append("")
    return " ".join(parts)


def _parsed(content: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _started(pid: int) -> float:
    """When a process started, in seconds since 1970; 0 where none runs, or only the zombie of one that was killed is left."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return 0.0


def _runs(record: dict[str, Any]) -> bool:
    """Whether the process of a record of this machine still runs: not one that got its number later."""
    try:
        return abs(_started(int(record["pid"])) - float(record["started"])) < SAME_START
    except (KeyError, TypeError, ValueError):
        return False
