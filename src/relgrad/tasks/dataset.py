"""Prompts from a Hugging Face dataset: a folder on disk, or a name on the hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._rows import HELD_OUT, Parts, RowSettings, prompts_of, row_that_fails, task_of


class Settings(RowSettings):
    """A dataset that the `datasets` library reads; rows to validate and to test by are of other splits, or are split off."""

    path: Annotated[str, NamesFiles(or_hub=True)] = Field(
        description="a folder (written by save_to_disk, or of data files) or a hub name"
    )
    config: str | None = Field(None, description="the configuration, where the dataset has several")
    revision: str | None = Field(None, description="a hub commit, tag or branch")
    split: str = "train"
    held_out_split: str | None = Field(None, description="a split to validate by; its prompts are never trained on")
    test_split: str | None = Field(
        None, description="a split to test by; its prompts are neither trained on nor validated by"
    )

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.held_out_split is not None and self.held_out_fraction != HELD_OUT:
            raise ValueError("held_out_split and held_out_fraction exclude each other; keep one")
        if self.held_out_split == self.split:
            raise ValueError(f"held_out_split={self.split!r} is the training split; name another one")
        if self.test_split is not None and self.test_fraction:
            raise ValueError("test_split and test_fraction exclude each other; keep one")
        if self.test_split is not None and self.test_split in (self.split, self.held_out_split):
            raise ValueError(
                f"test_split={self.test_split!r} is the split to train on or to validate by; name another one"
            )
        return self


def load(settings: Settings, seed: int) -> Task:
    """Read the split(s). Raises RelgradError when the dataset, a split or the needed column is not there."""
    splits = _open(settings)
    train = _prompts(splits, settings.split, settings, limit=settings.limit) or []
    validation = _prompts(splits, settings.held_out_split, settings, len(train))
    test = _prompts(splits, settings.test_split, settings, len(train) + len(validation or ()))
    return task_of(Path(settings.path).name, Parts(train, validation, test), settings, seed)


def _prompts(
    splits: dict[str, Any], split: str | None, settings: Settings, first_id: int = 0, limit: int | None = None
) -> list[Prompt] | None:
    if split is None:
        return None
    where = f"dataset {settings.path!r}, split {split!r}"
    return prompts_of(_rows(splits, split, settings, limit), settings, where, first_id)


def _open(settings: Settings) -> dict[str, Any]:
    """Splits by name; a dataset saved without splits answers to the `split` that was asked for."""
    try:
        import datasets
    except ImportError:
        raise RelgradError("task dataset needs the datasets library; pip install 'relgrad[data]'") from None
    folder = Path(settings.path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            data = _from_disk(datasets, folder)
        else:
            data = datasets.load_dataset(settings.path, settings.config, revision=settings.revision)
    except RelgradError:
        raise
    except Exception as error:
        raise RelgradError(
            f"dataset {settings.path!r}: cannot read it ({_causes(error)}); path is a folder or a hub name"
        ) from error
    return data if isinstance(data, datasets.DatasetDict) else {settings.split: data}


def _causes(error: BaseException) -> str:
    """The error and what caused it: the library wraps what is wrong with a file and a row of it in errors that do not say so."""
    own = f"{type(error).__name__}: {error}"
    return own if error.__cause__ is None else f"{own}; {_causes(error.__cause__)}"


def _from_disk(datasets: Any, folder: Path) -> Any:
    try:
        return datasets.load_from_disk(str(folder))
    except IndexError as error:  # what it raises where a split has no data file
        raise RelgradError(f"dataset {str(folder)!r}: the dataset is empty; a task needs at least one row") from error


def _rows(splits: dict[str, Any], split: str, settings: Settings, limit: int | None = None) -> list[dict[str, Any]]:
    if split not in splits:
        near = difflib.get_close_matches(split, list(splits), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RelgradError(f"dataset {settings.path!r}: no split {split!r}; the splits are {', '.join(splits)}{hint}")
    rows = splits[split]
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    try:
        return rows.to_list()
    except UnicodeDecodeError as error:
        row = row_that_fails(rows.__getitem__, len(rows))
        raise RelgradError(f"dataset {settings.path!r}, split {split!r}, row {row}: not UTF-8 text ({error})") from None
