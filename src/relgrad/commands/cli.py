"""The command line. Every command imports what it needs when it runs, so that `relgrad --help` answers at once.

Exit codes: 0 done, 1 an unexpected error (with its traceback) or a failed doctor, 2 a RelgradError or wrong usage,
75 another process of the job was lost, 124 ended by SIGTERM or `max_hours` with a checkpoint (as of `timeout`), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import relgrad
from relgrad.commands import compare as comparing
from relgrad.commands import jobs, sharing
from relgrad.commands.bar import with_bar
from relgrad.commands.compare import Part
from relgrad.commands.endings import Commands, command_to_continue, say, show_traceback
from relgrad.commands.forms import app as forms
from relgrad.commands.printing import in_words, print_json, show_figures, show_films, show_sample
from relgrad.commands.replies import split
from relgrad.commands.rewards import app as rewards
from relgrad.commands.sample_options import LARGEST, with_declared
from relgrad.commands.search import search
from relgrad.commands.workflow import app as workflow

app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(forms, name="forms")
app.add_typer(workflow, name="workflow")
app.add_typer(rewards, name="rewards")
app.add_typer(jobs.app, name="jobs")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. grpo.beta=0.04")
]
STEPS = "Writing in several steps"
AHEAD = "Before it starts"
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
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, a Python file of the diffusion-GPT trainer, or the name of a built-in recipe."
        ),
    ],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left and start over.")] = False,
    redo: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="Start this stage over, and those that go on from it; keep the others."
        ),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although files that the recipe names have changed.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=AHEAD, help="Show the resolved recipe, what would happen and what it takes."
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", rich_help_panel=AHEAD, help="With --dry-run: time two steps of every stage.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", rich_help_panel=AHEAD, help="With --dry-run: what an hour costs, e.g. 1.99."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=AHEAD, help="With --dry-run: the estimate alone, as JSON.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Share the work among so many processes on this machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share it; the command runs on every one.")] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where several machines meet: one of them.")
    ] = None,
) -> None:
    """Train what a recipe describes; a run that was stopped continues where it was.

    Example: [bold]relgrad run quick grpo.steps=20 grpo.learning_rate=3e-4[/bold]

    Before a long one: [bold]relgrad run my.yaml --dry-run --measure --price-per-hour 1.99[/bold]

    Several machines: [bold]relgrad run RECIPE --processes 8 --nodes 2 --rendezvous HOST:29500[/bold] on each, or torchrun

    Exit codes: 0 done; 2 an error; 3 a stage did not reach its [bold]evaluation.gate[/bold]; 75 another process was lost; 124
    ended by SIGTERM or [bold]max_hours[/bold], with a checkpoint
    (start the same command again); 130 interrupted.
    """
    from relgrad.commands.processes import STOPPED, joined, launch
    from relgrad.runs.build import find_recipe, resolve
    from relgrad.runs.recipe import load_recipe
    from relgrad.runs.run import run_recipe

    resolved = resolve(load_recipe(find_recipe(recipe), overrides or ()))
    if dry_run:
        from relgrad.commands.estimate import explain

        explain(resolved, fresh, redo, accept_changes, measure=measure, price=price, as_json=as_json)
        return
    if measure or as_json or price is not None:
        raise typer.BadParameter("--measure, --json and --price-per-hour belong to --dry-run")
    if processes > 1 or nodes > 1 or rendezvous is not None:
        kept = [*(["--fresh"] if fresh else []), *(["--from", redo] if redo is not None else [])]
        kept += ["--accept-changes"] if accept_changes else []
        code = launch(["run", recipe, *(overrides or ()), *kept], processes, nodes, rendezvous)
        if code == STOPPED:
            say("stopped", f"continue with `{command_to_continue()}`", style="yellow")
        raise typer.Exit(code)
    with joined() as ranks:
        for folder in run_recipe(resolved, fresh=fresh, redo=redo, accept_changes=accept_changes, ranks=ranks):
            print(f"done: {folder}")


def sample(
    source: Source,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Your own prompt; repeatable.")] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, max=LARGEST, help="Completions per prompt: 4, or 1 in several steps.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    animate: Annotated[
        bool, typer.Option("--animate", rich_help_panel=STEPS, help="Play how the text comes about.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", rich_help_panel=STEPS, help="Keep the films in the run's folder, for its report.")
    ] = False,
    **options: Any,
) -> None:
    """Let a policy write: a run's trained one, or a recipe's untrained one. Without --prompt, on test prompts.

    Example: [bold]relgrad sample runs/quick --prompt "12345" -n 2[/bold]
    """
    prompts, settings = prompt or [], overrides or []
    if animate and as_json:
        raise typer.BadParameter("--animate plays the frames and --json prints them: give one of them")
    chosen = {name: value for name, value in options.items() if value is not None}
    if animate or save or chosen:
        from relgrad.commands.films import shoot

        films, file = shoot(source, prompts, n or 1, settings, chosen, save)
        show_films(films, animate, as_json)
        if file is not None:
            say("saved", f"{file}; show it with `relgrad report {shlex.quote(str(file.parent))}`", style="green")
        return
    from relgrad.runs.use import sample as draw

    for record in draw(source, prompts, n or 4, settings):
        print_json(record) if as_json else show_sample(record)


app.command()(with_declared(sample, STEPS))


@app.command()
def evaluate(
    source: Source,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None, typer.Option(help="What to compare it with, by its prompts and rewards; others may follow.")
    ] = None,
    part: Annotated[Part, typer.Option(help="The prompts of the task to score on.")] = Part.test,
) -> None:
    """Score a policy on the task's test prompts, with a 95 % interval; --against compares it with others, paired by prompt.

    Example: [bold]relgrad evaluate runs/quick --against runs/other quick[/bold]
    """
    from relgrad.runs.use import evaluate_run

    if against:
        more, settings = comparing.split(overrides or [])
        others = [source, *against, *more]
        comparing.show(comparing.measure(others, settings, on=source, part=part.value, mirrored=True))
        return

    def score(progress: Any) -> dict[str, Any]:
        return evaluate_run(source, overrides or [], partial(progress, "evaluating"), part.value)

    show_figures(in_words(with_bar("evaluating", score)))


app.command()(comparing.compare)
app.command()(sharing.merge)
app.command()(sharing.push)
app.command()(search)
app.command()(jobs.submit)


@app.command()
def audit(
    judge: Annotated[str, typer.Argument(help="The folder of a judge or judge stage, or an original .pt file.")],
    generator: Annotated[str, typer.Option(help="The run (or recipe) whose policy writes what is judged.")],
    out: Annotated[str | None, typer.Option(help="A folder for the audited judge; otherwise its own.")] = None,
) -> None:
    """Examine a judge before it may reward: does its score go along with the truth, also within groups of one prompt?

    Example: [bold]relgrad audit runs/fill/2-judge --generator runs/fill/1-sft[/bold]
    """
    from relgrad.runs.use import audit as examine

    show_figures(with_bar("auditing", lambda progress: examine(judge, generator, out, partial(progress, "auditing"))))


@app.command()
def export(
    source: Source,
    file: Annotated[Path, typer.Argument(help="The file to write, for example ckpt.pt.")],
    overrides: Overrides = None,
) -> None:
    """Write a fill-in policy as a checkpoint of the diffusion-GPT trainer, for that trainer's own sampler.

    Example: [bold]relgrad export runs/fill out-char-diffusion/ckpt.pt[/bold]
    """
    from relgrad.runs.use import export as write

    for note in write(source, file, overrides or []):
        say("note", note, style="yellow")
    print(file)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Write a run's report: one HTML file that needs nothing else.

    Example: [bold]relgrad report runs/quick[/bold]
    """
    from relgrad.monitor.report import write_report

    print(write_report(folder))


