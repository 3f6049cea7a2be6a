"""Rows of files, and tasks whose three parts come from files: JSON lines, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles
from relgrad.core.types import Prompt
from relgrad.tasks import Task
from relgrad.tasks._rows import (
    HELD_OUT,
    Parts,
    Row,
    RowSettings,
    missing_column,
    prompts_of,
    row_that_fails,
    task_of,
)


class FileSettings(RowSettings):
    """A file of rows; those to validate and to test by come from other files, or are split off the first."""

    path: Annotated[Path, NamesFiles()] = Field(description=".jsonl, .json (a list of objects), .csv or .parquet")
    held_out_path: Annotated[Path | None, NamesFiles()] = Field(
        None, description="a file to validate by; its prompts are never trained on"
    )
    test_path: Annotated[Path | None, NamesFiles()] = Field(
        None, description="a file to test by; its prompts are neither trained on nor validated by"
    )

    @model_validator(mode="after")
    def _legal(self) -> FileSettings:
        if self.held_out_path is not None and self.held_out_fraction != HELD_OUT:
            raise ValueError("held_out_path and held_out_fraction exclude each other; keep one")
        if self.test_path is not None and self.test_fraction:
            raise ValueError("test_path and test_fraction exclude each other; keep one")
        return self


def load_files(settings: FileSettings, seed: int, prepare: Callable[[Row], Row] = dict) -> Task:
    """Read the file(s); `prepare` makes of a row what its prompt and rewards see.

    Raises RelgradError for a missing, broken or empty file, or one without the needed column; and what `prepare` raises.
    """
    train = prompts_in(settings.path, settings, prepare, limit=settings.limit)
    validation = test = None
    if settings.held_out_path is not None:
        validation = prompts_in(settings.held_out_path, settings, prepare, len(train))
    if settings.test_path is not None:
        test = prompts_in(settings.test_path, settings, prepare, len(train) + len(validation or ()))
    return task_of(settings.path.stem, Parts(train, validation, test), settings, seed)


def prompts_in(
    path: Path, settings: FileSettings, prepare: Callable[[Row], Row], first_id: int = 0, limit: int | None = None
) -> list[Prompt]:
    """The prompts of one file, prepared. Raises as `load_files` does; where a column is missing, the error names the row."""
    rows = []
    for number, row in enumerate(read_rows(path)[:limit], 1):
        try:
            rows.append(prepare(row))
        except KeyError as error:
            raise RelgradError(f"{path}, row {number}: {missing_column(error.args[0], row)}") from None
    return prompts_of(rows, settings, str(path), first_id)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, by its suffix. Raises RelgradError naming the file and, where there is one, the line."""
    if not path.is_file():
        raise RelgradError(f"no file {str(path)!r} (working directory {Path.cwd()})")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RelgradError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(_READERS)}"
        )
    try:
        return reader(path)
    except UnicodeDecodeError:
        raise RelgradError(
            f"{path}, line {_line_that_fails(path)}: not UTF-8 text; convert it, for example with iconv"
        ) from None


def _line_that_fails(path: Path) -> int:
    """Number of the first line that is no UTF-8."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    raise AssertionError(f"{path} is UTF-8")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _parsed(line, path, number)
            if not isinstance(row, dict):
                raise RelgradError(f"{path}, line {number}: a line is one JSON object, received {type(row).__name__}")
            rows.append(row)
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    rows = _parsed(path.read_text(encoding="utf-8-sig"), path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RelgradError(f"{path}: a .json file holds a list of objects, received {type(rows).__name__}")
    return rows


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """What a JSON text holds: a whole file, or a line of one. Raises RelgradError naming the place, also for legal JSON that cannot
    be read: a whole number of thousands of digits, and lists inside of lists, thousands deep.
    """
    place = str(path) if line is None else f"{path}, line {line}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {line or error.lineno}"
        raise RelgradError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:
        raise RelgradError(f"{place}: {error}; write such a number as text, in quotes") from None
    except RecursionError:
        raise RelgradError(f"{place}: more lists or objects inside of each other than can be read") from None


def _csv(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            names = list(reader.fieldnames or ())
            if twice := [name for name in names if names.count(name) > 1]:
                raise RelgradError(f"{path}, line 1: two columns are called {twice[0]!r}; give each a name of its own")
            for row in reader:
                if None in row or None in row.values():
                    width = len(reader.fieldnames or ())
                    raise RelgradError(f"{path}, line {reader.line_num}: not the {width} cells that the header names")
                rows.append(row)
        except csv.Error as error:
            raise RelgradError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RelgradError(f"{path}: Parquet needs pyarrow; pip install 'relgrad[data]'") from None
    try:
        table = pyarrow.parquet.read_table(path)
        return table.to_pylist()
    except UnicodeDecodeError as error:
        row = row_that_fails(lambda number: table.slice(number, 1).to_pylist(), table.num_rows)
        raise RelgradError(f"{path}, row {row}: not UTF-8 text ({error})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise RelgradError(f"{path}: not valid Parquet ({error})") from None


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
