"""Masked text from the batch files of the original trainer: its folder `data/NAME`, with `meta.pkl` and `queue/{train,val}/*.pt`.

The files are read in the order of their names and stay as they are; nothing in them is run. Samples of `val` are to validate by,
and as many after them to test by. A sample that hides nothing is left out: there is nothing to fill in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Prompt
from relgrad.networks.diffusion_gpt.original_batches import load_batches, translate_labels
from relgrad.networks.diffusion_gpt.original_files import META, Layout, load_layout
from relgrad.tasks import Task
from relgrad.tasks._masked_prompt import masked_prompt
from relgrad.text.masking import IGNORE


class Settings(Strict):
    """`path`: a dataset's folder, a folder of .pt files, or one. `meta`: its meta.pkl or vocabulary.json; null: near `path`."""

    path: Annotated[Path, NamesFiles()]
    meta: Annotated[Path | None, NamesFiles()] = None
    held_out_size: int = Field(200, ge=0, description="samples of `val` to validate by, and as many more to test by")


def load(settings: Settings, seed: int) -> Task:
    """The columns of masked_text. `seed` changes nothing: samples and their order are those of the files.

    Raises RelgradError where there are no batches or no vocabulary, and for files that do not hold masked text.
    """
    layout = load_layout(settings.meta or _meta(settings.path))
    files = _files(settings.path, "train")
    if not files:
        raise RelgradError(
            f"{settings.path}: no batch files: neither a .pt file, nor a folder with any in it, in train/ or in queue/train/"
        )
    judged = BatchPrompts(_files(settings.path, "val"), layout)
    ends = [min(count, len(judged)) for count in (settings.held_out_size, 2 * settings.held_out_size)]
    validation = [judged[i] for i in range(ends[0])]
    test = [judged[i] for i in range(ends[0], ends[1])]
    return Task("masked-batches", BatchPrompts(files, layout), validation, test or None)


def _files(path: Path, split: str) -> list[Path]:
    """The batch files of a split in the order of their names; files that are still being written begin with a dot."""
    if path.is_file():
        return [path] if split == "train" else []
    folders = [path / "queue" / split, path / split, *([path] if split == "train" else [])]
    folder = next((f for f in folders if f.is_dir()), path / split)
    return sorted(f for f in folder.glob("*.pt") if not f.name.startswith("."))


def _meta(path: Path) -> Path:
    """The meta.pkl in the folder, or in one of the three above. Raises RelgradError where there is none."""
    near = [folder / META for folder in (path, *path.absolute().parents[:3])]
    meta = next((file for file in near if file.is_file()), None)
    if meta is None:
        raise RelgradError(f"{path}: no {META} in it or above, which says what the ids mean; name it with task.meta")
    return meta


class Batch(NamedTuple):
    """The samples of one file that hide something, in relgrad's ids, padded on the right."""

    masked_NL: np.ndarray
    label_NL: np.ndarray
    strategies: Sequence[str]


class BatchPrompts(Sequence[Prompt]):
    """The samples of some files, read when they are asked for. `in_order`: epochs read them as they were written."""

    in_order = True
    KEPT = 2

    def __init__(self, files: Sequence[Path], layout: Layout) -> None:
        self.files, self.vocabulary, self._layout = list(files), layout.vocabulary, layout
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._ends_F = np.cumsum(
            [len(self._batch(number).masked_NL) for number in range(len(self.files))], dtype=np.int64
        )

    def __len__(self) -> int:
        return int(self._ends_F[-1]) if len(self._ends_F) else 0

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = int(np.searchsorted(self._ends_F, index, side="right"))
        batch = self._batch(number)
        row = index - (int(self._ends_F[number - 1]) if number else 0)
        length = int(np.flatnonzero(batch.masked_NL[row] != self.vocabulary.pad_id)[-1]) + 1
        masked, labels = batch.masked_NL[row, :length], batch.label_NL[row, :length]
        truth = np.where(labels == IGNORE, masked, labels)
        return masked_prompt(
            truth, masked, labels, self.vocabulary, index, batch.strategies[row], batch.masked_NL.shape[1]
        )

    def _batch(self, number: int) -> Batch:
        if number not in self._batches:
            self._batches[number] = _read(self.files[number], self._layout)
            while len(self._batches) > self.KEPT:
                self._batches.popitem(last=False)
        self._batches.move_to_end(number)
        return self._batches[number]


def _read(path: Path, layout: Layout) -> Batch:
    """One file. Raises RelgradError for a judge's batches, and where it is not said what a mask hides."""
    tensors, metadata = load_batches(path)
    if "masked_ids" not in tensors:
        raise RelgradError(f"{path}: batches of a judge, not of masked text")
    masked_NL = layout.translate(tensors["masked_ids"], str(path))
    label_NL = translate_labels(tensors["label_ids"], layout, str(path))
    hidden_NL = masked_NL == layout.vocabulary.mask_id
    unknown = np.argwhere(hidden_NL & (label_NL == IGNORE))
    if len(unknown):
        row, column = unknown[0]
        raise RelgradError(
            f"{path}: sample {row} has a mask at position {column} and no label there, so the truth is not known"
        )
    kept = np.flatnonzero(hidden_NL.any(1))
    return Batch(masked_NL[kept], label_NL[kept], [metadata["masked_strategy"][row] for row in kept])
