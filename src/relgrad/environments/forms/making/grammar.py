"""How hard a form is: how many fields, of which kinds, how long its values, and how it is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.environments.forms.making.families import Kind

Wording = Literal["short", "lines", "long"]
"""How a form is told, see wording.py."""


class Grammar(Strict):
    """The defaults are small: with its plan, a form fits 192 characters, so that a tiny model of characters can learn to copy."""

    min_fields: int = Field(2, ge=1)
    max_fields: int = Field(4, ge=1, description="families have at most 8")
    types: tuple[Kind, ...] = Field(
        ("text", "email", "number", "date", "select", "radio", "checkbox", "textarea"), min_length=1
    )
    max_value: int = Field(12, ge=10, description="characters of a value; of each line, for several lines")
    lines: int = Field(1, ge=1, description="most lines of a textarea's value")
    short_labels: bool = Field(True, description="labels of one word, at most 8 characters")
    foreign_labels: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of labels that are made-up words; task forms has them in training forms alone",
    )
    foreign_options: float = Field(0.0, ge=0, le=1, description="share of lists whose options are such words, likewise")
    wording: Wording = "short"
    width: int = Field(
        0, ge=0, description="characters a prompt is filled up to with blank lines; not for wording long; 0: none"
    )
    help_texts: bool = Field(True, description="some fields come with a line of help on the page")
    fits: int = Field(
        192, ge=64, description="most characters of prompt and plan together; fields are left out until it fits"
    )

    @model_validator(mode="after")
    def _legal(self) -> Grammar:
        if self.max_fields < self.min_fields:
            raise ValueError(f"max_fields={self.max_fields} is less than min_fields={self.min_fields}")
        if "text" not in self.types:
            raise ValueError(f"types={list(self.types)} must hold text: it is the one kind that every family has")
        if self.width and self.wording == "long":
            raise ValueError(f"width={self.width} is for wording short or lines")
        return self
