"""`relgrad merge` and `relgrad push`: a run's result for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from relgrad.commands.bar import tell
from relgrad.commands.endings import say

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run or a stage, or RUN:LABEL.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. policy.device=cpu")
]


def merge(
    source: Run,
    folder: Annotated[
        Path, typer.Argument(help="The folder to write, which holds nothing yet; with --format gguf the file.")
    ],
    overrides: Settings = None,
    form: Annotated[
        Literal["safetensors", "gguf"],
        typer.Option("--format", help="A folder of safetensors; or one GGUF file, of Llama's architecture alone."),
    ] = "safetensors",
) -> None:
    """Fold a run's adapter into its model and write ordinary weights, checked against the run's own samples.

    Example: [bold]relgrad merge runs/demo merged-model[/bold]
    """
    from relgrad.runs.sharing import merge as write_folder
    from relgrad.runs.sharing import write_gguf

    write = write_gguf if form == "gguf" else write_folder
    say("checked", write(source, folder, overrides or [], tell), style="green")
    print(folder)


def push(
    source: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The repository on the hub, for example me/my-policy.")],
    overrides: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only write the folder.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where the folder is written; by default `share/NAME` beside the stages.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Put a run's adapter or weights on the hub, with a model card: recipe, results with intervals, versions.

    Example: [bold]relgrad push runs/demo me/my-policy --dry-run[/bold]
    """
    from relgrad.runs.sharing import pack, require_name
    from relgrad.runs.sharing import push as upload

    require_name(name)
    place = folder or Path(source.partition(":")[0]) / "share" / name.replace("/", "--")
    say("checked", pack(source, place, overrides or [], tell), style="green")
    if not dry_run:
        tell(f"uploading {place}")
    print(place if dry_run else upload(place, name, private=private))
