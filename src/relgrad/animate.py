"""A text filling in, on the terminal: masked positions dim, fresh ones bright. Elsewhere one plain line per frame."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from relgrad.console import printable

SECONDS_PER_FRAME = 0.35
MASKED, FRESH = "dim", "bold bright_green"


def play(
    films: Sequence[Mapping[str, Any]], file: TextIO | None = None, wait: Callable[[float], None] = time.sleep
) -> None:
    """Play films one after the other; `wait` is called with the seconds until the next frame."""
    console = Console(file=file or sys.stdout, highlight=False)
    for number, film in enumerate(films):
        title = f"text {number + 1} of {len(films)}"
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(console=console, auto_refresh=False) as live:
                for frame in film["frames"]:
                    live.update(
                        Group(Text(f"{title}, {caption(film, frame)}", style="dim"), picture(frame), ""), refresh=True
                    )
                    wait(SECONDS_PER_FRAME)
        else:
            for frame in film["frames"]:
                line = printable(frame["text"].replace("\n", "⏎"))
                print(f"{title}, {caption(film, frame)}: {line}", file=console.file, flush=True)


def caption(film: Mapping[str, Any], frame: Mapping[str, Any]) -> str:
    """Where in the film a frame is, and what it did: "step 2 of 8, 41 filled"."""
    steps = film["frames"][-1]["step"]
    what = f"{len(frame['masked'])} masked" if frame["masked"] else f"{len(frame['filled'])} filled"
    return f"step {frame['step']} of {steps}, {what}"


def picture(frame: Mapping[str, Any]) -> Text:
    """The text of a frame, its masked and its fresh positions marked by their style."""
    masked, filled = set(frame["masked"]), set(frame["filled"])
    text = Text()
    for position, cell in enumerate(frame.get("cells") or frame["text"]):
        style = MASKED if position in masked else FRESH if position in filled else ""
        text.append(printable(cell, keep="\n"), style=style)
    return text
