"""`relgrad prepare` and `relgrad inspect-batch`: masked samples onto the disk, and masked samples of any kind to look at."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relgrad.core import checksums
from relgrad.core.errors import RelgradError
from relgrad.core.settings import settings_of
from relgrad.core.types import Prompt
from relgrad.monitor.console import printable
from relgrad.networks.weights.safe_pickle import is_text
from relgrad.runs.build import find_recipe
from relgrad.runs.recipe import load_recipe, parse_recipe
from relgrad.stages.settings import Stage
from relgrad.tasks import masked_batches, masked_stream, masked_text
from relgrad.text import show, stream
from relgrad.text.corpus import load_text
from relgrad.text.sample_file import read
from relgrad.text.show import Row
from relgrad.text.vocabulary import FILE, Vocabulary

# ---------------------------------------------------------------------- prepare


def prepare(
    out: Path, recipe: str | None, overrides: Sequence[str], *, files: int | None, ahead: int | None,
    samples_per_file: int | None, seed: int | None, wrote: Callable[[stream.Split, int, int | None], None],
) -> stream.Plan:  # fmt: skip
    """Fill the folder `out` with masked samples, or go on filling it; `wrote(split, number, total)` is told of every file.

    What is not said is as the folder was begun, or as the recipe and the defaults have it. Raises RelgradError when the folder
    was begun with other settings.
    """
    begun = stream.read_plan(out) if (out / stream.PLAN).is_file() else None
    base = {"seed": begun.seed, "task": {"kind": "masked_text", **begun.task}} if begun is not None else None
    stage = _masked_stage(recipe, overrides, base)
    settings = settings_of(stage.task, masked_text.Settings, "task")
    seed = stage.seed if seed is None else seed
    if files is None and ahead is None:
        files, ahead = (begun.files, begun.ahead) if begun is not None else (20, None)
    if samples_per_file is None:
        samples_per_file = begun.samples_per_file if begun is not None else 1024
    size = sys.maxsize if files is None else files * samples_per_file
    task = masked_text.load(settings.model_copy(update={"train_size": size}), seed)
    assert isinstance(task.train, masked_text.MaskedPrompts)
    vocabulary = task.train.windows.vocabulary
    plan = stream.Plan(
        task=settings.model_dump(mode="json", exclude={"train_size"}),
        text_sha256=checksums.of_text(load_text(settings.text)),
        vocabulary=vocabulary.fingerprint,
        seed=seed,
        length=settings.length,
        samples_per_file=samples_per_file,
        files=files,
        ahead=ahead,
        held_out=len(task.validation),
        test=len(task.own_test or ()),
    )
    stream.begin(out, plan, vocabulary)
    samples: dict[stream.Split, Sequence[Prompt]] = {
        "train": task.train,
        "held_out": task.validation,
        "test": task.own_test or (),
    }
    stream.produce(out, plan, samples, vocabulary.pad_id, lambda split, number: wrote(split, number, plan.count(split)))
    return plan


def _masked_stage(
    recipe: str | None,
    overrides: Sequence[str],
    base: dict[str, Any] | None = None,
    kinds: tuple[str, ...] = ("masked_text",),
) -> Stage:
    """The first stage of a recipe whose task is of these kinds; without a recipe, one of `base` and the overrides alone."""
    changes = [o if o.startswith("task.") else f"task.{o}" for o in overrides]
    if recipe is None:
        bare = {"name": "prepare", "stage": "sft", "policy": {"kind": "fill_in"}}
        bare |= base or {"task": {"kind": "masked_text", **masked_text.Settings().model_dump(mode="json")}}
        return parse_recipe(bare, changes, source="the settings given").stages[0]
    stages = load_recipe(find_recipe(recipe), changes).stages
    stage = next((s for s in stages if s.task.kind in kinds), None)
    if stage is None:
        present = ", ".join(sorted({s.task.kind for s in stages}))
        raise RelgradError(f"{recipe}: no stage has a task of kind {' or '.join(kinds)}; there are {present}")
    return stage


# ---------------------------------------------------------------------- inspect-batch


def rows_of(
    source: str, overrides: Sequence[str], *, meta: Path | None, held_out: bool, limit: int
) -> tuple[list[Row], Vocabulary | None]:
    """Up to `limit` rows of a recipe's task, a prepared folder, one of its files, or an original .pt file.

    The vocabulary is None where it is not known. Raises RelgradError for a source that is none of these, or has no rows.
    """
    path = Path(source)
    split: stream.Split = "held_out" if held_out else "train"
    rows_and_vocabulary: tuple[list[Row], Vocabulary | None]
    is_recipe = not path.is_dir() and (not path.is_file() or path.suffix in (".yaml", ".yml"))
    if meta is not None and (path.is_dir() or is_recipe):
        what = "recipe" if is_recipe else "folder"
        raise RelgradError(f"--meta {meta}: the {what} {source} has its own vocabulary; leave --meta out")
    if path.is_dir():
        rows_and_vocabulary = _of_folder(path, split, limit)
    elif path.is_file() and path.suffix == ".safetensors":
        beside = path.parent.parent / FILE
        layout = meta or (beside if beside.is_file() else None)
        rows_and_vocabulary = show.rows_of_file(read(path)), _vocabulary(layout)
    elif not is_recipe:
        if is_text(path):
            raise RelgradError(
                f"{source} is a text file. inspect-batch shows a recipe (.yaml), a folder that `relgrad prepare` made, one of its "
                ".safetensors files, or a .pt file of the original trainer. To see masks of this text: "
                f"`relgrad inspect-batch fill-quick text={shlex.quote(source)}`"
            )
        rows_and_vocabulary = _of_original(path, meta)
    else:
        rows_and_vocabulary = _of_recipe(source, overrides, split, limit)
    rows, vocabulary = rows_and_vocabulary
    if not rows:
        raise RelgradError(f"{source}: no samples in it ({split.replace('_', '-')})")
    return rows[:limit], vocabulary


def _of_folder(folder: Path, split: stream.Split, limit: int) -> tuple[list[Row], Vocabulary]:
    """Rows of the files that are there; nothing is waited for."""
    plan, rows = stream.read_plan(folder), list[Row]()
    for number in range(-(-limit // plan.samples_per_file)):
        path = stream.file_of(folder, split, number)
        if path.is_file():
            rows += show.rows_of_file(read(path))
    return rows, Vocabulary.load(folder)


def _of_recipe(source: str, overrides: Sequence[str], split: stream.Split, limit: int) -> tuple[list[Row], Vocabulary]:
    stage = _masked_stage(source, overrides, kinds=("masked_text", "masked_stream", "masked_batches"))
    if stage.task.kind == "masked_batches":
        batches = masked_batches.load(settings_of(stage.task, masked_batches.Settings, "task"), stage.seed)
        assert isinstance(batches.train, masked_batches.BatchPrompts)
        samples = batches.train if split == "train" else batches.validation
        shown = [samples[i] for i in range(min(limit, len(samples)))]
        return show.rows_of_prompts(shown, shown[0].columns["width"] if shown else 0), batches.train.vocabulary
    if stage.task.kind == "masked_stream":
        return _of_folder(settings_of(stage.task, masked_stream.Settings, "task").path, split, limit)
    settings = settings_of(stage.task, masked_text.Settings, "task")
    task = masked_text.load(settings, stage.seed)
    assert isinstance(task.train, masked_text.MaskedPrompts)
    prompts = task.train if split == "train" else task.validation
    chosen = [prompts[i] for i in range(min(limit, len(prompts)))]
    return show.rows_of_prompts(chosen, settings.length), task.train.windows.vocabulary


def _of_original(path: Path, meta: Path | None) -> tuple[list[Row], Vocabulary | None]:
    """Rows of an original batch file; without its vocabulary in the file's own ids."""
    from relgrad.networks.diffusion_gpt import original_batches, original_files

    tensors, metadata = original_batches.load_batches(path)
    layout = original_files.load_layout(meta) if meta is not None else None
    rows = []
    for kind in ("masked", "judged"):
        if f"{kind}_ids" not in tensors:
            continue
        ids_NL, label_NL = tensors[f"{kind}_ids"].numpy(), None
        if kind == "masked":
            label_NL = tensors["label_ids"].numpy()
        if layout is not None:
            ids_NL = layout.translate(tensors[f"{kind}_ids"], str(path))
            if label_NL is not None:
                label_NL = original_batches.translate_labels(tensors["label_ids"], layout, str(path))
        for n, ids in enumerate(ids_NL.tolist()):
            length = len(ids)
            while layout is not None and length > 1 and ids[length - 1] == layout.vocabulary.pad_id:
                length -= 1
            rows.append(
                Row(
                    ids=tuple(ids[:length]),
                    label_ids=None if label_NL is None else tuple(label_NL[n, :length].tolist()),
                    width=None if layout is None else len(ids),
                    strategy=metadata[f"{kind}_strategy"][n],
                    target=None if kind == "masked" else float(tensors["targets"][n]),
                    ratio=metadata[f"{kind}_ratio"][n],
                )
            )
    return rows, None if layout is None else layout.vocabulary


