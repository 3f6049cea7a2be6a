"""Cases: which page, and what to enter there; from the files that people have.

    JSON lines, or JSON with a list     one record a case: `page` (a path), `values` ({label: value}), and any other columns
    FormFactory's layout                one file a page, with a list of flat records {label: value}, and a map from file to path
    OpenBrowser's JSONL                 `condition` (the prompt), `target` (the plan), `url`, `ground_truth_fields`

A value is text, a number, a yes or no, a list of texts, or {"click": true} for a button to be clicked on the way (the label is its
text). Null is nothing to enter. Objects inside of values are groups: {"Address": {"City": "Bonn"}} is the field "Address City".
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from relgrad.core.errors import RelgradError

Value = str | bool | tuple[str, ...]
CLICK = {"click": True}


@dataclass(frozen=True)
class Case:
    """What to enter on a page.

    page    a path with its query
    clicks  labels of buttons to click; `order`: all labels, of values and buttons, in their order
    origin  file and number of the record
    """

    page: str
    values: Mapping[str, Value]
    clicks: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


def read_cases(patterns: Sequence[str], pages: Mapping[str, str]) -> list[Case]:
    """All cases of all files, in the order of the patterns and of the files' names.

    pages   FormFactory's map from a file's name to the path of its page
    Raises RelgradError for a pattern that names no file, a file that holds no list of records, and a record without page or values.
    """
    cases: list[Case] = []
    for pattern in patterns:
        names = sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise RelgradError(f"site: cases {pattern!r} name no file (working directory {Path.cwd()})")
        for name in names:
            cases += _file(Path(name), pages)
    unused = sorted(pages.keys() - {Path(case.origin.rpartition(", record ")[0]).name for case in cases})
    if unused and pages:
        raise RelgradError(f"site: `pages` names {', '.join(unused)}, but `cases` has no such file; see to the names")
    return cases


def _file(path: Path, pages: Mapping[str, str]) -> list[Case]:
    records = _records(path)
    page = pages.get(path.name, pages.get(path.stem))
    if pages and page is None and not all("page" in record or "url" in record for record in records):
        raise RelgradError(
            f"site: {path} has no path in `pages`; add {path.name!r}: /its/path, or leave the file out of `cases`"
        )
    return [_case(record, page, f"{path}, record {number}") for number, record in enumerate(records, 1)]


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        records = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (OSError, ValueError, RecursionError) as error:
        raise RelgradError(f"site: {path} cannot be read as JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        kind = type(records).__name__ if not isinstance(records, list) else "a list with something else in it"
        raise RelgradError(
            f"site: {path} holds {kind}; a file of cases is a list of objects, or one object a line in .jsonl"
        )
    if not records:
        raise RelgradError(f"site: {path} holds no case")
    return records


def _case(record: dict[str, Any], page: str | None, origin: str) -> Case:
    if "ground_truth_fields" in record and "url" in record:
        page, values = _path(record["url"]), record["ground_truth_fields"]
    elif "page" in record and "values" in record:
        page, values = record["page"], record["values"]
    elif page is not None:
        values = record
    else:
        raise RelgradError(
            f"site: {origin}: a case has `page` and `values`, or `url` and `ground_truth_fields`; or is a flat record of a file "
            f"that `pages` gives a path. It has {', '.join(map(repr, list(record)[:5]))}"
        )
    if not isinstance(page, str) or not page.startswith("/"):
        raise RelgradError(f"site: {origin}: page {page!r} is no path; write /the/path, without host")
    if not isinstance(values, dict):
        raise RelgradError(f"site: {origin}: values are an object {{label: value}}, received {type(values).__name__}")
    flat = dict(_flat("", values, origin))
    entered = {label: value for label, value in flat.items() if value is not None}
    columns = {key: value for key, value in record.items() if record is not values and key not in ("page", "values")}
    clicks = tuple(label for label, value in flat.items() if value is None)
    return Case(page, entered, clicks, tuple(flat), columns, origin)


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _flat(group: str, values: Mapping[str, Any], origin: str) -> list[tuple[str, Value | None]]:
    """(label, value) pairs; None for a button to be clicked. What is null is left out."""
    pairs: list[tuple[str, Value | None]] = []
    for key, value in values.items():
        label = " ".join(f"{group} {key}".split())
        if value is None:
            continue
        if value == CLICK:
            pairs.append((label, None))
        elif isinstance(value, Mapping):
            pairs += _flat(label, value, origin)
        elif isinstance(value, list):
            if not all(isinstance(one, (str, int, float)) for one in value):
                raise RelgradError(f"site: {origin}: {label!r} is a list of something else than texts and numbers")
            pairs.append((label, tuple(written(one) for one in value)))
        else:
            pairs.append((label, value if isinstance(value, bool) else written(value)))
    return pairs


def written(value: str | int | float) -> str:
    """A value as people write it: 3 for 3.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
