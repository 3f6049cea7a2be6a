"""The progress bar of commands that evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

Work = Callable[[Callable[[str, int, int], None]], dict[str, Any]]
"""Is given (what is done, done, of how many) to call."""


def with_bar(what: str, work: Work) -> dict[str, Any]:
    """Do the work under a progress bar on the terminal, if there is one."""
    from rich.progress import Progress

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def progress(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        return work(progress)
