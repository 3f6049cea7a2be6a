"""What shows that a command works: a progress bar, and lines of what is being done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.text import Text

Progress = Callable[[str, int, int], None]
"""Is told what is done, how much of it is done, and of how much."""
Value = TypeVar("Value")


def with_bar(what: str, work: Callable[[Progress], Value]) -> Value:
    """Do the work under a progress bar on the terminal or in the notebook, if there is one."""
    from rich import progress as bars

    errors = Console(stderr=True)
    shown = errors.is_terminal or errors.is_jupyter
    with bars.Progress(console=errors, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=None)

        def progress(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        return work(progress)


def tell(what: str) -> None:
    """Say on stderr what is being done now, which takes seconds."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"{what} ...", style="dim"))