def _vocabulary(layout: Path | None) -> Vocabulary | None:
    from relgrad.networks.diffusion_gpt import original_files

    return None if layout is None else original_files.load_layout(layout).vocabulary


# ---------------------------------------------------------------------- printing

STYLES = {
    "": "", "mask": "white on dark_orange3", "truth": "black on bright_green", "swapped": "black on yellow", "kept": "underline",
}  # fmt: skip


def print_rows(
    rows: Sequence[Row], vocabulary: Vocabulary | None, n: int, *, truth: bool, console: Console | None = None
) -> None:
    """The first `n` samples and a table of the figures of all; colours on a terminal, brackets elsewhere."""
    console = console or Console(highlight=False, soft_wrap=True)
    for number, row in enumerate(rows[:n]):
        target = "" if row.target is None else f"  target {row.target:.3f}"
        console.print(Text(f"sample {number}  {row.strategy}{target}", style="bold"))
        pieces = show.pieces(row, vocabulary, truth=truth)
        if console.color_system is None:
            text = Text(printable(show.plain(pieces), keep="\n"))
        else:
            text = Text.assemble(*((_visible(piece, style), STYLES[style]) for piece, style in pieces))
        console.print(text)
        console.print()
    for table in _tables(show.figures(rows, vocabulary)):
        console.print(table)
    if vocabulary is None:
        console.print(
            "The vocabulary is not known, so these are ids, and masks and padding cannot be told: give --meta FILE"
        )


