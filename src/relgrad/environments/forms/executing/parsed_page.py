"""The in-process executor's reading of a page: its controls with their attributes, and which label names which of them.

The tree is read by the standard library's HTML parser; nothing but forms, labels and controls is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Choice:
    """An `<option>`."""

    text: str
    value: str
    selected: bool


@dataclass
class Control:
    """An input, select, textarea or button, in the words of the page.

    kind     the type of an input or button; `select-one`, `select-multiple`; `textarea`
    initial  its value as the page came; for boxes and radio buttons, what is sent when they are ticked
    """

    kind: str
    id: str
    attributes: dict[str, str]
    initial: str = ""
    text: str = ""
    options: list[Choice] = field(default_factory=list)

    @property
    def name(self) -> str:
        """ "" where nothing is sent."""
        return self.attributes.get("name", "")

    @property
    def required(self) -> bool:
        return "required" in self.attributes

    @property
    def maxlength(self) -> int | None:
        return int(self.attributes["maxlength"]) if "maxlength" in self.attributes else None


@dataclass(frozen=True)
class Named:
    """What a label names: one control, or a group of radio buttons by their own labels."""

    kind: str
    control: Control | None = None
    group: dict[str, Control] = field(default_factory=dict)


class Document:
    """`controls` in the order of the page; `labels` and `buttons` by what people read; `submit` is the first that submits."""

    def __init__(self, controls: list[Control], labels: dict[str, Named], buttons: dict[str, Control]) -> None:
        self.controls, self.labels, self.buttons = tuple(controls), labels, buttons
        self.submit = next((control for control in controls if control.kind == "submit"), None)

    @staticmethod
    def parse(html: str) -> Document:
        """Read a page with one form."""
        reader = _Reader()
        reader.feed(html)
        reader.close()
        return Document(reader.controls, reader.named(), reader.buttons())


class _Reader(HTMLParser):
    """Collects controls while text flows into whatever label, legend, option or button is open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.controls: list[Control] = []
        self._labels: list[_Label] = []
        self._label: _Label | None = None
        self._group: _Group | None = None
        self._legend = False
        self._open: Control | None = None
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = True
        elif not self._inside:
            return
        elif tag == "label":
            self._label = _Label(attributes.get("for", ""), self._group)
            self._labels.append(self._label)
        elif tag == "fieldset":
            self._group = _Group()
        elif tag == "legend":
            self._legend = True
        elif tag == "option" and self._open is not None:
            self._open.options.append(Choice("", attributes.get("value", ""), "selected" in attributes))
        elif tag in ("input", "select", "textarea", "button"):
            self._control(tag, attributes)

    def _control(self, tag: str, attributes: dict[str, str]) -> None:
        kind = {"select": "select-multiple" if "multiple" in attributes else "select-one", "textarea": "textarea"}.get(
            tag, attributes.get("type", "submit" if tag == "button" else "text")
        )
        initial = attributes.get("value", "on" if kind in ("checkbox", "radio") else "")
        control = Control(kind, attributes.get("id", ""), attributes, initial)
        self.controls.append(control)
        if self._label is not None and not self._label.target:
            self._label.control = control
        if tag != "input":
            self._open = control

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
        elif tag == "label":
            self._label = None
        elif tag == "fieldset":
            self._group = None
        elif tag == "legend":
            self._legend = False
        elif tag in ("select", "textarea", "button"):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            if self._open.options:
                self._open.options[-1].text += data
            elif self._open.kind == "textarea":
                self._open.initial += data
            else:
                self._open.text += data
        elif self._legend and self._group is not None:
            self._group.text += data
        elif self._label is not None:
            self._label.text += data

    def named(self) -> dict[str, Named]:
        """Labels with what they name; of equal labels the first counts."""
        by_id = {control.id: control for control in self.controls if control.id}
        for option in (option for control in self.controls for option in control.options):
            option.text = squeezed(option.text)
        by_label: dict[str, Named] = {}
        for label in self._labels:
            control = label.control or by_id.get(label.target)
            if control is None:
                continue
            if label.group is None:
                by_label.setdefault(squeezed(label.text), Named(control.kind, control))
            else:
                group = by_label.setdefault(squeezed(label.group.text), Named(control.kind))
                group.group.setdefault(squeezed(label.text), control)
        return by_label

    def buttons(self) -> dict[str, Control]:
        """Buttons by their text."""
        buttons: dict[str, Control] = {}
        for control in self.controls:
            if control.kind in ("submit", "reset"):
                buttons.setdefault(squeezed(control.text), control)
        return buttons


@dataclass
class _Group:
    text: str = ""


@dataclass
class _Label:
    target: str
    group: _Group | None
    text: str = ""
    control: Control | None = None


def squeezed(text: str) -> str:
    """Text as people read it: runs of white space are one space."""
    return " ".join(text.split())
