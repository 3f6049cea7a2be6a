"""`python -m benchmarks.run a|b|c|d|all [--quick]`: measure, print a table, keep the figures in benchmarks/results/."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import harness, parity
from relgrad.types import RelgradError

MODULES = {"a": "tiny", "b": "lora", "c": "loss", "d": "learning"}
console = Console(width=170)
app = typer.Typer(add_completion=False, help=__doc__)


@app.command("child", hidden=True)
def child(module: str, arm: str, options: str) -> None:
    """One measurement in this process."""
    harness.child(module, arm, options)


def _command(letters: str, title: str) -> None:
    """Register one command of the same shape for a benchmark, or for all of them."""

    def command(
        quick: Annotated[bool, typer.Option(help="fewest repeats, one thread: does it run, roughly how fast")] = False,
        threads: Annotated[str, typer.Option(help="OpenMP threads to measure with, one after the other")] = "1,2",
    ) -> None:
        counts = [1] if quick else [int(n) for n in threads.split(",")]
        try:
            if {"a", "b", "d"} & set(letters):
                console.print(parity.gate())
            for letter in letters:
                module = importlib.import_module(f"benchmarks.{MODULES[letter]}")
                console.rule(module.TITLE)
                records = module.run(quick=quick, threads=counts, say=console.log)
                for table in module.tables(records):
                    console.print(table)
                console.print(f"figures: {harness.save(MODULES[letter], records)}")
        except RelgradError as error:
            console.print(f"[red]{error}[/red]", highlight=False)
            raise typer.Exit(1) from None

    app.command("all" if len(letters) > 1 else letters, help=title)(command)


for _letter, _title in {
    "a": "a whole GRPO step, tiny model",
    "b": "a whole GRPO step, SmolLM2-135M with LoRA",
    "c": "the loss alone: time and memory at a vocabulary of 151,936",
    "d": "learning curves of both systems from one warm start",
}.items():
    _command(_letter, _title)
_command("abcd", "everything, one after the other")

if __name__ == "__main__":
    app()
