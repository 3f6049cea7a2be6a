"""The command line. Every command imports what it needs when it runs, so that `relgrad --help` answers at once.

Exit codes: 0 done, 1 an unexpected error (with its traceback) or a failed doctor, 2 a RelgradError or wrong usage,
130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import relgrad

if TYPE_CHECKING:
    from relgrad.config import Recipe, Stage


class Commands(TyperGroup):
    """All commands, with one place that turns exceptions into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted", _how_to_resume(ctx.invoked_subcommand), style="yellow")
            raise typer.Exit(130) from None
        except Exception as error:
            from relgrad.types import RelgradError

            if not isinstance(error, RelgradError):
                raise
            _say("error", str(error), style="bold red")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. grpo.beta=0.04")
]
Source = Annotated[str, typer.Argument(help="A recipe, or the folder of a run.", metavar="RECIPE_OR_RUN")]


def _version(value: bool) -> None:
    if value:
        print(relgrad.__version__)
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """GRPO for every kind of text generator, with likelihoods you can trust.

    Start with [bold]relgrad demo[/bold] or [bold]relgrad run quick[/bold].
    """


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in recipe.")],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left and start over.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved recipe and what would happen.")] = False,
) -> None:
    """Train what a recipe describes; a run that was stopped continues where it was.

    Example: [bold]relgrad run quick grpo.steps=20 grpo.learning_rate=3e-4[/bold]
    """
    from relgrad.config import load_recipe
    from relgrad.run import find_recipe, resolve, run_recipe

    resolved = resolve(load_recipe(find_recipe(recipe), overrides or ()))
    if dry_run:
        _explain(resolved, fresh)
        return
    for folder in run_recipe(resolved, fresh=fresh):
        print(f"done: {folder}")


@app.command()
def sample(
    source: Source,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Your own prompt; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Completions per prompt.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Let a policy write: a run's trained one, or a recipe's untrained one. Without --prompt, on held-out prompts.

    Example: [bold]relgrad sample runs/quick --prompt "12345" -n 2[/bold]
    """
    from relgrad.run import sample as draw
    from relgrad.rundir import finite

    for record in draw(source, prompt or [], n, overrides or []):
        if as_json:
            print(json.dumps(finite(record), ensure_ascii=False), flush=True)
        else:
            _show_sample(record)


@app.command()
def evaluate(
    source: Source,
    overrides: Overrides = None,
    against: Annotated[str | None, typer.Option(help="Another run to compare with, on the same prompts.")] = None,
) -> None:
    """Score a policy on held-out prompts, with a 95 % interval; --against compares two runs pairwise.

    Example: [bold]relgrad evaluate runs/quick --against runs/other[/bold]
    """
    from rich.progress import Progress

    from relgrad.run import evaluate_run

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        figures = evaluate_run(
            source, against, overrides or [], lambda done, total: bar.update(task, completed=done, total=total)
        )
    _show_figures(figures)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Write a run's report: one HTML file that needs nothing else.

    Example: [bold]relgrad report runs/quick[/bold]
    """
    from relgrad.report import write_report

    try:
        print(write_report(folder))
    except FileNotFoundError as error:  # the report knows nothing of relgrad's own error, which needs torch
        from relgrad.types import RelgradError

        raise RelgradError(str(error)) from None


@app.command()
def demo(overrides: Overrides = None) -> None:
    """GRPO on a real pretrained model, SmolLM2-135M-Instruct, with its held-out score before and after.

    Example: [bold]relgrad demo seed=1[/bold]
    """
    from relgrad.run import demo as play

    play(overrides or [])


@app.command()
def recipes() -> None:
    """List the built-in recipes.

    Example: [bold]relgrad recipes[/bold]
    """
    from relgrad.run import RECIPES

    table = Table("recipe", "what it does", box=None, pad_edge=False)
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        table.add_row(path.stem, Text(first.lstrip("# ") if first.startswith("#") else ""))
    Console().print(table)


@app.command()
def doctor() -> None:
    """Tell what is installed, which device there is, what would run, and what to install for the rest.

    Example: [bold]relgrad doctor[/bold]
    """
    from relgrad import doctor as physician

    checks = physician.examine()
    physician.show(checks)
    if not physician.healthy(checks):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the `relgrad` command."""
    # Torch's threads wait in busy loops unless told otherwise before torch is loaded. On cores shared with other
    # jobs that slows a step down several times; sleeping costs microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="relgrad")


def _say(word: str, text: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"{word}: ", style=style) + Text(text))


def _how_to_resume(command: str | None) -> str:
    if command != "run":
        return "nothing that was saved is lost"
    again = shlex.join(["relgrad", *(a for a in sys.argv[1:] if a != "--fresh")])
    return f"what was saved is safe; continue from the last checkpoint with `{again}`"


def _explain(recipe: Recipe, fresh: bool) -> None:
    import yaml

    from relgrad.run import stage_folders

    for folder, stage in zip(stage_folders(recipe), recipe.stages, strict=True):
        unused = {"grpo": {"sft"}, "sft": {"grpo"}}[stage.stage]
        settings = stage.model_dump(mode="json", exclude=unused)
        print(f"# {_plan(folder, stage, fresh)}")
        print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _plan(folder: Path, stage: Stage, fresh: bool) -> str:
    from relgrad.checkpoint import steps

    if stage.stage == "sft":
        work = f"{stage.sft.steps} supervised steps of {stage.sft.batch_size} examples"
    else:
        grpo = stage.grpo
        work = f"{grpo.steps} GRPO steps, {grpo.num_prompts} prompts x {grpo.num_generations} completions per batch"
    saved = steps(folder / "checkpoints")
    if fresh and folder.exists():
        start = "deleting what is there"
    else:
        start = f"continuing after step {saved[-1]}" if saved else "from the beginning"
    return f"{folder}: {work}; {start}"


def _show_sample(record: dict[str, Any]) -> None:
    from relgrad.console import printable

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text("prompt  ", style="bold") + Text(printable(str(record["prompt"]), keep="\n")))
    console.print(Text("writes  ", style="bold") + Text(printable(str(record["completion"]), keep="\n")))
    rest = {k: v for k, v in record.items() if k not in ("prompt", "completion") and v not in (None, "", {})}
    console.print(Text("        " + "  ".join(f"{k} {_brief(v)}" for k, v in rest.items()), style="dim"))


def _show_figures(figures: dict[str, Any]) -> None:
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    for name, value in figures.items():
        if value is not None and not isinstance(value, list):
            table.add_row(str(name), Text(_brief(value)))
    Console().print(table)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{k} {_brief(v)}" for k, v in value.items() if not isinstance(v, list))
    return str(value)
