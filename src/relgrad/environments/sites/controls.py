"""What a page offers: controls, options and buttons, as controls.js reads them in the browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

READ = (files(__package__) / "controls.js").read_text(encoding="utf-8")
"""A function for the page: everything of `Offer`, as plain data."""
WATCH = (files(__package__) / "watching.js").read_text(encoding="utf-8")
"""A script that goes before those of the page."""

GROUPS = ("radio", "checkboxes")
"""Controls of several boxes that are found by one name: a group of radio buttons, or of boxes that belong together."""
LISTS = ("select-one", "select-multiple", *GROUPS)
SEVERAL = ("select-multiple", "checkboxes")
"""Those of which several options may be chosen."""
BOXES = ("checkbox", "radio-button")


@dataclass(frozen=True)
class Option:
    """`number`: of a list, the option's position; of a group, the mark of its box."""

    number: int
    text: str
    value: str
    disabled: bool = False
    chosen: bool = False
    position: int = 0


@dataclass(frozen=True)
class Control:
    """One control, or a group of boxes.

    number   its mark in the page
    kind     the type of an input; `select-one`, `select-multiple`, `textarea`, `contenteditable`; `radio-button` for one button,
             `radio` for a group of them, `checkboxes` for a group of boxes
    names    (where from, text) of everything people call it by; finding.py lists where from
    section  legends of the groups around it, the innermost first
    state    why it cannot be used: disabled, read-only, hidden; "" where it can
    form     number of its form on the page, -1 outside of all
    """

    number: int
    kind: str
    names: tuple[tuple[str, str], ...] = ()
    name: str = ""
    id: str = ""
    section: tuple[str, ...] = ()
    state: str = ""
    form: int = -1
    options: tuple[Option, ...] = ()
    value: str = ""
    checked: bool = False
    step: str = ""

    @property
    def called(self) -> str:
        """What to call it in a message."""
        return next((text for _, text in self.names), self.name or self.id or self.kind)


@dataclass(frozen=True)
class Button:
    """`kind` is submit, reset or button; `dialog`: it stands in a dialog that is open."""

    number: int
    kind: str
    text: str
    form: int = -1
    state: str = ""
    dialog: bool = False


@dataclass(frozen=True)
class Offer:
    """A page as it stands. `errors`: the first texts of elements marked as errors; `captcha`: the beginning of one, or ""."""

    url: str = ""
    title: str = ""
    controls: tuple[Control, ...] = ()
    buttons: tuple[Button, ...] = ()
    errors: tuple[str, ...] = ()
    captcha: str = ""
    forms: int = 0
    scripts: bool = False

    @staticmethod
    def of(data: Mapping[str, Any]) -> Offer:
        """From what READ returns."""
        controls = tuple(
            Control(
                **{
                    **one,
                    "names": tuple((source, text) for source, text in one["names"]),
                    "section": tuple(one["section"]),
                    "options": tuple(Option(**option) for option in one["options"]),
                }
            )
            for one in data["controls"]
        )
        buttons = tuple(Button(**one) for one in data["buttons"])
        return Offer(**{**data, "controls": controls, "buttons": buttons, "errors": tuple(data["errors"])})
