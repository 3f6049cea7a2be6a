"""Masked samples in a folder: one producer writes files, any number of consumers read them, nothing is deleted by reading.

    stream.json                   the plan: task settings, seed, vocabulary, samples per file, files (null: endless), ahead
    vocabulary.json               the vocabulary
    train/000000.safetensors ...  samples 0 .. n-1, then n .. 2n-1 (sample_file.py); held_out/ and test/ the same
    producer.json                 who writes and what it does; touched every few seconds, which shows that it lives
    consumers/NAME.json           the file each consumer reads, left by consumers of a stream with `ahead`

A file is a function of (plan, split, number), whatever process writes it, and appears whole or not at all. A producer that
is started again goes on with the first file that is missing. With `ahead` it keeps at most that many files beyond the slowest
consumer; a consumer that ended, or was silent for SILENT seconds on another machine, no longer holds it back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.text.sample_file import SampleFile, encode, read, write_atomic
from relgrad.text.vocabulary import Vocabulary

PLAN, PRODUCER, CONSUMERS = "stream.json", "producer.json", "consumers"
SILENT = 600.0
ALIVE = 30.0
"""Seconds without a sign of life after which a process of another machine counts as gone: a consumer, a producer."""

Split = Literal["train", "held_out", "test"]
"""`held_out` are the samples to validate by."""

logger = logging.getLogger(__name__)


class Plan(Strict):
    """What a stream holds. `task` are the settings of the masked text, `text_sha256` tells when its text has changed.

    A plan that says nothing of a test part has none.
    """

    version: Literal[1] = 1
    task: dict[str, Any]
    text_sha256: str
    vocabulary: str
    seed: int
    length: int = Field(ge=1)
    samples_per_file: int = Field(ge=1)
    files: int | None = Field(None, ge=1)
    ahead: int | None = Field(None, ge=1)
    held_out: int = Field(ge=0)
    test: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_two_parts(cls, plan: Any) -> Any:
        if isinstance(plan, dict) and "test" not in plan and isinstance(plan.get("task"), dict):
            return {**plan, "task": {"test_size": 0, **plan["task"]}}
        return plan

    def samples(self, split: Split) -> int:
        """How many samples there are to validate or to test by."""
        return self.test if split == "test" else self.held_out

    def count(self, split: Split) -> int | None:
        """How many files a split has in the end; None: endless."""
        return self.files if split == "train" else math.ceil(self.samples(split) / self.samples_per_file)


def file_of(folder: Path, split: Split, number: int) -> Path:
    """Where one file of the stream is."""
    return folder / split / f"{number:06d}.safetensors"


def read_plan(folder: Path) -> Plan:
    """The plan of a folder. Raises RelgradError when there is none or it cannot be read."""
    path = folder / PLAN
    if not path.is_file():
        raise RelgradError(
            f"{folder}: no {PLAN}, so this is no folder of masked samples; `relgrad prepare --text my.txt --out {folder}` "
            "makes one"
        )
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RelgradError(f"{path}: not the plan of a folder of masked samples: {error}") from None


# ---------------------------------------------------------------------- writing


def begin(folder: Path, plan: Plan, vocabulary: Vocabulary) -> None:
    """Write the plan into a new folder, or check that it is the one the folder was begun with (`files`, `ahead` may change).

    Raises RelgradError naming what differs, or when there are more files than the plan asks for.
    """
    if (folder / PLAN).is_file():
        old, new = read_plan(folder).model_dump(mode="json"), plan.model_dump(mode="json")
        old, new = ({**p.pop("task"), **p} for p in (old, new))
        differing = [k for k in {**old, **new} if k not in ("files", "ahead") and old.get(k) != new.get(k)]
        if differing:
            shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked for" for k in differing)
            raise RelgradError(f"{folder} was begun with other settings ({shown}). Give these samples another --out")
    files = len(list((folder / "train").glob("*.safetensors")))
    if plan.files is not None and files > plan.files:
        raise RelgradError(f"{folder} has {files} files, more than --files {plan.files}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLAN).is_file():
            vocabulary.save(folder)
        write_atomic(folder / PLAN, plan.model_dump_json(indent=1).encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def produce(
    folder: Path,
    plan: Plan,
    samples: dict[Split, Sequence[Prompt]],
    pad_id: int,
    wrote: Callable[[Split, int], None] = lambda split, number: None,
    poll: float = 0.5,
) -> None:
    """Write every file that is missing, samples to judge by first; ends where the plan has an end.

    `samples` must have as many prompts as the plan asks for; `wrote` is told of every file, also those that were there.
    Raises RelgradError when the folder cannot be written (any more).
    """
    for left in folder.glob("*/.*.tmp"):  # by a producer that was killed while it wrote
        if time.time() - left.stat().st_mtime > SILENT:
            left.unlink(missing_ok=True)
    life = Heartbeat(folder)
    try:
        for split in ("held_out", "test", "train"):
            _produce(folder, plan, split, samples[split], pad_id, wrote, life, poll)
        life.beat("done")
    except OSError as error:
        raise _unwritable(folder, error) from error
    except BaseException:
        life.beat("stopped")
        raise


def _unwritable(folder: Path, error: OSError) -> RelgradError:
    return RelgradError(
        f"{folder} cannot be written: {error}. Every file in it is whole; the same command goes on with the rest"
    )


def _produce(
    folder: Path, plan: Plan, split: Split, samples: Sequence[Prompt], pad_id: int,
    wrote: Callable[[Split, int], None], life: Heartbeat, poll: float,
) -> None:  # fmt: skip
    number, total = 0, plan.count(split)
    while total is None or number < total:
        path = file_of(folder, split, number)
        if not path.is_file():
            while split == "train" and plan.ahead is not None and number > slowest(folder)[0] + plan.ahead:
                life.beat(f"waiting before file {number} for {slowest(folder)[1]}")
                time.sleep(poll)
            stop = min((number + 1) * plan.samples_per_file, len(samples))
            rows = []
            for index in range(number * plan.samples_per_file, stop):
                life.beat(f"writing {path.relative_to(folder)}")
                rows.append(samples[index])
            header = {"split": split, "file": number, "seed": plan.seed, "vocabulary": plan.vocabulary}
            write_atomic(path, encode(rows, plan.length, pad_id, header))
        wrote(split, number)
        number += 1


class Heartbeat:
    """Keeps producer.json: written when what the producer does changes, touched every few seconds when it does not."""

    def __init__(self, folder: Path) -> None:
        self.path, self.state, self.last = folder / PRODUCER, "", 0.0

    def beat(self, state: str) -> None:
        now = time.monotonic()
        if state != self.state:
            self.state, self.last = state, now
            write_atomic(self.path, json.dumps({**_who(), "state": state}).encode())
        elif now - self.last > 2:
            self.last = now
            os.utime(self.path)


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _lives(path: Path, record: dict[str, Any], patience: float) -> bool:
    """Whether the process that wrote a record is running: exactly on this machine, by its last sign of life on another."""
    if record.get("host") == socket.gethostname():
        try:
            os.kill(int(record["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return time.time() - path.stat().st_mtime < patience


def slowest(folder: Path) -> tuple[int, str]:
    """(file, name) of the consumer that is least far; (-1, "the first consumer") before there is one.

    Where all have ended, the one that was farthest: the next to come is not held up by what they left.
    """
    consumers = []
    for path in sorted((folder / CONSUMERS).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            consumers.append((_lives(path, record, SILENT), int(record["file"]), f"consumer {path.stem}"))
        except FileNotFoundError:  # taken away since the folder was listed
            continue
        except (ValueError, KeyError, OSError) as error:
            raise RelgradError(f"{path}: not the position of a consumer ({error}); delete it") from None
    living = [(file, name) for lives, file, name in consumers if lives]
    if living:
        return min(living)
    return max(((file, name) for _, file, name in consumers), default=(-1, "the first consumer"))


# ---------------------------------------------------------------------- reading


class Reader:
    """Files of one split, in memory while they are in use; waits for those that are not there yet.

    timeout  seconds to wait for a file
    name     under which a stream with `ahead` is told where this consumer is
    """

    KEPT = 2

    def __init__(self, folder: Path, split: Split, timeout: float, name: str) -> None:
        self.folder, self.split, self.timeout, self.name = folder, split, timeout, name
        wait(folder / PLAN, folder, timeout)
        self.plan, self.vocabulary = read_plan(folder), Vocabulary.load(folder)
        self.vocabulary.require(self.plan.vocabulary, str(folder / PLAN))
        self._files: OrderedDict[int, SampleFile] = OrderedDict()
        self._position, self._saved_at = folder / CONSUMERS / f"{name}.json", 0.0

    def file(self, number: int) -> SampleFile:
        """One file. Raises RelgradError when it does not come in time, is broken, or belongs to another stream."""
        if number not in self._files:
            self._tell(number)
            path = file_of(self.folder, self.split, number)
            wait(path, self.folder, self.timeout)
            self._files[number] = self._checked(path, number)
            while len(self._files) > self.KEPT:
                self._files.popitem(last=False)
        elif time.monotonic() - self._saved_at > 10:
            self._saved_at = time.monotonic()
            if self._position.is_file():
                os.utime(self._position)
        return self._files[number]

    def _checked(self, path: Path, number: int) -> SampleFile:
        file, plan = read(path), self.plan
        self.vocabulary.require(str(file.header.get("vocabulary")), str(path))
        rows = plan.samples_per_file
        if self.split != "train":
            rows = min(rows, plan.samples(self.split) - number * rows)
        if len(file.length_N) != rows:
            raise RelgradError(f"{path} has {len(file.length_N)} samples, its plan says {rows}; delete the file")
        for name, array in (("truth_ids", file.truth_NL), ("masked_ids", file.masked_NL)):
            if array.min() < 0 or array.max() >= self.vocabulary.size:
                raise RelgradError(f"{path}: {name} has ids outside 0 to {self.vocabulary.size - 1}; delete the file")
        return file

    def _tell(self, number: int) -> None:
        """Leave the position where the producer heeds it."""
        if self.split != "train" or read_plan(self.folder).ahead is None:
            return
        self._saved_at = time.monotonic()
        try:
            write_atomic(self._position, json.dumps({**_who(), "file": number}).encode())
        except OSError as error:
            raise RelgradError(
                f"{self._position} cannot be written ({error}); a stream with `ahead` waits for its consumers, so they must "
                "be able to leave their position. Make it writable, or prepare the folder with --files alone"
            ) from None


def wait(path: Path, folder: Path, timeout: float, poll: float = 0.1) -> None:
    """Return when `path` is there. Raises RelgradError after `timeout` seconds, saying what became of the producer."""
    started, announced = time.monotonic(), False
    while not path.is_file():
        waited = time.monotonic() - started
        if waited >= timeout:
            raise RelgradError(f"waited {waited:.0f} s for {path}, which did not come. {_advice(folder)}")
        if waited > 3 and not announced:
            announced = True
            logger.warning("waiting for %s, up to %.0f s", path, timeout)
        time.sleep(min(poll, timeout))


def _advice(folder: Path) -> str:
    """What is known of the producer, and the command that starts one."""
    command = f"relgrad prepare --out {folder}"
    if not (folder / PLAN).is_file():
        return f"No producer has begun this folder. Start one: `{command} --text my.txt --ahead 4`"
    path = folder / PRODUCER
    if not path.is_file():
        return f"No producer has left a sign of life. Start one: `{command}`"
    record = json.loads(path.read_text(encoding="utf-8"))
    age = max(time.time() - path.stat().st_mtime, 0)
    who = f"the producer (process {record['pid']} on {record['host']}, {record['state']!r} {age:.0f} s ago)"
    if record["state"] not in ("done", "stopped") and _lives(path, record, ALIVE):
        least, slow = slowest(folder)
        if record["state"].startswith("waiting") and least >= 0:
            name = slow.removeprefix("consumer ")
            return (
                f"But {who} lives, and does not run ahead of {slow}: stop that one, or delete {CONSUMERS}/{name}.json"
            )
        return f"But {who} seems to be alive: give it more time with a higher task.timeout"
    return f"And {who} is not running. Start one, it goes on where that one ended: `{command}`"
