"""`relgrad compare`, and `relgrad evaluate --against`: the comparison of evaluation/, as a table, as JSON, as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relgrad.commands.bar import with_bar


class Part(StrEnum):
    """The prompts of a task that were not trained on."""

    test = "test"
    validation = "validation"


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY... [KEY=VALUE]...",
            help="Run folders, recipes (their untrained start), checkpoints, PEFT adapters; and settings to change.",
        ),
    ],
    on: Annotated[
        str | None, typer.Option(metavar="RECIPE_OR_RUN", help="Measure all by the prompts and rewards of this one.")
    ] = None,
    test_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts in place of the task's: .jsonl, .json, .csv, .parquet.")
    ] = None,
    part: Annotated[Part, typer.Option(help="The prompts of the task to score on.")] = Part.test,
    to_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    to_html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at.")] = None,
) -> None:
    """Compare policies by every reward, paired by prompt, with 95 % intervals; runs of one recipe and several seeds are one.

    Example: [bold]relgrad compare runs/quick runs/other quick --html comparison.html[/bold]
    """
    from relgrad.core.run_folder import require_writable_file

    for file in (to_json, to_html):
        if file is not None:
            require_writable_file(file)
    sources, overrides = split(what)
    require_room(to_json, to_html)
    record = measure(sources, overrides, on=on, test_file=test_file, part=part.value)
    show(record)
    save(record, to_json, to_html)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(policies, settings to change): what has a `=` is a setting, unless there is such a file or folder."""
    overrides = [a for a in arguments if "=" in a and not Path(a).exists()]
    return [a for a in arguments if a not in overrides], overrides


def measure(
    sources: Sequence[str],
    overrides: Sequence[str],
    *,
    on: str | None = None,
    test_file: Path | None = None,
    part: str = "test",
    mirrored: bool = False,
) -> dict[str, Any]:
    """Evaluate under a progress bar; the record of runs/compare.py. Raises RelgradError."""
    from relgrad.core.errors import RelgradError
    from relgrad.runs.compare import Conditions, compare_sources

    if not sources:
        raise RelgradError("compare: nothing to compare; name run folders, recipes or adapters")
    conditions = Conditions(on, test_file, "validation" if part == "validation" else "test", mirrored)
    return with_bar("comparing", lambda progress: compare_sources(sources, overrides, conditions, progress))


def require_room(*files: Path | None) -> None:
    """Raise RelgradError for a file that cannot be written, before there is something to write."""
    from relgrad.core.errors import RelgradError

    for file in files:
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RelgradError(f"{file} cannot be written: {error}; name another file") from None
        if file.is_dir():
            raise RelgradError(f"{file} is a folder; name a file in it")


def save(record: Mapping[str, Any], to_json: Path | None, to_html: Path | None) -> None:
    """Write what was asked for, and say where it is."""
    from relgrad.core.run_folder import write_json
    from relgrad.monitor.report.comparison import write_comparison

    if to_json is not None:
        write_json(to_json, record)
        print(to_json)
    if to_html is not None:
        print(write_comparison(record, to_html))


def show(record: Mapping[str, Any]) -> None:
    """Print what was compared, then one line per figure and policy."""
    from relgrad.monitor.report.comparison import facts, heading, letter, over, seeds

    console = Console(highlight=False)
    console.print(Text("  ".join(f"{label.lower()}: {value}" for label, value in facts(record))), soft_wrap=True)
    contenders = record["contenders"]
    for i, one in enumerate(contenders):
        of = f"  seeds {seeds(one)}" if len(one["trainings"]) > 1 else ""
        console.print(Text(f"{letter(i)}  ", style="bold") + Text(one["label"]) + Text(of, style="dim"), soft_wrap=True)
    for note in record["notes"]:
        console.print(Text(f"warning: {note}", style="yellow"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("", "", "mean", "95 % interval", heading(record).replace("−", "-"), "95 % interval"):
        table.add_column(column)
    for figure in record["figures"]:
        for i, (mean, difference) in enumerate(zip(figure["means"], figure["differences"], strict=True)):
            cells = [_value(mean), _interval(mean, over(mean, contenders[i]))]
            if difference is not None:
                cells += [
                    _value(difference, "+"),
                    _interval(difference, over(difference, contenders[0], contenders[i]), "+"),
                ]
            table.add_row(Text(figure["name"] if i == 0 else ""), letter(i), *map(Text, cells))
    console.print(table)


def _value(estimate: Mapping[str, Any], sign: str = "") -> str:
    return "unscored" if math.isnan(estimate["value"]) else f"{estimate['value']:{sign}.3f}"


def _interval(estimate: Mapping[str, Any], over: str, sign: str = "") -> str:
    """The ends of an interval and what it is over, or that there is none."""
    if math.isnan(estimate["low"]) or math.isnan(estimate["high"]):
        return f"no interval, {over}"
    return f"[{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}] over {over}"
