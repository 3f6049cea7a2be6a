"""Pages as a browser gets them: a form, what came of it, the list of all forms, and a plan's execution in pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from relgrad.environments.forms.making.families import Family

if TYPE_CHECKING:
    from relgrad.environments.forms.executing.pictures import Frame
    from relgrad.environments.forms.making.form import Form

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
"""Content-Security-Policy of every page: no script runs, whatever a plan types, and nothing is loaded."""

OUTCOME = "body > main[data-outcome]"
"""The element that says what came of a form: its attribute is `success` or `error`. The page of a form has none."""


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("relgrad.environments.forms.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(name: str, **given: Any) -> str:
    return str(_environment().get_template(f"{name}.html.j2").render(policy=POLICY, **given))


def form_page(form: Form, *, hints: bool = False) -> str:
    """The page of a form; with `hints` it also shows a person what to enter, and the reference plan."""
    return _render("form", form=form, hints=hints)


def outcome_page(form: Form, complaints: Sequence[str], marks: Mapping[str, float] | None = None) -> str:
    """The page after a form: success, or the complaints. `marks` are the fields' accuracies, to show a person."""
    return _render("outcome", form=form, complaints=complaints, marks=marks)


def index_page(families: Sequence[Family], seeds: Sequence[int]) -> str:
    """Links to forms of every family, by split."""
    return _render("index", families=families, seeds=seeds)


def film_page(form: Form, frames: Sequence[Frame], score: Mapping[str, float]) -> str:
    """A plan's execution, frame by frame; one file that needs nothing else."""
    pictures = [base64.b64encode(frame.picture).decode("ascii") for frame in frames]
    return _render("film", form=form, frames=list(zip(frames, pictures, strict=True)), score=score)
