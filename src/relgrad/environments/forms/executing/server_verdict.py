"""The server's side of a form: what was sent, and whether it is accepted. Both executors and `relgrad forms serve` use it.

A server trusts no page: it checks everything again, by the form and not by its HTML, and has a rule of its own that HTML
cannot express (how many options of a list may be chosen).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from relgrad.environments.forms.executing import html_rules
from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.outcome import Entry


def decode(body: bytes) -> tuple[Entry, ...]:
    """The entries of an application/x-www-form-urlencoded body, in order."""
    return tuple(parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True, encoding="utf-8", errors="replace"))


def complaints(form: Form, entries: Sequence[Entry]) -> list[str]:
    """What is wrong with what was sent, for people to read; nothing where it is accepted."""
    sent: dict[str, list[str]] = {}
    for name, value in entries:
        sent.setdefault(name, []).append(value)
    lines = [f"{name}: the form has no such field" for name in sent.keys() - {field.name for field in form.fields}]
    for field in form.fields:
        if wrong := _wrong(field, sent.get(field.name, [])):
            lines.append(f"{field.label}: {wrong}")
    return lines


def _wrong(field: Field, sent: list[str]) -> str:
    if field.required and not any(value.strip() for value in sent):
        return "this is needed"
    if len(sent) > max(field.most, 1):
        return f"at most {max(field.most, 1)}"
    if field.kind == "checkbox":
        return ""
    if field.options:
        values = {option.value for option in field.options}
        return "" if set(sent) <= values else "there is no such option"
    if len(sent) != 1:
        return "this is missing"
    return html_rules.fault(field.kind, sent[0].replace("\r\n", "\n"), field.attributes)