def _visible(piece: str, style: str) -> str:
    """A hidden line end is shown by a sign, because a colour has nothing to stand on there."""
    return printable(piece.replace("\n", "⏎\n") if style == "truth" else piece, keep="\n")


def _tables(figures: dict[str, show.Figures]) -> Iterator[Table]:
    """Ratio and shares of masks; for a judge's texts also what it should say of them."""
    table = _table("ratio", "masked", "asked", "padding")
    for name, f in figures.items():
        shares = ("-" if share is None else f"{share:.1%}" for share in (f.masked, f.labelled, f.padding))
        table.add_row(name, f"{f.samples:,}", *_cells(f.ratio), *shares)
    yield table
    if any(f.target is not None for f in figures.values()):
        table = _table("target")
        for name, f in figures.items():
            table.add_row(name, f"{f.samples:,}", *_cells(f.target))
        yield table


def _table(what: str, *more: str) -> Table:
    table = Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("strategy")
    for name in ("samples", what, "p10", "p50", "p90", "max", *more):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(values: tuple[float, ...] | None) -> list[str]:
    return ["-"] * 5 if values is None else [f"{v:.3f}" for v in values]


def progress(console: Console) -> Any:
    """A progress bar for `prepare`, and the `wrote` to give it: (bar, wrote)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, Any] = {}

    def wrote(split: str, number: int, total: int | None) -> None:
        if split not in tasks:
            tasks[split] = bar.add_task(split.replace("_", "-"), total=total)
        bar.update(tasks[split], completed=number + 1)

    return bar, wrote
