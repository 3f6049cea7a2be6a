"""What commands show: figures, samples and films, as text or as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_films(films: list[dict[str, Any]], animate: bool, as_json: bool) -> None:
    if animate:
        from relgrad.monitor.animate import play

        play(films)
        return
    for film in films:
        if as_json:
            print_json(film)
        else:
            steps = film["frames"][-1]["step"]
            shown = {"prompt": film["prompt"], "completion": film["final"], "steps": steps, "seconds": film["seconds"]}
            show_sample(shown | film.get("parts", {}) | {"why": film.get("why")})


def print_json(record: dict[str, Any]) -> None:
    from relgrad.core.run_folder import finite

    readable = str(sys.stdout.encoding).lower().startswith("utf")
    print(json.dumps(finite(record), ensure_ascii=not readable), flush=True)


def show_sample(record: dict[str, Any]) -> None:
    from relgrad.monitor.console import printable

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text("prompt  ", style="bold") + Text(printable(str(record["prompt"]), keep="\n")))
    console.print(Text("writes  ", style="bold") + Text(printable(str(record["completion"]), keep="\n")))
    rest = {k: v for k, v in record.items() if k not in ("prompt", "completion") and v not in (None, "", {})}
    console.print(Text("        " + "  ".join(f"{k} {_brief(v)}" for k, v in rest.items()), style="dim"))


def in_words(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's record with its interval in words, behind the score."""
    from relgrad.monitor.intervals import ends_of

    interval = {"score": evaluation["score"], "95 % interval": ends_of(evaluation, _brief)}
    rest = {k: v for k, v in evaluation.items() if k not in ("score", "low", "high", "over", "units")}
    return {"step": rest.pop("step"), "weights": rest.pop("weights"), "name": rest.pop("name"), **interval, **rest}


def show_figures(figures: dict[str, Any]) -> None:
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    for name, value in figures.items():
        shown = "" if value is None or value != value or isinstance(value, list) else _brief(value)  # nan is not itself
        if shown:
            table.add_row(str(name), Text(shown))
    Console().print(table)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{k} {_brief(v)}" for k, v in value.items() if not isinstance(v, list))
    return str(value)
