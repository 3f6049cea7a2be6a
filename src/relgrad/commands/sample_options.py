"""The options of `relgrad sample` that kinds of policies declare: `SAMPLE_OPTIONS` in the `options.py` of their folder."""

from __future__ import annotations

import functools
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import relgrad
from relgrad.core.options import SampleOption

POLICIES = Path(relgrad.__file__).parent / "policies"
LARGEST = 100_000
"""The largest number that an option takes: of steps, of ids, of completions."""


def declared() -> dict[str, SampleOption]:
    """The options of all built-in kinds by name; one that several kinds have is taken from the first.

    The files are read by themselves: importing a kind would load torch.
    """
    options: dict[str, SampleOption] = {}
    for file in sorted(POLICIES.glob("*/options.py")):
        for option in runpy.run_path(str(file))["SAMPLE_OPTIONS"]:
            options.setdefault(option.name, option)
    return options


def with_declared(command: Callable[..., None], panel: str) -> Callable[..., None]:
    """The command with a parameter for every declared option, under `panel` in its help; it receives them as its `**` parameter."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option, panel))
        for name, option in declared().items()
    ]

    @functools.wraps(command)
    def extended(**values: Any) -> None:
        command(**values)

    parameters = [*own, *added]
    extended.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    extended.__annotations__ = {p.name: p.annotation for p in parameters}
    return extended


def _annotation(option: SampleOption, panel: str) -> Any:
    if option.number:
        return Annotated[int | None, typer.Option(min=1, max=LARGEST, rich_help_panel=panel, help=option.help)]
    return Annotated[str | None, typer.Option(rich_help_panel=panel, help=option.help)]
