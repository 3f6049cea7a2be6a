"""The families of forms: which fields a form may have, by domain, and which split a family belongs to (families.yaml)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from relgrad.core.errors import RelgradError

Kind = Literal["text", "email", "number", "date", "select", "radio", "multi", "checkbox", "textarea"]
Split = Literal["train", "validation", "test"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
CHOICES = ("select", "radio", "multi")
"""Kinds whose value is one or several of the options."""
SHORT = 8
"""Most characters of a short label."""


@dataclass(frozen=True)
class FieldSpec:
    """A field as the family knows it; a form draws its label, names, value and constraints.

    draws    text: the generator's name, see values.py
    bounds   number: lowest and highest; date: first and last year; multi: (0, most that may be chosen)
    must     checkbox: has to be ticked
    """

    labels: tuple[str, ...]
    kind: Kind
    draws: str = ""
    options: tuple[str, ...] = ()
    bounds: tuple[int, int] = (0, 0)
    must: bool = False


@dataclass(frozen=True)
class Family:
    """`submit` are texts that the button may have."""

    name: str
    split: Split
    submit: tuple[str, ...]
    fields: tuple[FieldSpec, ...]


@cache
def families() -> dict[str, Family]:
    """All families by name, in the order of the file."""
    import yaml

    raw = yaml.safe_load(
        resources.files("relgrad.environments.forms.making").joinpath("families.yaml").read_text(encoding="utf-8")
    )
    return {name: _family(name, body) for name, body in raw.items()}


def family(name: str) -> Family:
    """Raises RelgradError naming the nearest family."""
    by_name = families()
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(by_name)}"
        raise RelgradError(f"forms: no family {name!r}; {hint}")
    return by_name[name]


def names(*splits: Split) -> tuple[str, ...]:
    """Names of the families of these splits."""
    return tuple(name for name, one in families().items() if one.split in splits)


def _family(name: str, body: dict[str, object]) -> Family:
    fields = body["fields"]
    assert isinstance(fields, dict)
    specs = tuple(_field(labels, str(text)) for labels, text in fields.items())
    split = body["split"]
    if split not in SPLITS or not any(spec.kind == "text" for spec in specs):
        raise ValueError(f"family {name!r}: split {split!r} is none of {SPLITS}, or there is no field of kind text")
    return Family(name, split, _parts(str(body["submit"]), "|"), specs)


def _field(labels: str, text: str) -> FieldSpec:
    """`name | full name`, `text person` -> FieldSpec. Raises ValueError for a kind or label that is not legal."""
    named = _parts(labels, "|")
    first, _, rest = text.partition(" ")
    kind = first.rstrip("!")
    if kind not in KINDS or len(named[0]) > SHORT or " " in named[0] or ":" in labels:
        raise ValueError(f"field {labels!r}: unknown kind {kind!r}, a first label that is not short, or a colon")
    if kind in ("select", "radio"):
        return FieldSpec(named, kind, options=_parts(rest, ","))
    if kind == "multi":
        most, _, options = rest.partition(" ")
        return FieldSpec(named, kind, options=_parts(options, ","), bounds=(0, int(most)))
    if kind in ("number", "date"):
        low, high = map(int, rest.split())
        return FieldSpec(named, kind, bounds=(low, high))
    return FieldSpec(named, kind, draws=rest, must=first.endswith("!"))


def _parts(text: str, separator: str) -> tuple[str, ...]:
    parts: Sequence[str] = text.split(separator)
    return tuple(part.strip() for part in parts)
