"""One form, as data: what is on its page, and what is to be entered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relgrad.environments.forms.making.families import Kind
from relgrad.environments.forms.making.grammar import Grammar

Value = str | bool | tuple[str, ...]
"""What is to be entered: text (also the chosen option's), a tick, or several options' texts."""

Layout = Literal["stack", "wrap", "table"]


@dataclass(frozen=True)
class Option:
    """`text` is what people read and plans name, `value` what is sent."""

    text: str
    value: str


@dataclass(frozen=True)
class Field:
    """`attributes` are the constraints in HTML's words (maxlength, min, pattern ...). `most` is the server's own rule."""

    label: str
    kind: Kind
    name: str
    id: str
    value: Value
    required: bool = False
    options: tuple[Option, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    help: str = ""
    checked: bool = False
    most: int = 0


@dataclass(frozen=True)
class Form:
    """A page with one form on it, the values to enter, and how a policy is told of them."""

    family: str
    seed: int
    grammar: Grammar
    title: str
    submit: str
    fields: tuple[Field, ...]
    layout: Layout
    reset: bool

    def __hash__(self) -> int:
        return hash((self.family, self.seed, self.grammar))

    @property
    def values(self) -> dict[str, str | bool | list[str]]:
        """Label -> value, as plain data."""
        return {f.label: list(f.value) if isinstance(f.value, tuple) else f.value for f in self.fields}

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `generate.rebuild` makes the same form of."""
        return {"family": self.family, "seed": self.seed, "grammar": self.grammar.model_dump(mode="json")}
