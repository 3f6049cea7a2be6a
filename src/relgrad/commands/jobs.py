"""`relgrad submit` starts a run elsewhere, `relgrad jobs` says what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relgrad.commands.endings import say
from relgrad.core.errors import RelgradError
from relgrad.launch import records
from relgrad.launch.job import Job, name_for, require_hours, secret_names
from relgrad.launch.target import DEFAULT_OUT, Record, State, target

HERE = ("localhost", "127.0.0.1", "::1")
WHERE, WHAT = "Where", "What it needs"
Out = Annotated[Path, typer.Option("--out", help="The folder that holds the runs.")]
Name = Annotated[str, typer.Argument(help="A job, or the folder of its run.")]

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


def submit(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as of `relgrad run`.")
    ] = None,
    to: Annotated[str, typer.Option(help="local, slurm, ray or anyscale.", rich_help_panel=WHERE)] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, http://HOST:8265.", rich_help_panel=WHERE)
    ] = None,
    compute: Annotated[
        str | None, typer.Option(help="Slurm's partition, Anyscale's compute configuration.", rich_help_panel=WHERE)
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder for the run that lasts, as the job sees it.", rich_help_panel=WHERE)
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="On every node.", rich_help_panel=WHAT)] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="On every node; by default one a GPU.", rich_help_panel=WHAT)
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.", rich_help_panel=WHAT)] = 1,
    hours: Annotated[
        float | None, typer.Option(help="Ends before them, with a checkpoint and code 124.", rich_help_panel=WHAT)
    ] = None,
    image: Annotated[str | None, typer.Option(help="A container image.", rich_help_panel=WHAT)] = None,
    pip: Annotated[
        list[str] | None, typer.Option(help="A requirement to install there; repeatable.", rich_help_panel=WHAT)
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A variable that it needs, never its value; repeatable.", rich_help_panel=WHAT
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Start a run that was lost so often again; it continues.", rich_help_panel=WHAT)
    ] = 0,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Then `relgrad evaluate`.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log, and end with the job's exit code.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the job file and submit nothing.")] = False,
) -> None:
    """Start a run on Ray, Slurm, Anyscale or in the background here. The same command again continues it.

    Example: [bold]relgrad submit quick grpo.steps=200 --to local --retries 2 --evaluate --wait[/bold]

    A GPU node: [bold]relgrad submit my.yaml --to slurm --gpus 8 --hours 12 --secret HF_TOKEN[/bold]
    """
    from relgrad.core.secrets import references
    from relgrad.runs.build import find_recipe, resolve
    from relgrad.runs.recipe import load_recipe

    place = target(to)
    require_hours(hours)
    file = find_recipe(recipe)
    resolved = resolve(load_recipe(file, overrides or ()))
    named = [name for stage in resolved.stages for name in references(stage.used)]
    local = resolved.stages[0].out.resolve() / resolved.name
    name = name_for(resolved.name, records.names_in(local.parent))
    if to == "local":
        _require_gpus(gpus)
    job = Job(
        name=name,
        recipe=_recipe_there(recipe, file, place.away),
        run=_storage(storage, to, place.away, address, local.parent) / resolved.name,
        folder=local / records.FOLDER / name,
        directory=Path.cwd(),
        overrides=tuple(overrides or ()),
        processes=processes or max(gpus, 1),
        nodes=nodes,
        gpus=gpus,
        hours=hours,
        max_hours=min((stage.max_hours for stage in resolved.stages if stage.max_hours is not None), default=None),
        image=image,
        pip=tuple(pip or ()),
        secrets=secret_names([*(secret or ()), *named]),
        retries=retries,
        evaluate=evaluate,
        address=address,
        compute=compute,
    )
    record = _write(job, to)
    by_hand = place.by_hand(record)
    if dry_run:
        print(record.folder / record.file)
        say(
            "not submitted",
            "edit it as you like, then "
            + " or ".join(f"`{way}`" for way in dict.fromkeys((record.command("start"), by_hand))),
            "yellow",
        )
        return
    try:
        record = _start(record)
    except RelgradError as error:
        raise RelgradError(
            f"{error}. The job file is written, {record.folder / record.file}, and not submitted: `{record.command('start')}` "
            "submits it"
        ) from None
    if wait:
        _wait(record)


def _write(job: Job, to: str) -> Record:
    """Write the job's folder: a new one, with the next number where somebody else just made it."""
    place = target(to)
    text, taken = place.write(job), [job.name]
    while True:
        try:
            job.folder.mkdir(parents=True)
            break
        except FileExistsError:
            name = name_for(job.run.name, [*taken, *records.names_in(job.folder.parents[2])])
            job = replace(job, name=name, folder=job.folder.with_name(name))
            text = place.write(job)
            taken.append(name)
    (job.folder / place.file).write_text(text, encoding="utf-8")
    handle = {"address": job.address} if job.address is not None else {}
    record = Record(job.name, to, job.run, job.folder, place.file, job.secrets, handle=handle)
    records.keep(record)
    return record


def _start(record: Record) -> Record:
    secret_names(record.secrets)
    record = records.submitted(record, target(record.target).submit(record))
    say("submitted", f"{record.name}; `{record.command('logs')}` follows it", "green")
    return record


