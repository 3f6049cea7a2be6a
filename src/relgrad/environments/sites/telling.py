"""A case in words: the prompt that tells what to enter, and the reference plan that enters it without having seen the page."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.plan import Step, escape
from relgrad.environments.forms.sentences import lines, written
from relgrad.environments.sites.cases import Case, Value

Language = Literal["lines", "sentences"]
Wording = Literal["long", "short"]

TEMPLATES: dict[Wording, tuple[str, str]] = {
    "long": (
        "Go to {url} and fill out the {form} form with the following information, then submit it.\n\n"
        "Field values to enter:\n{fields}\n",
        "  - {label}: {value}",
    ),
    "short": ("{form}\n{fields}\n#\n", "{label}: {value}"),
}
"""The prompt, and each of its lines; `long` is the one that OpenBrowser's checkpoints were trained on."""
NAMES = ("url", "page", "form", "fields")


def require_template(template: str) -> None:
    """Raise RelgradError for a template with a name that there is not."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise RelgradError(f"site: template {template!r}: {error}; write {{{{ and }}}} for literal braces") from None
    if unknown := names - set(NAMES):
        raise RelgradError(
            f"site: template: no {{{sorted(unknown)[0]}}}; there are {', '.join(f'{{{n}}}' for n in NAMES)}"
        )


def prompt(case: Case, url: str, wording: Wording, template: str | None = None) -> str:
    """The prompt of a case; `template` in place of the wording's own."""
    whole, line = TEMPLATES[wording]
    fields = [
        line.format(label=label, value=on_one_line(case.values[label])) for label in case.order if label in case.values
    ]
    clicks = [line.format(label="click", value=label) for label in case.clicks]
    form = (
        case.page.partition("?")[0]
        .strip("/")
        .rpartition("/")[2]
        .removesuffix(".html")
        .replace("-", " ")
        .replace("_", " ")
    )
    return (template or whole).format(
        url=url, page=case.page, form=form or "start", fields="\n".join([*fields, *clicks])
    )


def on_one_line(value: Value) -> str:
    """A value on one line: yes and no, several texts with semicolons between."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(value if isinstance(value, str) else "; ".join(value))


def steps(case: Case) -> list[Step]:
    """Everything of the case, in its order, and then the button that submits."""
    plan = [step for label in case.order for step in _steps(label, case)]
    return [*plan, Step("", "submit")]


def _steps(label: str, case: Case) -> Sequence[Step]:
    if label in case.clicks:
        return [Step("", "click", label)]
    value = case.values[label]
    if isinstance(value, bool):
        return [Step("", "check" if value else "uncheck", label)]
    if isinstance(value, str):
        return [Step("", "fill", label, value)]
    return [Step("", "choose", label, one) for one in value]


def reference(case: Case, url: str, language: Language) -> str:
    """The reference plan. In sentences a no is not said, as in OpenBrowser's plans."""
    plan = steps(case)
    if language == "lines":
        return lines(plan)
    return written([step for step in plan if step.verb != "uncheck"], url)
