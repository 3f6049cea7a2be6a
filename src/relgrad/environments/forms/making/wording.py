"""What a policy reads and what it should write: a form's values as a prompt, and the plan that enters them.

short   one line per step: `town=Bonn` is typed, `size>L` chosen, `news+` ticked, `news-` not; `#` ends the prompt
lines   the same in words that are nearly as long as a plan's: `text town: Bonn`, `pick size: L`, `set news`, `clear news`
long    the form's title, and `label (kind) = value` for every field

In all of them, and in plans, a line break inside a value is written `\\n` and a backslash `\\\\`. Short prompts and lines can be
filled up with blank lines to a width, so that the answer begins at the same position behind every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.environments.forms.making.families import CHOICES
from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.making.grammar import Wording
from relgrad.environments.forms.plan import escape

END = "#\n"
"""Ends a prompt of style short or lines."""
LONG_END = "Plan:\n"
_LINES = {"fill": "text", "choose": "pick", "check": "set", "uncheck": "clear"}

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
"""Characters that prompts and reference plans are written in: printable ASCII and the line break."""


def prompt(form: Form) -> str:
    """What a policy reads."""
    return prompt_of(form.title, form.fields, form.grammar.wording, form.grammar.width)


def plan(form: Form) -> str:
    """The reference plan: it enters every value, one line each, in the order of the page."""
    return plan_of(form.fields)


def prompt_of(title: str, fields: Sequence[Field], style: Wording, width: int = 0) -> str:
    """The prompt of a form with this title and these fields."""
    if style == "long":
        shown = [f"{field.label} ({_kind(field)}) = {_shown(field)}\n" for field in fields]
        return closed(f"Fill in the form: {title}\n{''.join(shown)}", style)
    lines_of = _short if style == "short" else _lines
    return closed("".join(f"{line}\n" for field in fields for line in lines_of(field)), style, width)


def closed(text: str, style: Wording, width: int = 0) -> str:
    """Lines that tell what to enter, with the end that all prompts of the style have."""
    if style == "long":
        return text + LONG_END
    return text + "\n" * (width - len(text) - len(END)) + END


def plan_of(fields: Sequence[Field]) -> str:
    """A step per value, a last one that submits."""
    return "\n".join([step for field in fields for step in _steps(field)] + ["submit"])


def _texts(field: Field) -> tuple[str, ...]:
    return (field.value,) if isinstance(field.value, str) else field.value if isinstance(field.value, tuple) else ()


def _steps(field: Field) -> list[str]:
    if field.kind == "checkbox":
        return [f"{'check' if field.value else 'uncheck'} {field.label}"]
    verb = "choose" if field.kind in CHOICES else "fill"
    return [f"{verb} {field.label}: {escape(text)}" for text in _texts(field)]


def _short(field: Field) -> list[str]:
    if field.kind == "checkbox":
        return [f"{field.label}{'+' if field.value else '-'}"]
    sign = ">" if field.kind in CHOICES else "="
    return [f"{field.label}{sign}{escape(text)}" for text in _texts(field)]


def _lines(field: Field) -> list[str]:
    steps = [step.partition(" ") for step in _steps(field)]
    return [f"{_LINES[verb]} {rest}" for verb, _, rest in steps]


def _kind(field: Field) -> str:
    if field.kind == "checkbox":
        return "box"
    if field.kind not in CHOICES:
        return {"email": "e-mail", "textarea": "text"}.get(field.kind, field.kind)
    several = "some of" if field.kind == "multi" else "one of"
    return f"{several} {', '.join(option.text for option in field.options)}"


def _shown(field: Field) -> str:
    if field.kind == "checkbox":
        return "yes" if field.value else "no"
    return ", ".join(escape(text) for text in _texts(field))
