"""`relgrad search`: the best workflow of operators, found by execution within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relgrad.commands.bar import with_bar


def search(
    recipe: Annotated[str, typer.Argument(help="A YAML file with a section `search`, or the name of a built-in one.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. search.budget.calls=200"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier search left and start over.")] = False,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write the best workflow.")] = None,
) -> None:
    """Search for the best workflow, or for programs with a policy as prior; a search that was stopped goes on, and pays for nothing
    twice.

    Example: [bold]relgrad search workflows-quick search.budget.calls=200 --export best.json[/bold]
    """
    from relgrad.core.errors import RelgradError
    from relgrad.core.run_folder import require_writable_file
    from relgrad.runs.decision_search import load_decision_search, run_decision_search
    from relgrad.runs.search import export as write
    from relgrad.runs.search import load_search, run_search

    if (decisions := load_decision_search(recipe, overrides or ())) is not None:
        if export is not None:
            raise RelgradError(
                "--export is for searches for workflows; this one has a program for every prompt, in trajectories.jsonl"
            )
        show_decisions(with_bar("searching", partial(_searched, run_decision_search, decisions, fresh)))
        print(f"programs: {decisions.folder / 'trajectories.jsonl'}")
        return
    if export is not None:
        require_writable_file(export)
    loaded = load_search(recipe, overrides or ())
    result = with_bar("searching", partial(_searched, run_search, loaded, fresh))
    show(result)
    print(f"page: {loaded.folder / 'search.html'}")
    if export is not None:
        write(loaded.folder, result, loaded, export)
        print(f"workflow: {export}")


def _searched(work: Any, recipe: Any, fresh: bool, progress: Any) -> dict[str, Any]:
    return work(recipe, fresh=fresh, progress=progress)


def show(result: Mapping[str, Any]) -> None:
    """What the search found, what that is worth, and what it cost."""
    console = Console(highlight=False, soft_wrap=True)
    for best in result["best"]:
        scope = f"{best['scope']}  " if best["scope"] else ""
        console.print(Text(f"best  {scope}", style="bold") + Text(best["workflow"]))
        console.print(
            Text(
                f"      score {_figure(best['score'])} ± {_figure(best['error'])} in {best['trials']} trials",
                style="dim",
            )
        )
    if result["exact"]:
        exact = result["exact"]
        console.print(
            Text(f"exact score {_figure(exact['score'])}, regret {_figure(exact['regret'])} against {exact['optimum']}")
        )
    if result["test"]:
        table = Table("test", "score", "95 % interval", "accuracy", "cost", "best - this", box=None, pad_edge=False)
        for row in result["test"]:
            table.add_row(
                Text(row["name"]), _figure(row["score"]), _interval(row, ""), _figure(row["accuracy"]), _figure(row["cost"]),
                f"{_figure(row['best_minus'])} {_interval(row, 'best_minus_')}" if "best_minus" in row else "",
            )  # fmt: skip
        console.print(table)
    spent, flight = result["spent"], result["in_flight"]
    money = f", {spent['money']:g} money" if spent["money"] else ""
    console.print(
        Text(
            f"{result['workflows']} workflows, {spent['calls']} calls, {spent['tokens']} tokens{money}, "
            f"{spent['seconds']:.1f} s; ended by {'; '.join(dict.fromkeys(result['reasons']))}"
        )
    )
    if flight["calls"]:
        lost = flight["at_worst"]
        tokens = lost["input_tokens"] + lost["output_tokens"]
        console.print(
            Text(
                f"{flight['calls']} calls were under way when the search was stopped, or failed for good; at the worst they count "
                f"as {lost['calls']} calls and {tokens} tokens",
                style="yellow",
            )
        )


def show_decisions(result: Mapping[str, Any]) -> None:
    """How much a search of decisions has solved."""
    table = Table("prior " + str(result["prior"]), "mean", "95 % interval over prompts", box=None, pad_edge=False)
    for name, figure in result["figures"].items():
        table.add_row(name, _figure(figure["value"]), _interval(figure, ""))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{result['solved']} of {result['prompts']} prompts solved")


def _figure(value: float | None) -> str:
    return "unscored" if value is None or math.isnan(value) else f"{value:.3f}"


def _interval(row: Mapping[str, Any], prefix: str) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "no interval" if math.isnan(low) or math.isnan(high) else f"[{low:.3f}, {high:.3f}]"
