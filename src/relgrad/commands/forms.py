"""`relgrad forms`: forms for people, plans to be watched, and a site's pages (site_pages.py)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relgrad.commands import site_pages

if TYPE_CHECKING:
    from relgrad.environments.forms.making.grammar import Grammar
    from relgrad.environments.forms.pages.page import Frame

app = typer.Typer(no_args_is_help=True, help="Web forms: look at them, fill them in, watch a plan do it.")
app.command()(site_pages.check)
app.command()(site_pages.export)

Family = Annotated[str | None, typer.Option("--family", help="One family of forms, for example 'library card'.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Which form of the family.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the grammar, e.g. max_fields=8")
]


@app.command()
def serve(
    settings: Settings = None,
    family: Family = None,
    seed: Seed = 0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 8000,
) -> None:
    """Show the forms in your own browser: fill one in, send it, and see how right it was.

    Example: [bold]relgrad forms serve max_fields=8 fits=1000[/bold]
    """
    from relgrad.environments.forms.making import families
    from relgrad.environments.forms.serve import address, server

    if family is not None:
        families.family(family)
    with server(port, _grammar(settings)) as listening:
        print(f"all forms: {address(listening.server_port)}", flush=True)
        if family is not None:
            print(f"this form: {address(listening.server_port, family, seed)}", flush=True)
        print("stop with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            listening.serve_forever()


@app.command()
def watch(
    plan: Annotated[str | None, typer.Argument(help="A file with a plan, or - for standard input.")] = None,
    settings: Settings = None,
    family: Annotated[str, typer.Option("--family", help="The form's family.")] = "library card",
    seed: Seed = 0,
    reference: Annotated[bool, typer.Option("--reference", help="Execute the form's own reference plan.")] = False,
    headed: Annotated[bool, typer.Option("--headed", help="Slowly, in a window, as well.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file with a picture per step.")] = Path(
        "plan.html"
    ),
) -> None:
    """Let a real browser execute a plan, step by step, and keep a picture of every step in one HTML file.

    Example: [bold]relgrad forms watch --reference --family "library card" --seed 3[/bold]
    """
    from relgrad.core.errors import RelgradError
    from relgrad.core.run_folder import write_atomic
    from relgrad.environments.forms.executing.browser import Browser
    from relgrad.environments.forms.executing.pictures import watch as film
    from relgrad.environments.forms.making import wording
    from relgrad.environments.forms.making.generate import make
    from relgrad.environments.forms.outcome import Unscored
    from relgrad.environments.forms.pages.page import film_page
    from relgrad.environments.forms.plan import parse
    from relgrad.rewards.forms import figures

    overrides = list(settings or [])
    if plan is not None and "=" in plan:
        overrides, plan = [plan, *overrides], None
    if reference == (plan is not None):
        raise RelgradError("forms watch: give a file with a plan, or --reference, one of the two")
    form = make(family, seed, _grammar(overrides))
    steps = parse(wording.plan(form) if plan is None else _read(plan))
    browser = Browser(600.0, headed=headed)
    try:
        outcome, frames = film(browser, form, steps)
    except Unscored as failure:
        raise RelgradError(f"forms watch: {failure}") from None
    finally:
        browser.close()
    score = figures(form, steps, outcome, "ratio")
    write_atomic(out, film_page(form, frames, score))
    _tell(frames, steps.errors)
    print("  ".join(f"{name} {value:.3g}" for name, value in score.items()))
    print(f"pictures: {out}")


def _tell(frames: Sequence[Frame], errors: Mapping[int, str]) -> None:
    for number, frame in enumerate(frames[1:]):
        why = f"   ({errors[number]})" if number in errors else ""
        print(f"{'done  ' if frame.executed else 'not   '} {frame.line}{why}")


def _read(plan: str) -> str:
    from relgrad.core.errors import RelgradError

    try:
        return sys.stdin.read() if plan == "-" else Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RelgradError(f"forms watch: cannot read the plan {plan!r}: {error}") from None


def _grammar(settings: list[str] | None) -> Grammar:
    """The grammar with these settings. Raises RelgradError for one that is unknown or not legal."""
    from relgrad.core.errors import RelgradError
    from relgrad.core.settings import checked
    from relgrad.environments.forms.making.grammar import Grammar
    from relgrad.runs.yaml_text import read_yaml

    options = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RelgradError(f"forms: {setting!r} is no setting; write KEY=VALUE, for example max_fields=8")
        options[key] = read_yaml(value, f"forms: {setting!r}")
    return checked(options, Grammar, "grammar")
