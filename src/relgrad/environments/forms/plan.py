"""Plans: how a form is filled in, one step a line.

    plan    = line, { line break, line }
    line    = "" | step
    step    = "fill", label, ":", [ value ]     type the value in place of what a text, e-mail, number, date or textarea field holds
            | "choose", label, ":", option      choose an option, by its text; in a list of which several may be chosen, one more
            | "check", label                    tick a box
            | "uncheck", label                  take the tick away
            | "click", text                     click a button, by its text, or a box, by its label
            | "submit"                          click the button that submits

The first colon ends the label. White space around labels, values and lines does not count. In a value `\\n` is a line break
and `\\\\` a backslash. A line that is no step is a broken step: it never executes, and the plan goes on after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Verb = Literal["fill", "choose", "check", "uncheck", "click", "submit", "open"]
"""`open`, go to an address, is said in sentences alone (sentences.py)."""
VERBS: tuple[Verb, ...] = get_args(Verb)[:-1]
"""Those that lines begin with."""

MOST = 50
"""Steps that are executed; what comes after them is not, so that no plan takes for ever."""


@dataclass(frozen=True)
class Step:
    """`label` names a field or a button, `value` what to enter. A broken step has no verb, and `error` says why."""

    line: str
    verb: Verb | None = None
    label: str = ""
    value: str = ""
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """All steps of a text, broken ones included."""

    steps: tuple[Step, ...]

    @cached_property
    def errors(self) -> dict[int, str]:
        """Number of the step, from 0, -> why it is broken."""
        return {number: step.error for number, step in enumerate(self.steps) if step.verb is None}


def escape(text: str) -> str:
    """Text on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def unescape(text: str) -> str:
    """What `escape` wrote; a backslash before any other character stays."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n") for piece in pieces)


def parse(text: str) -> Plan:
    """The plan of any text at all; nothing is an error of the call. Lone surrogates become the replacement character."""
    lines = (line.strip() for line in whole(text).split("\n"))
    return Plan(tuple(step(line) for line in lines if line))


def whole(text: str) -> str:
    """Text without halves of characters."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def step(line: str) -> Step:
    """The step that a line without white space around it says, or a broken one."""
    verb, _, rest = line.partition(" ")
    if verb not in VERBS:
        return Step(line, error=f"unknown verb {verb[:20]!r}; there are {', '.join(VERBS)}")
    if verb == "submit":
        return Step(line, error="submit stands alone") if rest.strip() else Step(line, verb)
    enters = verb in ("fill", "choose")
    label, colon, value = rest.partition(":") if enters else (rest, "", "")
    entered = Step(line, verb, " ".join(label.split()), unescape(value.strip()))
    missing = [
        (enters and not colon, "a colon"),
        (not entered.label, "a label"),
        (verb == "choose" and not entered.value, "an option"),
    ]
    wrong = next((what for is_so, what in missing if is_so), "")
    return Step(line, error=f"{verb}: {wrong} is missing") if wrong else entered
