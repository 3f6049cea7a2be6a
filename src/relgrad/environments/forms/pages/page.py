"""Pages as a browser gets them: a form, what came of it, the list of all forms, and a plan's execution in pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from relgrad.environments.forms.making import wording
from relgrad.environments.forms.making.families import Family
from relgrad.environments.forms.making.form import Form

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
"""Content-Security-Policy of every page: no script runs, whatever a plan types, and nothing is loaded."""

OUTCOME = "body > main[data-outcome]"
"""The element that says what came of a form: its attribute is `success` or `error`. The page of a form has none."""


@dataclass(frozen=True)
class Frame:
    """A picture of a film: the page (a PNG) after a step; `executed` is None for the page as it came."""

    line: str
    executed: bool | None
    picture: bytes


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


def _render(name: str, **values: Any) -> str:
    return str(_environment().get_template(f"{name}.html.j2").render(policy=POLICY, **values))


@lru_cache(maxsize=1024)
def form_page(form: Form) -> str:
    """The page of a form as a browser gets it."""
    return _render("form", form=form, hints=None)


def hinted_page(form: Form) -> str:
    """The page of a form that also shows a person what to enter, the reference plan, and what a policy reads."""
    return _render("form", form=form, hints={"plan": wording.plan(form), "prompt": wording.prompt(form)})


def outcome_page(form: Form, complaints: Sequence[str], marks: Mapping[str, float] | None = None) -> str:
    """The page after a form: success, or the complaints. `marks` are the fields' accuracies, to show a person."""
    return _render("outcome", form=form, complaints=complaints, marks=marks)


def index_page(families: Sequence[Family], seeds: Sequence[int]) -> str:
    """Links to forms of every family, by split."""
    return _render("index", families=families, seeds=seeds)


def film_page(form: Form, frames: Sequence[Frame], score: Mapping[str, float]) -> str:
    """A plan's execution, frame by frame; one file that needs nothing else."""
    pictures = [base64.b64encode(frame.picture).decode("ascii") for frame in frames]
    return _render(
        "film", form=form, prompt=wording.prompt(form), frames=list(zip(frames, pictures, strict=True)), score=score
    )
