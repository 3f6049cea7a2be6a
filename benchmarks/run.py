"""`python -m benchmarks.run NAME [--quick]`: measure, print a table, keep the figures in results/. `--help` lists the names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import gpu, harness, parity
from relgrad.core.errors import RelgradError

MODULES = {
    "a": "tiny",
    "b": "lora",
    "c": "loss",
    "d": "learning",
    "fill": "fill",
    "flow": "flow",
    "unmasking": "unmasking",
    "replay": "replay",
    "processes": "processes",
    "sandbox": "sandbox",
    "estimators": "estimators",
    "estimates": "estimates",
}
console = Console(width=170)
app = typer.Typer(add_completion=False, help=__doc__)


@app.command("child", hidden=True)
def child(module: str, arm: str, options: str) -> None:
    """One measurement in this process."""
    harness.child(module, arm, options)


def _command(name: str, chosen: Sequence[str], title: str) -> None:
    """Register one command of the same shape for a benchmark, or for several."""

    def command(
        quick: Annotated[bool, typer.Option(help="fewest repeats, one thread: does it run, roughly how fast")] = False,
        threads: Annotated[str, typer.Option(help="OpenMP threads to measure with, one after the other")] = "1,2",
    ) -> None:
        counts = [1] if quick else [int(n) for n in threads.split(",")]
        try:
            if {"a", "b", "d"} & set(chosen):
                console.print(parity.gate())
            for key in chosen:
                module = importlib.import_module(f"benchmarks.{MODULES[key]}")
                console.rule(module.TITLE)
                records = module.run(quick=quick, threads=counts, say=console.log)
                for table in module.tables(records):
                    console.print(table)
                console.print(f"figures: {harness.save(MODULES[key], records)}")
        except RelgradError as error:
            console.print(f"[red]{error}[/red]", highlight=False)
            raise typer.Exit(1) from None

    app.command(name, help=title)(command)


for _name, _title in {
    "a": "a whole GRPO step, tiny model",
    "b": "a whole GRPO step, SmolLM2-135M with LoRA",
    "c": "the loss alone: time and memory at a vocabulary of 151,936",
    "d": "learning curves of both systems from one warm start",
    "fill": "a whole GRPO step of the fill-in diffusion GPT, against one that copies every prompt",
    "flow": "a Flow-GRPO update of a small FS-DFM network, against step by step; on a CUDA device also the 1.3B network",
    "unmasking": "an update of a policy that unmasks, its steps together, against one step of one text at a time",
    "replay": "learning from the past, at equal numbers of sampled completions",
    "processes": "two processes that share a job, against two jobs side by side",
    "sandbox": "what executing generated code costs, beside a bare interpreter",
    "estimators": "gradients of the estimators of masked diffusion, against the enumerated one",
    "estimates": "memory and time as --dry-run estimates them, against a process that trains",
}.items():
    _command(_name, [_name], _title)
_command("all", list(MODULES), "everything, one after the other")
app.command("gpu")(gpu.main)

if __name__ == "__main__":
    app()
