"""`relgrad.train`: what `relgrad run RECIPE` does, started from a Python script with Python's own values in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import fault_of_name
from relgrad.python.run import Run
from relgrad.python.sections import Sections


def train(
    policy: Any, task: Any, rewards: Any = (), *, name: str | None = None, fresh: bool = False, **sections: Any
) -> Run:
    """Train a policy on a task by rewards, and return the finished run. The same script started again goes on where it was.

    policy    the name or folder of an autoregressive language model ("Qwen/Qwen3-0.6B"), or a recipe's `policy` section
    task      rows: a list of mappings, a datasets.Dataset; {"train": rows, "test": rows, ...} for several parts; a Task; or a
              recipe's `task` section
    rewards   functions as TRL calls them, or as relgrad does (docs/write-your-own.md), and `rewards` sections
    name      the run's folder in `out`; no path
    fresh     delete what an earlier run of this name left, and start over
    sections  everything else that a recipe says: grpo={"steps": 100}, evaluation={...}, stages=[...], seed=0, out="runs" ...

    Under torchrun every process calls it, and they share the run. Raises RelgradError with the messages of the command line, and
    core.errors.Stopped where SIGTERM or `max_hours` ended the run before its end.

    Example:

        run = relgrad.train("Qwen/Qwen3-0.6B", rows, [brevity], name="brief", grpo={"steps": 200, "num_generations": 8})
    """
    import typer

    from relgrad.commands.processes import joined
    from relgrad.runs.build import resolve
    from relgrad.runs.recipe import parse_recipe
    from relgrad.runs.run import run_recipe

    if registry.executing:
        raise RelgradError(
            f"relgrad.train is called while {registry.executing[-1]} is imported for one of its functions; put the call under "
            '`if __name__ == "__main__":`'
        )
    if not isinstance(name, str):
        raise RelgradError(f"name: received {name!r}; say how the run's folder is called, for example name='first'")
    if fault := fault_of_name(name):
        raise RelgradError(f"name: {fault}")
    if not isinstance(sections.get("out", "runs"), (str, Path)):
        raise RelgradError(
            f"out: received {sections['out']!r}; it is the folder that runs are in, for example out='runs'"
        )
    recipe_sections = {"policy": policy, "task": task, "rewards": rewards, **sections}
    folder = Path(sections.get("out", "runs")) / name
    try:
        with joined() as ranks:
            raw = {"name": name, **Sections(folder, writes=ranks.first).recipe(recipe_sections)}
            ranks.wait()
            folders = run_recipe(resolve(parse_recipe(raw, source=name)), fresh=fresh, ranks=ranks)
    except typer.Exit as ended:  # another process says why
        raise SystemExit(ended.exit_code) from None
    return Run(folder, folders)
