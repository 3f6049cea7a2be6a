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
        list[str] | None,
        typer.Argument(
            metavar="POLICY... [KEY=VALUE]...",
            help="Run folders, stages (RUN:LABEL), recipes (untrained), checkpoints, PEFT adapters; settings to change.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="RECIPE_OR_RUN", help="Measure all by the prompts and rewards of this one.")
    ] = None,
    test_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts in place of the task's: .jsonl, .json, .csv, .parquet.")
    ] = None,
    part: Annotated[Part, typer.Option(help="The prompts of the task to score on.")] = Part.test,
    generations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep all that is written in this file; without policies, measure what is in it."
        ),
    ] = None,
    to_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    to_html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at.")] = None,
    to_csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all figures as CSV.")] = None,
    to_latex: Annotated[Path | None, typer.Option("--latex", metavar="FILE", help="Write a table for LaTeX.")] = None,
    to_figures: Annotated[
        Path | None, typer.Option("--figures", metavar="FOLDER", help="Write vector figures (PDF) into this folder.")
    ] = None,
) -> None:
    """Compare policies by every reward, paired by prompt, with 95 % intervals; runs of one recipe and several seeds are one.

    Example: [bold]relgrad compare runs/quick runs/other quick --html comparison.html[/bold]
    """
    from relgrad.core.run_folder import require_writable, require_writable_file

    sources, overrides = split(what or [])
    kept = generations if sources else None
    files = (to_json, to_html, to_csv, to_latex, kept)
    for file in files:
        if file is not None:
            require_writable_file(file)
    if to_figures is not None:
        require_writable(to_figures)
    require_room(*files)
    if generations is not None and not sources:
        record = remeasure(generations, overrides, on=on, test_file=test_file)
    else:
        record = measure(sources, overrides, on=on, test_file=test_file, part=part.value, keep=kept)
    show(record)
    if kept is not None:
        print(kept)
    save(record, to_json, to_html)
    save_for_papers(record, to_csv, to_latex, to_figures)


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
    keep: Path | None = None,
) -> dict[str, Any]:
    """Evaluate under a progress bar; the record of runs/compare.py. Raises RelgradError."""
    from relgrad.core.errors import RelgradError
    from relgrad.runs.compare import Conditions, compare_sources

    if not sources:
        raise RelgradError("compare: nothing to compare; name run folders, recipes or adapters")
    conditions = Conditions(on, test_file, "validation" if part == "validation" else "test", mirrored, keep)
    return with_bar("comparing", lambda progress: compare_sources(sources, overrides, conditions, progress))


def remeasure(generations: Path, overrides: Sequence[str], *, on: str | None, test_file: Path | None) -> dict[str, Any]:
    """The record of what was kept in a file, without its policies. Raises RelgradError for options that need them."""
    from relgrad.core.errors import RelgradError
    from relgrad.runs.suite import from_file

    if on is not None or test_file is not None:
        raise RelgradError(f"compare: what is in {generations} is written already: --on and --test-file need policies")
    return from_file(generations, overrides)


def save_for_papers(
    record: Mapping[str, Any], to_csv: Path | None, to_latex: Path | None, to_figures: Path | None
) -> None:
    """Write the tables and figures that were asked for, and say where they are."""
    from relgrad.monitor.report.figures import write_figures
    from relgrad.monitor.report.tables import write_csv, write_latex

    if to_csv is not None:
        print(write_csv(record, to_csv))
    if to_latex is not None:
        print(write_latex(record, to_latex))
    for path in write_figures(record, to_figures) if to_figures is not None else ():
        print(path)


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
    from relgrad.monitor.report.figures import pictures

    if to_json is not None:
        write_json(to_json, record)
        print(to_json)
    if to_html is not None:
        print(write_comparison(record, to_html, pictures(record)))


def show(record: Mapping[str, Any]) -> None:
    """Print what was compared, then one line per figure and policy."""
    from relgrad.monitor.report.comparison import facts, heading, letter, over, preferred, seeds

    console = Console(highlight=False)
    console.print(Text("  ".join(f"{label.lower()}: {value}" for label, value in facts(record))), soft_wrap=True)
    contenders = record["contenders"]
    for i, one in enumerate(contenders):
        of = f"  seeds {seeds(one)}" if len(one["trainings"]) > 1 else ""
        console.print(Text(f"{letter(i)}  ", style="bold") + Text(one["label"]) + Text(of, style="dim"), soft_wrap=True)
    for note in record["notes"]:
        console.print(Text(f"warning: {note}", style="yellow"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    columns = ["", "", "mean", "95 % interval", heading(record).replace("−", "-"), "95 % interval"]
    for column in columns + (["p (Holm)", "d_z", "Cliff's δ"] if record["suite"] else []):
        table.add_column(column)
    for figure in record["figures"]:
        for i, (mean, difference) in enumerate(zip(figure["means"], figure["differences"], strict=True)):
            cells = [_value(mean), _interval(mean, over(mean, contenders[i]))]
            if difference is not None:
                cells += [
                    _value(difference, "+"),
                    _interval(difference, over(difference, contenders[0], contenders[i]), "+"),
                ]
                cells += _verdict(figure["verdicts"][i]) if record["suite"] else []
            table.add_row(Text(_titled(figure, record) if i == 0 else ""), letter(i), *map(Text, cells))
    console.print(table)
    for line in preferred(record):
        console.print(Text(line), soft_wrap=True)


def _titled(figure: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """A figure's name, with a mark where it is the primary one."""
    primary = record["suite"] is not None and figure["name"] == record["suite"]["primary"]
    return f"{figure['name']} (primary)" if primary else str(figure["name"])


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    """p, adjusted, and the effect sizes; a dash for what is unknown."""
    p = "–" if math.isnan(verdict["p_holm"]) else f"{verdict['p_holm']:.3f}" if verdict["p_holm"] >= 0.001 else "<0.001"
    return [p, *("–" if math.isnan(verdict[key]) else f"{verdict[key]:+.2f}" for key in ("d_z", "cliffs_delta"))]


def _value(estimate: Mapping[str, Any], sign: str = "") -> str:
    return "unscored" if math.isnan(estimate["value"]) else f"{estimate['value']:{sign}.3f}"


def _interval(estimate: Mapping[str, Any], over: str, sign: str = "") -> str:
    """The ends of an interval and what it is over, or that there is none."""
    if math.isnan(estimate["low"]) or math.isnan(estimate["high"]):
        return f"no interval, {over}"
    return f"[{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}] over {over}"