@app.command()
def demo(overrides: Overrides = None) -> None:
    """GRPO on a real pretrained model, SmolLM2-135M-Instruct, with its score before and after.

    Example: [bold]relgrad demo seed=1[/bold]
    """
    from relgrad.runs.use import demo as play

    play(overrides or [])


@app.command()
def prepare(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to fill, or to go on filling.")],
    recipe: Annotated[
        str | None, typer.Argument(help="Take the task of this recipe, its first of kind masked_text.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the task, e.g. length=256")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="A UTF-8 text file; without it, Python's help texts.")
    ] = None,
    files: Annotated[
        int | None, typer.Option("--files", min=1, help="Files in all: 20, or endless with --ahead.")
    ] = None,
    ahead: Annotated[
        int | None, typer.Option("--ahead", min=1, help="Stay at most this many files beyond the slowest consumer.")
    ] = None,
    samples_per_file: Annotated[int | None, typer.Option("--samples-per-file", min=1, help="1024 by default.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The recipe's, or 0.")] = None,
) -> None:
    """Mask a text and write the samples into a folder, for a task of kind masked_stream. The same command again goes on.

    Example: [bold]relgrad prepare --text my.txt --out data/my --files 20 length=128 stages.0.max_masked_ratio=0.2[/bold]
    """
    from relgrad.commands.masked_data import prepare as fill
    from relgrad.commands.masked_data import progress

    settings = list(overrides or [])
    if recipe is not None and "=" in recipe:
        settings, recipe = [recipe, *settings], None
    if text is not None:
        settings.append(f"text={json.dumps(text, ensure_ascii=False)}")
    bar, wrote = progress(Console(stderr=True))
    with bar:
        plan = fill(
            out, recipe, settings, files=files, ahead=ahead, samples_per_file=samples_per_file, seed=seed, wrote=wrote
        )
    print(f"{out}: {plan.files} files of {plan.samples_per_file} samples, {plan.held_out + plan.test} held-out samples")


@app.command(name="inspect-batch")
def inspect_batch(
    source: Annotated[
        str, typer.Argument(help="A recipe, a prepared folder or one of its files, or an original .pt file.")
    ],
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=0, help="Samples to show.")] = 4,
    truth: Annotated[bool, typer.Option("--truth", help="Show what the masks hide.")] = False,
    held_out: Annotated[bool, typer.Option("--held-out", help="The samples to judge by.")] = False,
    meta: Annotated[
        Path | None, typer.Option("--meta", help="An original file's meta.pkl, or a vocabulary.json.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Samples that the figures are about.")] = 1000,
) -> None:
    """Show what masks look like: some samples, and how much is masked, asked for and padding, by strategy.

    Example: [bold]relgrad inspect-batch data/my --truth[/bold]
    """
    from relgrad.commands.masked_data import print_rows, rows_of

    rows, vocabulary = rows_of(source, overrides or [], meta=meta, held_out=held_out, limit=limit)
    print_rows(rows, vocabulary, n, truth=truth)


app.command()(split)


@app.command()
def recipes() -> None:
    """List the built-in recipes.

    Example: [bold]relgrad recipes[/bold]
    """
    from relgrad.runs.build import RECIPES

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
    from relgrad.commands import doctor as physician

    checks = physician.examine()
    physician.show(checks)
    if not physician.healthy(checks):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the `relgrad` command."""
    # Torch's waiting threads spin unless told otherwise before torch is loaded; on shared cores that costs several times more.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.excepthook = show_traceback
    app(prog_name="relgrad")
