"""The live display: progress with time left, the figures of the last step, and what the policy just wrote.

On a terminal it is redrawn in place. Anywhere else (a log file, a pipe, CI) it is plain lines without control
characters: one per `every` steps, and every evaluation and warning at once.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import rich.box
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from relgrad.monitor.intervals import ends_of

FIGURES = {
    "reward": "reward",
    "reward_std": "± std",
    "loss": "loss",
    "kl": "KL",
    "eval_loss": "validation loss",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
    "completions/mean_length": "length",
    "tokens_per_second": "tokens/s",
}
"""What is shown of a step's metrics, in this order, where the step has it."""

SEVERITY_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
SHOWN_SAMPLES = 3
LINES_PER_RUN = 20


class Console:
    """A Tracker for people's eyes; use it as a context manager around the training loop.

    title        what is being trained, for example "quick/grpo"
    total_steps  the last step's number; `first_step` of them are already done when a run resumes
    every        steps between two plain lines; by default about 20 lines per run
    figures      metrics to show in place of `FIGURES`, under their own names
    transcript   is given every line, those of steps also where the display is redrawn in place
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        first_step: int = 0,
        every: int | None = None,
        file: TextIO | None = None,
        figures: Sequence[str] | None = None,
        transcript: Callable[[str], None] | None = None,
    ) -> None:
        self.title, self.total_steps, self.first_step = title, total_steps, first_step
        self.every = every or max(1, total_steps // LINES_PER_RUN)
        self.file = file or sys.stdout
        self.figures = FIGURES if figures is None else {name: name for name in figures}
        self.transcript = transcript
        self.started = time.monotonic()
        self.metrics: dict[str, float] = {}
        self.records: list[Mapping[str, Any]] = []
        self.live: Live | None = None
        self.side: TaskID | None = None
        if self.file.isatty():
            self._build_display()

    def _build_display(self) -> None:
        terminal = RichConsole(file=self.file)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal,
        )
        self.task = self.progress.add_task(self.title, total=self.total_steps, completed=self.first_step)
        if not terminal.is_dumb_terminal:
            self.live = Live(console=terminal, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Console:
        self.started = time.monotonic()
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self.live:
            self.live.stop()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of optimizer step `step` (1 is the first)."""
        self.metrics = dict(metrics)
        if self.live:
            self.progress.update(self.task, completed=step)
        if step % self.every == 0 or step in (self.first_step + 1, self.total_steps):
            figures = "  ".join(f"{name} {value}" for name, value in self._figures())
            line = f"{self.title}  step {step}/{self.total_steps}  {figures}  left {self._time_left(step)}"
            self._keep(line) if self.live else self._line(line)

    def busy(self, what: str, done: int, total: int) -> None:
        """Show how far something other than training has come ("evaluating", 16 of 100); gone when it is complete."""
        if not self.live:
            return
        if self.side is None:
            self.side = self.progress.add_task(what, total=total)
        self.progress.update(self.side, description=what, completed=done, total=total)
        if done >= total:
            self.progress.remove_task(self.side)
            self.side = None

    def samples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep the best, the middle and the worst of the step's completions to show (run-folder sample records)."""
        ranked = sorted(records, key=_worse_last)
        count = min(SHOWN_SAMPLES, len(ranked))
        self.records = [ranked[i * (len(ranked) - 1) // max(1, count - 1)] for i in range(count)]

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Print one score with its 95 % interval (a record of evaluations.jsonl)."""
        name, step = record.get("name", "held-out"), record["step"]
        weights = record.get("weights", step)
        of = f", weights of step {weights}" if weights != step else ""
        score = f"{name} score {number(record['score'])} {ends_of(record, number)}"
        prompts = "" if record.get("over", "prompts") == "prompts" else f", {record['n']} prompts"
        self._line(f"{self.title}  step {step}  {score}{prompts}{of}")

    def warn(self, text: str, severity: str = "warning") -> None:
        """Print a warning above the display, called by its severity: error, warning or note."""
        self._line(f"{severity}: {text}", style=SEVERITY_STYLES[severity])

    def note(self, text: str) -> None:
        """Print one line of information above the display."""
        self._line(text)

    def _line(self, text: str, style: str = "") -> None:
        text = printable(text, keep="\n")
        self._keep(text)
        if self.live:
            self.live.console.print(Text(text, style=style))
        else:
            print(text, file=self.file, flush=True)

    def _keep(self, text: str) -> None:
        if self.transcript is not None:
            self.transcript(text)

    def _figures(self) -> list[tuple[str, str]]:
        return [(label, number(self.metrics[key])) for key, label in self.figures.items() if key in self.metrics]

    def _time_left(self, step: int) -> str:
        done = step - self.first_step
        return duration((time.monotonic() - self.started) / max(1, done) * (self.total_steps - step))

    def _render(self) -> Group:
        figures = Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False)
        shown = self._figures()
        for name, _ in shown:
            figures.add_column(name, justify="right")
        figures.add_row(*(value for _, value in shown))
        parts: list[Any] = [self.progress, figures] if shown else [self.progress]
        if self.records:
            samples = Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, expand=True)
            samples.add_column("prompt", ratio=1)
            samples.add_column("completion", ratio=2)
            samples.add_column("reward", justify="right")
            for record in self.records:
                samples.add_row(excerpt(record["prompt"], 80), excerpt(record["completion"]), number(record["reward"]))
            parts.append(samples)
        return Group(*parts)


def _worse_last(record: Mapping[str, Any]) -> tuple[bool, float]:
    reward = record["reward"]
    unscored = reward is None or math.isnan(reward)
    return unscored, 0.0 if unscored else -reward


def number(value: float | None) -> str:
    """Four significant digits at most: 0.01234 -> "0.01234", 1234.5 -> "1,234"; None and NaN are "unscored"."""
    if value is None or math.isnan(value):
        return "unscored"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds for people: 42 -> "42s", 90 -> "1m30s", 7260 -> "2h01m"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def excerpt(text: str, length: int = 160) -> Text:
    """`text` on one line, its end kept (a prompt's question and a completion's answer come last)."""
    flat = printable(" ".join(text.split()))
    return Text(flat if len(flat) <= length else "…" + flat[1 - length :])


def printable(text: str, keep: str = "") -> str:
    """`text` with every control character but those in `keep` replaced: a model may write escape sequences."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
