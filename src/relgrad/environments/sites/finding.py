"""Which control a plan means by a label.

Tried in this order; the first step at which a control that can be used answers to the label decides:

    exact   one of its names is the label, but for runs of white space
    plain   the same but for case, punctuation, and what stands in brackets ("Loan Amount ($)", "Notes (optional)", "Name *")
    name    its `name` or `id`, read as words (`membership_type`, `currentPosition`)
    fuzzy   a name is at least `SIMILAR` like the label by difflib's ratio of the plain texts, and no other control comes within
            `APART` of it

In the first two steps names count in the order label, aria-labelledby, aria-label, placeholder, title, legend, caption (text right
before the control); last, each of them after the legend around it ("Billing: Street"). Two controls that answer to a label alike
are none, unless one is in the form that the plan fills in; controls that are hidden, disabled or read-only do not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from relgrad.environments.forms.plan import Plan
from relgrad.environments.sites.controls import BOXES, Button, Control, Offer

SIMILAR, APART = 0.8, 0.1
SOURCES = ("label", "aria-labelledby", "aria-label", "placeholder", "title", "legend", "caption")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEVERAL = re.compile(r"\W+|_+")


class NotFound(Exception):
    """No control answers to a label, or several do; the message says which."""


@dataclass(frozen=True)
class Found:
    """`step`: at which step; `source`: by which of its names."""

    control: Control
    step: str
    source: str = ""


def squeezed(text: str) -> str:
    """Runs of white space are one space."""
    return " ".join(text.split())


@lru_cache(maxsize=65536)
def plain(text: str) -> str:
    """Lower case words; what stands in brackets counts only where there is nothing else."""
    bare = text
    while (shorter := _BRACKETS.sub(" ", bare)) != bare:
        bare = shorter
    return _words(bare) or _words(text)


def _words(text: str) -> str:
    return " ".join(word for word in _SEVERAL.split(text.casefold()) if word)


@lru_cache(maxsize=65536)
def from_name(name: str) -> str:
    """A control's name or id as words: `currentPosition[]` is "current position"."""
    return _words(_HUMP.sub(" ", name))


def similar(one: str, other: str) -> float:
    """difflib's ratio of two plain texts, 0 where their lengths alone make it less than SIMILAR."""
    total = len(one) + len(other)
    if not total or 2 * min(len(one), len(other)) < SIMILAR * total:
        return 0.0
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def find(label: str, controls: Sequence[Control], form: int | None = None, boxes: bool = False) -> Found:
    """The control that `label` means. Raises NotFound.

    form   number of the form that the plan fills in, which decides between controls that answer alike
    boxes  whether single radio buttons count too, and single boxes come before groups: a plan that ticks means a box
    """
    pool = [control for control in controls if boxes or control.kind != "radio-button"]
    reason = ""
    for step, source, alike in _answers(label, pool):
        usable = [control for control in alike if not control.state]
        if not usable:
            if alike and not reason:
                reason = f"{label!r} is {alike[0].state}"
            continue
        one = _only(usable, form, boxes)
        if one is None:
            raise NotFound(
                f"{len(usable)} controls are called {label!r}: say its group before it, or its name: {_names(usable)}"
            )
        return Found(one, step, source)
    raise NotFound(reason or _nearest(label, pool))


def _answers(label: str, pool: Sequence[Control]) -> Iterable[tuple[str, str, list[Control]]]:
    """(step, source, controls that answer there), in order."""
    exact, bare = squeezed(label), plain(label)
    for step, name, form_of in (("exact", exact, squeezed), ("plain", bare, plain)):
        for source in SOURCES:
            yield step, source, [c for c in pool if any(s == source and form_of(text) == name for s, text in c.names)]
        within = [
            c for c in pool if any(form_of(f"{part} {text}") == name for part in c.section for _, text in c.names)
        ]
        yield step, "section", within
    words = from_name(label)
    for source in ("name", "id"):
        yield "name", source, [c for c in pool if words and from_name(c.name if source == "name" else c.id) == words]
    yield "fuzzy", "", _fuzzy(bare, [control for control in pool if not control.state])


def _fuzzy(bare: str, pool: Sequence[Control]) -> list[Control]:
    """The one control that is like enough, if no other comes near."""
    scores = sorted(((_likeness(bare, control), control.number) for control in pool), reverse=True)
    if not scores or scores[0][0] < SIMILAR:
        return []
    best = [control for control in pool if control.number == scores[0][1]]
    second = next((score for score, number in scores if number != scores[0][1]), 0.0)
    return best if scores[0][0] - second >= APART else []


def _likeness(bare: str, control: Control) -> float:
    texts = {plain(text) for _, text in control.names} | {from_name(control.name)}
    return max((similar(bare, text) for text in texts if text), default=0.0)


def _only(usable: Sequence[Control], form: int | None, boxes: bool) -> Control | None:
    """The only one of its form, or of the kind that is meant; None where that leaves several."""
    inside = [control for control in usable if control.form == form] or usable
    suitable = [control for control in inside if (control.kind in BOXES) == boxes] or inside
    return suitable[0] if len(suitable) == 1 else None


def _names(controls: Sequence[Control]) -> str:
    return ", ".join(
        repr(" ".join([*control.section[:1], control.name or control.id or control.called])) for control in controls
    )


def _nearest(label: str, pool: Sequence[Control]) -> str:
    bare = plain(label)
    ranked = sorted(((_likeness(bare, control), control.called) for control in pool if not control.state), reverse=True)
    likely = [f"{name!r} ({score:.2f})" for score, name in ranked[:2] if score >= SIMILAR - 0.2]
    hint = (
        f"; nearest are {', '.join(likely)}, and it takes {SIMILAR} and {APART} more than any other" if likely else ""
    )
    return f"no control is called {label!r}{hint}"


def find_button(label: str, buttons: Sequence[Button], form: int | None) -> Button | None:
    """The button of this text, exact before plain; of several, one of the form that is filled in, then the first."""
    for form_of in (squeezed, plain):
        alike = [b for b in buttons if not b.state and form_of(b.text) == form_of(label) and form_of(label)]
        if alike:
            return next((button for button in alike if button.form == form), alike[0])
    return None


def likely_form(plan: Plan, offer: Offer) -> int | None:
    """The form that most of the plan's labels are in; None where two have as many."""
    votes: Counter[int] = Counter()
    for step in plan.steps:
        named = (c.form for c in offer.controls if any(plain(step.label) == plain(text) for _, text in c.names))
        votes.update(set(named))
    ranked = votes.most_common(2)
    return ranked[0][0] if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]) else None
