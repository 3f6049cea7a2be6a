"""What came of a plan, and what that is worth.

    reward = w_success · success + w_fields · field accuracy + w_steps · executed steps / steps

success         1 where the page after the form is the success page
field accuracy  mean over the form's fields of how far what was *submitted* is what was to be entered; 0 where nothing was
executed        a step executes when it did what it says: the field took the value, the option was there, the form was sent

Of the fields: boxes are right or wrong, an unticked one that was to stay unticked is right; options, dates and e-mails are
right or wrong; numbers are compared as numbers; of several options the Jaccard index counts; text counts by difflib's
ratio of the lower-cased texts, or, on request, only when equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, Protocol

from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.plan import Plan

Text = Literal["ratio", "exact"]
Entry = tuple[str, str]
"""Name and value, as sent."""


class Unscored(Exception):
    """The executor could not tell what comes of the plan; the message says why. It is never a failure of the plan."""


@dataclass(frozen=True)
class Outcome:
    """`submitted`: everything that the form sent, in its order, None where it sent nothing. `executed`: one per step."""

    success: bool
    submitted: tuple[Entry, ...] | None
    executed: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Share of the steps that executed; 0 for a plan without steps."""
        return sum(self.executed) / len(self.executed) if self.executed else 0.0


class Executor(Protocol):
    """Executes plans, each on a fresh copy of the form."""

    def run_all(self, form: Form, plans: Sequence[Plan]) -> list[Outcome | Unscored]:
        """One answer per plan, in order; Unscored is returned, not raised."""
        ...


def accuracies(form: Form, submitted: Sequence[Entry] | None, text: Text = "ratio") -> dict[str, float]:
    """How right every field is, between 0 and 1, by label; all 0 where nothing was submitted."""
    if submitted is None:
        return dict.fromkeys((field.label for field in form.fields), 0.0)
    sent: dict[str, list[str]] = {}
    for name, value in submitted:
        sent.setdefault(name, []).append(value)
    return {field.label: _accuracy(field, sent.get(field.name, []), text) for field in form.fields}


def field_accuracy(form: Form, submitted: Sequence[Entry] | None, text: Text = "ratio") -> float:
    """The mean over the fields."""
    by_field = accuracies(form, submitted, text)
    return sum(by_field.values()) / len(by_field)


def _number(text: str) -> float | None:
    """None for text that is no number: a server is sent anything."""
    try:
        return float(text)
    except ValueError:
        return None


def _accuracy(field: Field, sent: list[str], text: Text) -> float:
    if isinstance(field.value, bool):
        return float(field.value == bool(sent))
    if field.options:
        texts = {field.value} if isinstance(field.value, str) else set(field.value)
        right = {option.value for option in field.options if option.text in texts}
        return len(right & set(sent)) / len(right | set(sent))
    assert isinstance(field.value, str)
    if len(sent) != 1:
        return 0.0
    value = sent[0].replace("\r\n", "\n").strip()
    if value == field.value:
        return 1.0
    if field.kind == "number":
        return float(_number(value) == float(field.value))
    if text == "exact" or field.kind in ("date", "email"):
        return 0.0
    return SequenceMatcher(None, value.lower(), field.value.lower(), autojunk=False).ratio()