def _wait(record: Record) -> None:
    try:
        state = target(record.target).follow(record)
    except KeyboardInterrupt:
        say("no longer followed", f"the job goes on; `{record.command('stop')}` ends it", "yellow")
        raise typer.Exit(130) from None
    say(state.word, f"{record.name}{_ending(state)}", "green" if state.word == "done" else "yellow")
    code = state.code if state.code is not None else {"done": 0, "stopped": 124}.get(state.word, 1)
    raise typer.Exit(code)


def _ending(state: State) -> str:
    code = "" if state.code is None else f", exit code {state.code}"
    return code + (f" ({state.detail})" if state.detail else "")


def _require_gpus(count: int) -> None:
    """Raise RelgradError where a job of this machine is to have more GPUs than there are."""
    if count == 0:
        return
    import torch

    there = torch.accelerator.device_count()
    if count > there:
        raise RelgradError(
            f"--gpus {count} with --to local: torch sees {there} here. Ask for no more; --processes sets processes without GPUs"
        )


def _recipe_there(recipe: str, file: Path, away: bool) -> str:
    """How the job names the recipe: its working directory is this one, or a copy of it."""
    if not Path(recipe).is_file() or not away:
        return recipe
    try:
        return str(file.resolve().relative_to(Path.cwd()))
    except ValueError:
        raise RelgradError(
            f"{recipe} is outside the working directory {Path.cwd()}, which is what the job gets a copy of: change to the folder "
            "that holds the recipe and its files"
        ) from None


def _storage(given: str | None, to: str, away: bool, address: str | None, out: Path) -> Path:
    """Where the run is written. A cluster's working directories are gone with their job, so that nothing could continue there."""
    if given is not None:
        if not Path(given).is_absolute():
            raise RelgradError(
                f"--storage {given}: give an absolute path, as the job sees it, such as /mnt/shared/runs"
            )
        return Path(given)
    if not away:
        return out
    if to == "ray":
        from relgrad.launch.targets.ray import address_of

        if urlsplit(address_of(address)).hostname in HERE:
            return out
    raise RelgradError(
        f"--to {to} runs on other machines, whose working directories are gone with their job: name a folder there that lasts, "
        "such as --storage /mnt/shared_storage/runs"
    )


# ---------------------------------------------------------------------- relgrad jobs


@app.callback()
def jobs(
    context: typer.Context,
    out: Out = Path(DEFAULT_OUT),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List jobs that `relgrad submit` started, with what their targets say of them.

    Example: [bold]relgrad jobs[/bold]
    """
    if context.invoked_subcommand is not None:
        return
    from relgrad.commands.printing import print_json

    kept = records.all_in(out)
    states = [_state(record) for record in kept]
    if as_json:
        for record, state in zip(kept, states, strict=True):
            print_json({"name": record.name, "target": record.target, "state": state.word if state else "unknown",
                        "code": state.code if state else None, "run": str(record.run), "submitted": record.submitted})  # fmt: skip
        return
    _show(kept, states)


def _state(record: Record) -> State | None:
    """The job's state; None, and why is said, where its target cannot be asked."""
    if not record.submitted:
        return State("waiting", detail="not submitted")
    try:
        return target(record.target).state(record)
    except RelgradError as error:
        say("unknown", f"{record.name}: {error}", style="yellow")
        return None


def _show(kept: Sequence[Record], states: Sequence[State | None]) -> None:
    table = Table("job", "on", "state", "run", "submitted", box=None, pad_edge=False)
    for record, state in zip(kept, states, strict=True):
        words = "unknown" if state is None else f"{state.word}{_ending(state)}"
        table.add_row(record.name, record.target, Text(words), Text(str(record.run)), record.submitted)
    Console().print(table)


@app.command()
def stop(name: Name, out: Out = Path(DEFAULT_OUT)) -> None:
    """End a job after its present step, with a checkpoint; `relgrad jobs start` continues it.

    Example: [bold]relgrad jobs stop quick-1[/bold]
    """
    record = _submitted(out, name)
    target(record.target).stop(record)
    say("stopping", f"{record.name}, which first saves a checkpoint", style="yellow")


@app.command()
def start(
    name: Name,
    out: Out = Path(DEFAULT_OUT),
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log, and end with the job's exit code.")] = False,
) -> None:
    """Submit a job's file, as it stands, again; its run continues.

    Example: [bold]relgrad jobs start quick-1 --wait[/bold]
    """
    record = records.find(out, name)
    if record.submitted:
        state = target(record.target).state(record)
        if not state.ended:
            raise RelgradError(f"job {record.name} is {state.word}: stop it first, with `{record.command('stop')}`")
    record = _start(replace(record, submitted=""))
    if wait:
        _wait(record)


@app.command()
def logs(name: Name, out: Out = Path(DEFAULT_OUT)) -> None:
    """Follow a job's log to its end, and end with its exit code.

    Example: [bold]relgrad jobs logs quick-1[/bold]
    """
    _wait(_submitted(out, name))


def _submitted(out: Path, name: str) -> Record:
    record = records.find(out, name)
    if not record.submitted:
        raise RelgradError(f"job {record.name} was not submitted: `{record.command('start')}` does it")
    return record
