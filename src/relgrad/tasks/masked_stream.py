"""Masked text from a folder that `relgrad prepare` fills: the samples of masked_text, made once, read by any number of runs.

Samples come in the order of the files, so that a run can start while they are being written and never needs more than two
of them in memory. Sample i is the one that masked_text makes in process with the seed that the folder was prepared with.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._masked_prompt import masked_prompt
from relgrad.text.masking import Line, Random, Span, Sticky
from relgrad.text.sample_file import SampleFile
from relgrad.text.stream import Reader, Split
from relgrad.text.vocabulary import Vocabulary

JUDGED: tuple[Split, ...] = ("held_out", "test")
FIXED = ("vocabulary.json", "held_out/000000.safetensors", "train/000000.safetensors")
"""Files of a folder that stay as they are while more are written; each follows from the text and the settings."""
STAGES = tuple(stage.name for stage in (Random(), Sticky(), Span(), Line()))


class Settings(Strict):
    """`shard` of `shards` reads every `shards`-th file, from number `shard` on; by default all of them."""

    path: Annotated[Path, NamesFiles(within=FIXED)]
    timeout: float = Field(120.0, gt=0, description="seconds to wait for a file that is not there yet")
    shard: int = Field(0, ge=0)
    shards: int = Field(1, ge=1)
    consumer: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$", description="name by which the producer knows it")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.shard >= self.shards:
            raise ValueError(f"shard={self.shard} of shards={self.shards}: shards are counted from 0")
        return self


def load(settings: Settings, seed: int) -> Task:
    """The columns of masked_text. `seed` changes nothing: samples and their order were settled when they were prepared.

    Waits for the folder and for all samples to judge by. Raises RelgradError when they do not come in time.
    """
    name = settings.consumer or f"{socket.gethostname()}-{os.getpid()}"
    if settings.shards > 1:
        name = f"{name}-{settings.shard}"
    reader = Reader(settings.path, "train", settings.timeout, name)
    plan = reader.plan
    files = None if plan.files is None else len(range(settings.shard, plan.files, settings.shards))
    if files == 0:
        raise RelgradError(
            f"{settings.path} has {plan.files} files, so shard {settings.shard} of {settings.shards} has none"
        )
    validation, test = (_all(Reader(settings.path, split, settings.timeout, name)) for split in JUDGED)
    train = StreamedPrompts(reader, files, settings.shard, settings.shards)
    return Task(f"masked-stream-{plan.length}", train, validation, test or None)


def _all(reader: Reader) -> list[Prompt]:
    """Every sample of a split that has an end."""
    each, prompts = reader.plan.samples_per_file, list[Prompt]()
    for number in range(reader.plan.count(reader.split) or 0):
        file = reader.file(number)
        prompts += [_prompt(file, row, reader.vocabulary, number * each + row) for row in range(len(file.length_N))]
    return prompts


class StreamedPrompts(Sequence[Prompt]):
    """All training samples of a stream (or of one shard of it). `in_order`: epochs read it as it is written."""

    in_order = True

    def __init__(self, reader: Reader, files: int | None, shard: int, shards: int) -> None:
        self.reader, self.shard, self.shards = reader, shard, shards
        self.size = sys.maxsize if files is None else files * reader.plan.samples_per_file

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        each = self.reader.plan.samples_per_file
        nth, row = divmod(index % self.size, each)
        number = nth * self.shards + self.shard
        return _prompt(self.reader.file(number), row, self.reader.vocabulary, number * each + row)


def _prompt(file: SampleFile, row: int, vocabulary: Vocabulary, index: int) -> Prompt:
    strategy = file.strategies[row]
    if strategy not in STAGES:
        raise RelgradError(f"a sample was masked by {strategy!r}; known are {', '.join(STAGES)}")
    return masked_prompt(*file.row(row), vocabulary, index, strategy, file.masked_NL.shape[1])
