"""HTML's rules for the values of inputs, as Chromium applies them: what a value becomes when typed, and what is wrong with it.

Lengths are UTF-16 code units, as everywhere in HTML. Source: https://html.spec.whatwg.org/multipage/input.html and, for steps,
Chromium's StepRange::StepMismatch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache

FILLABLE = ("text", "email", "number", "date", "textarea")
_SPACE = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
"""What JavaScript's trim takes away."""
_ENTER = "\n"
"""What a browser takes for the Enter key in a field of one line."""

_FLOAT = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"(?=\d{4})0*(\d{1,6})-(\d\d)-(\d\d)", re.ASCII)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_EMAIL = re.compile(rf"[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")
_LAST_DAY = (275760, 9, 13)
_EXACT = Context(prec=1000)


def can_be_typed(kind: str, value: str) -> bool:
    """Whether an executor types this value at all. Both leave a field as it is where it says no.

    A number field takes numbers that a double holds, written as HTML writes them (`1e3`, `-.5`, not `1,5`): browsers differ
    in which other signs their number fields swallow. An e-mail field takes ASCII: Chromium would rewrite the rest. A lone line
    break in a field of one line is the Enter key, which sends the form, and no text.
    """
    if kind == "number":
        return not value or _is_number(value)
    if kind in ("text", "email") and value == _ENTER:
        return False
    return kind != "email" or value.isascii()


def typed(kind: str, value: str, maxlength: int | None) -> str:
    """What a field holds after the value was typed into it.

    Dates that are none leave it empty, white space around them does not count. In one line, line breaks at the end are nothing
    and any other is a space (Chromium's TextFieldInputType::HandleBeforeTextInsertedEvent). Typing stops at `maxlength`, not
    inside of a character.
    """
    if kind == "number":
        return value
    if kind == "date":
        value = value.strip(_SPACE)
        return value if _day(value) else ""
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if kind != "textarea":
        value = value.rstrip("\n").replace("\n", " ")
    if maxlength is not None and length(value) > maxlength:
        value = value.encode("utf-16-le", "surrogatepass")[: 2 * maxlength].decode("utf-16-le", "ignore")
    return value.strip(" \t\n\f\r") if kind == "email" else value


def length(text: str) -> int:
    """UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def fault(kind: str, value: str, attributes: Mapping[str, str]) -> str:
    """The first constraint that a typed value violates, in the words of ValidityState; "" when it is valid.

    `attributes` are the element's: required, minlength, maxlength, pattern, min, max. An empty value violates `required` alone.
    """
    if not value:
        return "valueMissing" if "required" in attributes else ""
    if "maxlength" in attributes and length(value) > int(attributes["maxlength"]):
        return "tooLong"
    if "minlength" in attributes and length(value) < int(attributes["minlength"]):
        return "tooShort"
    if kind == "email" and _EMAIL.fullmatch(value) is None:
        return "typeMismatch"
    if "pattern" in attributes and re.fullmatch(attributes["pattern"], value) is None:
        return "patternMismatch"
    if kind == "number":
        return _number_fault(value, attributes)
    return _date_fault(value, attributes) if kind == "date" else ""


def _is_number(value: str) -> bool:
    return _FLOAT.fullmatch(value) is not None and math.isfinite(float(value))


def _number_fault(value: str, attributes: Mapping[str, str]) -> str:
    if not _is_number(value):
        return "badInput"
    number, low, high = _decimal(value), _bound(attributes, "min"), _bound(attributes, "max")
    if low is not None and number < low:
        return "rangeUnderflow"
    if high is not None and number > high:
        return "rangeOverflow"
    return "stepMismatch" if _between_steps(_EXACT.subtract(number, low or Decimal(0))) else ""


def _decimal(value: str) -> Decimal:
    """The number that a text says; 0 where its exponent is further below zero than a Decimal's can be (1e-9999999999999999999)."""
    try:
        return Decimal(value)
    except InvalidOperation:
        return Decimal(0)


def _bound(attributes: Mapping[str, str], name: str) -> Decimal | None:
    return Decimal(attributes[name]) if name in attributes else None


def _between_steps(distance: Decimal) -> bool:
    """For step 1: off a whole number by more than a float's precision. Chromium does not look beyond a double's."""
    if abs(distance) > 2**53:
        return False
    rest = _EXACT.abs(distance - round(distance))
    return Decimal(1) / 2**24 < rest


def _date_fault(value: str, attributes: Mapping[str, str]) -> str:
    day = _day(value)
    if not day:
        return "badInput"
    if "min" in attributes and day < _day(attributes["min"]):
        return "rangeUnderflow"
    return "rangeOverflow" if "max" in attributes and day > _day(attributes["max"]) else ""


@lru_cache(maxsize=4096)
def _day(text: str) -> tuple[int, ...]:
    """(year, month, day) of a valid date string; () for any other text."""
    match = _DATE.fullmatch(text)
    if match is None:
        return ()
    year, month, day = parts = tuple(map(int, match.groups()))
    try:
        date(2000 + year % 400, month, day)  # the calendar repeats every 400 years, and Python's ends in 9999
    except ValueError:
        return ()
    return parts if year > 0 and parts <= _LAST_DAY else ()
