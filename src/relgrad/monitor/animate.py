"""A text coming about, on the terminal: noise and masked positions dim, fresh ones bright. Elsewhere one plain line per frame."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from relgrad.monitor.console import printable

SECONDS_PER_FRAME = 0.35
MASKED, FRESH = "dim", "bold bright_green"
RIGHT, WRONG = "bold bright_green", "bright_red strike"


def play(
    films: Sequence[Mapping[str, Any]], file: TextIO | None = None, wait: Callable[[float], None] = time.sleep
) -> None:
    """Play films one after the other; `wait` is called with the seconds until the next frame."""
    console = Console(file=file or sys.stdout, highlight=False)
    for number, film in enumerate(films):
        title = f"text {number + 1} of {len(films)}"
        if console.is_terminal and not console.is_dumb_terminal:
            if not fills_in(film):
                console.print(Text(f"{title}, prompt ", style="dim") + Text(printable(film["prompt"], keep="\n")))
            with Live(console=console, auto_refresh=False) as live:
                for frame in film["frames"]:
                    live.update(
                        Group(Text(f"{title}, {caption(film, frame)}", style="dim"), picture(frame, film), ""),
                        refresh=True,
                    )
                    wait(SECONDS_PER_FRAME)
        else:
            lines = [f"{title}, {caption(film, frame)}: {_plain(frame['text'])}" for frame in film["frames"]]
            prompt = [] if fills_in(film) else [f"{title}, prompt: {_plain(film['prompt'])}"]
            for line in [*prompt, *lines]:
                print(line, file=console.file, flush=True)


def fills_in(film: Mapping[str, Any]) -> bool:
    """Whether the text was given and had holes; otherwise it began as noise or masks, and the prompt stands before it."""
    return film.get("source", "text") == "text"


def caption(film: Mapping[str, Any], frame: Mapping[str, Any]) -> str:
    """Where in the film a frame is, and what it did: "step 2 of 8, 41 filled", or "step 2 of 16, 12 jumped, 30 masked".

    Where it is known what was hidden, also how much of it is right: "7 of 41 right".
    """
    steps = film["frames"][-1]["step"]
    masked, filled = f"{len(frame['masked'])} masked", len(frame["filled"])
    if fills_in(film):
        what = masked if frame["masked"] else f"{filled} filled"
        if places := outcome(film, frame):
            what += f", {sum(places.values())} of {len(film['hidden'])} right"
    elif not frame["step"]:
        what = "all masked" if frame["masked"] else "noise"
    else:
        what = f"{filled} jumped" + (f", {masked}" if frame["masked"] else "")
    return f"step {frame['step']} of {steps}, {what}"


def picture(frame: Mapping[str, Any], film: Mapping[str, Any]) -> Text:
    """The text of a frame. Masked, fresh, right and wrong positions, and noise that no step has touched, have a style each."""
    filled, dim = set(frame["filled"]), set(frame["masked"])
    if not fills_in(film):
        dim |= {i for i, confidence in enumerate(frame["confidence"]) if confidence is None}
    places = outcome(film, frame)
    text = Text()
    for position, cell in enumerate(frame.get("cells") or frame["text"]):
        style = MASKED if position in dim else FRESH if position in filled else ""
        if position in places:
            style = RIGHT if places[position] else WRONG
        text.append(printable(cell, keep="\n"), style=style)
    return text


def outcome(film: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[int, bool]:
    """Of every position that was hidden and is filled: whether the frame has there what was hidden."""
    cells, masked = frame.get("cells") or frame["text"], set(frame["masked"])
    hidden = [(position, text) for position, text in film.get("hidden") or () if position not in masked]
    return {position: cells[position] == text for position, text in hidden if position < len(cells)}


def _plain(text: str) -> str:
    return printable(text.replace("\n", "⏎"))
