"""How right the fields of a case were, as the page sent them.

The case's labels are led to the page's controls as a plan's are (finding.py), and the controls' names to what was sent. A value is
right that the control would have sent for the case's value; text counts by difflib's ratio; of several values the Jaccard index
counts; a box that was to stay empty and did is right. What no control and no sent name answers to is 0, and so is all where nothing
was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import SequenceMatcher

from relgrad.environments.forms.outcome import Entry, Text
from relgrad.environments.sites.cases import Value
from relgrad.environments.sites.controls import LISTS, Control
from relgrad.environments.sites.entering import DAYS, Order, Refused, entry, yes
from relgrad.environments.sites.finding import NotFound, find, plain

Sent = Mapping[str, list[str]]
"""Values by name, as sent."""


def accuracies(
    values: Mapping[str, Value],
    sent: Sequence[Entry] | None,
    controls: Sequence[Control],
    text: Text = "ratio",
    order: Order | None = None,
) -> dict[str, float]:
    """How right every value is, between 0 and 1, by label. `controls`: those that could be used while the plan was executed."""
    if sent is None:
        return dict.fromkeys(values, 0.0)
    by_name: dict[str, list[str]] = {}
    for name, value in sent:
        by_name.setdefault(name.removesuffix("[]"), []).append(value)
    form = _form(by_name, controls)
    return {
        label: _accuracy(label, value, by_name, _control(label, value, controls, form, by_name), text, order)
        for label, value in values.items()
    }


def _form(sent: Sent, controls: Sequence[Control]) -> int | None:
    """Number of the form whose controls were sent."""
    counts: dict[int, int] = {}
    for control in controls:
        counts[control.form] = counts.get(control.form, 0) + (control.name in sent)
    return max(counts, key=counts.__getitem__) if counts else None


def _control(label: str, value: Value, controls: Sequence[Control], form: int | None, sent: Sent) -> Control | None:
    """The control that a label means; where several do, the one that was sent."""
    several = [control for control in controls if control.name.removesuffix("[]") in sent]
    for pool in (controls, several):
        for boxes in (isinstance(value, bool), not isinstance(value, bool)):
            with suppress(NotFound):
                return find(label, pool, form, boxes).control
    return None


def _accuracy(label: str, value: Value, sent: Sent, control: Control | None, text: Text, order: Order | None) -> float:
    values = _values(label, control, sent)
    if isinstance(value, bool) and (control is None or control.kind == "checkbox"):
        return float(value == _ticked(values))
    if values is None:
        return 0.0
    if control is not None and control.kind == "checkbox" and isinstance(value, str):
        return float(yes(value) == _ticked(values))
    if isinstance(value, tuple):
        return _several(value, values, control, order)
    expected = _expected(value, control, order)
    if control is not None and control.kind == "file":
        return float(expected == (values[0] if values else ""))
    if not values:
        return float(expected == "")
    if len(values) > 1:
        return len({expected} & set(values)) / len(set(values) | {expected})
    return _alike(expected, values[0], control, text)


def _values(label: str, control: Control | None, sent: Sent) -> list[str] | None:
    """What was sent for a label; None where nothing could have been, since nothing answers to it."""
    names = [
        name
        for name in sent
        for last in (name.rpartition(".")[2],)
        if plain(last) == plain(label) or plain(name) == plain(label)
    ]
    if control is not None:
        keys = [key for key in (control.name.removesuffix("[]"), control.id) if key]
        exact = [key for key in keys if key in sent]
        inner = [name for name in sent if name.rpartition(".")[2] in keys]
        own = exact or inner or names
        return sent[own[0]] if own else []
    return sent[names[0]] if names else None


def _ticked(values: list[str] | None) -> bool:
    return bool(values) and yes((values or [""])[-1]) is not False


def _expected(value: str | bool, control: Control | None, order: Order | None) -> str:
    """What the control would send for the value; the value itself where it would take none, which is then not right."""
    written = {True: "true", False: "false"}[value] if isinstance(value, bool) else value
    if control is None:
        return written
    try:
        entered = entry(control, value, order)
    except Refused:
        return written
    if entered.option is not None:
        return entered.option.value
    return entered.file if entered.file is not None else entered.text if entered.text is not None else written


def _several(value: Sequence[str], values: list[str], control: Control | None, order: Order | None) -> float:
    """The Jaccard index; of a text field, that of what stands between its commas."""
    if control is not None and control.kind in LISTS:
        expected = {_expected(one, control, order) for one in value}
        return _jaccard(expected, set(values))
    parts = [part for one in values for part in (one.split(",") if len(values) == 1 else [one])]
    joined = [part for one in value for part in one.split(",")]
    return _jaccard({plain(one) for one in joined}, {plain(part) for part in parts if part.strip()})


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _alike(expected: str, value: str, control: Control | None, text: Text) -> float:
    expected, value = expected.strip(), value.strip()
    if expected == value:
        return 1.0
    kind = control.kind if control is not None else ""
    if kind in ("number", "range", ""):
        with suppress(ValueError):
            return float(float(value) == float(expected))
    if text == "exact" or kind in (*DAYS, *LISTS, "email", "number", "range", "color"):
        return 0.0
    return SequenceMatcher(None, value.lower(), expected.lower(), autojunk=False).ratio()
