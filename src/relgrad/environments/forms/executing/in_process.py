"""The fast executor: a model of what Chromium does with a form, on its parsed HTML. Thousands of plans a second.

What it models is pinned by tests that run the same plans in a real browser: typing, dates and numbers that are none, length
limits, selecting by label, radio groups, reset buttons, constraint validation before submitting, and what is then sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from relgrad.environments.forms.executing import html_rules, server_verdict
from relgrad.environments.forms.executing.parsed_page import Control, Document
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.outcome import Entry, Outcome, Unscored
from relgrad.environments.forms.pages.page import form_page
from relgrad.environments.forms.plan import MOST, Plan, Step


class InProcess:
    """Executes plans on a form's parsed page."""

    def run(self, form: Form, plan: Plan) -> Outcome:
        """Never fails: whatever the plan is, it has an outcome."""
        page = _Page(_document(form))
        executed = [not page.was_sent and page.do(step) for step in plan.steps[:MOST]]
        executed += [False] * (len(plan.steps) - len(executed))
        sent = page.sent
        return Outcome(sent is not None and not server_verdict.complaints(form, sent), sent, tuple(executed))

    def run_all(self, form: Form, plans: Sequence[Plan]) -> list[Outcome | Unscored]:
        """The same for many plans."""
        return [self.run(form, plan) for plan in plans]


@lru_cache(maxsize=1024)
def _document(form: Form) -> Document:
    """A form's page, read once however many plans fill it in."""
    return Document.parse(form_page(form))


class _Page:
    """The state of one opened page: text by control, ticked boxes and radio buttons, selected options by number."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.sent: tuple[Entry, ...] | None = None
        self._reset()

    @property
    def was_sent(self) -> bool:
        """Whether the form was sent, and the page left."""
        return self.sent is not None

    def _reset(self) -> None:
        controls = self.document.controls
        self.text = {c.id: c.initial for c in controls if c.kind in html_rules.FILLABLE}
        self.ticked = {c.id for c in controls if c.kind in ("checkbox", "radio") and "checked" in c.attributes}
        self.selected = {c.id: _preselected(c) for c in controls if c.options}

    def do(self, step: Step) -> bool:
        """Execute one step; whether it did what it says."""
        match step.verb:
            case "fill":
                return self._fill(step)
            case "choose":
                return self._choose(step)
            case "check" | "uncheck":
                return self._tick(step)
            case "click":
                return self._click(step)
            case "submit":
                return self.document.submit is not None and self._submit()
        return False

    def _fill(self, step: Step) -> bool:
        named = self.document.labels.get(step.label)
        if named is None or named.control is None or named.kind not in html_rules.FILLABLE:
            return False
        if not html_rules.can_be_typed(named.kind, step.value):
            return False
        value = html_rules.typed(named.kind, step.value, named.control.maxlength)
        self.text[named.control.id] = value
        return value != "" or step.value == ""

    def _choose(self, step: Step) -> bool:
        named = self.document.labels.get(step.label)
        if named is None:
            return False
        if named.kind == "radio":
            button = named.group.get(step.value)
            if button is None:
                return False
            self.ticked -= {c.id for c in self.document.controls if c.kind == "radio" and c.name == button.name}
            self.ticked.add(button.id)
            return True
        options = named.control.options if named.control is not None else []
        number = next((i for i, option in enumerate(options) if option.text == step.value), None)
        if number is None or named.control is None:
            return False
        kept = self.selected[named.control.id] if named.kind == "select-multiple" else frozenset[int]()
        self.selected[named.control.id] = kept | {number}
        return True

    def _tick(self, step: Step) -> bool:
        named = self.document.labels.get(step.label)
        if named is None or named.control is None or named.kind != "checkbox":
            return False
        (self.ticked.add if step.verb == "check" else self.ticked.discard)(named.control.id)
        return True

    def _click(self, step: Step) -> bool:
        button = self.document.buttons.get(step.label)
        if button is not None and button.kind == "submit":
            return self._submit()
        if button is not None:
            self._reset()
            return True
        named = self.document.labels.get(step.label)
        if named is None or named.control is None or named.kind != "checkbox":
            return False
        self.ticked ^= {named.control.id}
        return True

    def _submit(self) -> bool:
        """Send the form, unless the browser would point at an invalid field instead."""
        if any(self._invalid(control) for control in self.document.controls):
            return False
        self.sent = tuple(entry for control in self.document.controls for entry in self._entries(control))
        return True

    def _invalid(self, control: Control) -> bool:
        if control.kind in html_rules.FILLABLE:
            return html_rules.fault(control.kind, self.text[control.id], control.attributes) != ""
        if not control.required:
            return False
        if control.kind == "checkbox":
            return control.id not in self.ticked
        if control.kind == "radio":
            return all(c.id not in self.ticked for c in self.document.controls if c.name == control.name)
        return all(not control.options[i].value for i in self.selected.get(control.id, ()))

    def _entries(self, control: Control) -> list[Entry]:
        if not control.name:
            return []
        if control.kind in html_rules.FILLABLE:
            return [(control.name, self.text[control.id].replace("\n", "\r\n"))]
        if control.options:
            return [(control.name, control.options[i].value) for i in sorted(self.selected[control.id])]
        return [(control.name, control.initial)] if control.id in self.ticked else []


def _preselected(control: Control) -> frozenset[int]:
    """The selected options of a fresh list; a list of which one is selected begins with its first."""
    chosen = frozenset(i for i, option in enumerate(control.options) if option.selected)
    if control.kind == "select-one" and not chosen:
        return frozenset({0})
    return chosen
