"""A value as a control takes it: an option for its text, a date for its written form, a tick for a yes. Every change is reported.

Nothing is guessed: a date that may be two days, a number field for text with two numbers, or an option that two texts come near to
is refused, and the message says why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from relgrad.environments.sites.controls import LISTS, Control, Option
from relgrad.environments.sites.finding import APART, SIMILAR, plain, similar, squeezed

Order = Literal["mdy", "dmy"]
"""Which comes first in 3/4/2024."""

TEXTS = ("text", "email", "tel", "url", "password", "search", "textarea", "contenteditable")
DAYS = ("date", "time", "datetime-local", "month", "week")
YES, NO = (
    frozenset({"yes", "true", "on", "1", "checked", "y", "x"}),
    frozenset({"no", "false", "off", "0", "unchecked", "n", ""}),
)
NOTHING = frozenset({"", "none", "n a", "no file"})
"""Plain texts that mean no file at all."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:[ ,\u00a0\u202f']\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MONTHS = ("%B %d %Y", "%b %d %Y", "%d %B %Y", "%d %b %Y", "%A %B %d %Y", "%A %d %B %Y")
_CLOCKS = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I %p", "%I:%M%p", "%I%p", "%H.%M")
_COLOURS = {
    "black": "#000000", "white": "#ffffff", "red": "#ff0000", "green": "#008000", "blue": "#0000ff", "yellow": "#ffff00",
    "orange": "#ffa500", "purple": "#800080", "pink": "#ffc0cb", "grey": "#808080", "gray": "#808080", "brown": "#a52a2a",
    "navy": "#000080", "teal": "#008080", "silver": "#c0c0c0", "maroon": "#800000", "olive": "#808000", "lime": "#00ff00",
    "aqua": "#00ffff", "cyan": "#00ffff", "fuchsia": "#ff00ff", "magenta": "#ff00ff",
}  # fmt: skip


class Refused(Exception):
    """A control does not take a value; the message says why."""


@dataclass(frozen=True)
class Entry:
    """What to do with a control: `text` to type, an `option` to choose, whether to `tick`, or a `file` by its name ("": none)."""

    text: str | None = None
    option: Option | None = None
    tick: bool | None = None
    file: str | None = None
    note: str = ""


def entry(control: Control, value: str | bool, order: Order | None = None) -> Entry:
    """How to enter a value. Raises Refused."""
    if control.kind in ("checkbox", "radio-button"):
        return _tick(control, value)
    if control.kind in LISTS:
        return _choice(control, value)
    text = {True: "Yes", False: "No"}[value] if isinstance(value, bool) else value
    if control.kind == "file":
        name = "" if plain(text) in NOTHING else text.replace("\\", "/").rpartition("/")[2].strip()
        return Entry(file=name, note=_changed(control, text, name or "no file"))
    entered = _typed(control, text, order)
    return Entry(text=entered, note=_changed(control, text, entered))


def _changed(control: Control, before: str, after: str) -> str:
    return "" if before == after else f"{control.called}: {before!r} entered as {after!r}"


def _typed(control: Control, text: str, order: Order | None) -> str:
    if not text:
        return ""
    match control.kind:
        case "number" | "range":
            return number(text)
        case "date":
            return day(text, order).isoformat()
        case "time":
            return clock(text)
        case "datetime-local":
            return moment(text, order)
        case "month":
            return month(text)
        case "week":
            return week(text, order)
        case "color":
            return colour(text)
    return text


def yes(value: str | bool) -> bool | None:
    """Whether a text says yes or no; None where it says neither."""
    if isinstance(value, bool):
        return value
    word = plain(value)
    return True if word in YES else False if word in NO else None


def _tick(control: Control, value: str | bool) -> Entry:
    answer = yes(value)
    if answer is None and isinstance(value, str) and plain(value) in {plain(control.called), plain(control.value)}:
        answer = True
    if answer is None:
        raise Refused(f"{control.called!r} is a box to tick; {value!r} says neither yes nor no")
    note = "" if isinstance(value, bool) else f"{control.called}: {value!r} is {'a tick' if answer else 'no tick'}"
    return Entry(tick=answer, note=note)


# ---------------------------------------------------------------------- options


def _choice(control: Control, value: str | bool) -> Entry:
    options = [option for option in control.options if not option.disabled]
    if isinstance(value, bool):
        matching = [option for option in options if yes(option.text) is value or yes(option.value or "-") is value]
        if len(matching) != 1:
            raise Refused(f"{control.called!r} has no option that says {'yes' if value else 'no'}: {shown(options)}")
        return Entry(option=matching[0], note=f"{control.called}: {value} chosen as {matching[0].text!r}")
    step, option = chosen(options, value)
    if option is None:
        raise Refused(f"{control.called!r} has no option {value!r}{step}: {shown(options)}")
    return Entry(
        option=option,
        note="" if step == "text" else f"{control.called}: {value!r} chosen as {option.text!r}, by its {step}",
    )


def shown(options: Sequence[Option]) -> str:
    """The first few texts."""
    texts = [repr(option.text) for option in options if option.text]
    return f"there are {', '.join(texts[:6])}{' ...' if len(texts) > 6 else ''}" if texts else "it has no options"


def chosen(options: Sequence[Option], value: str) -> tuple[str, Option | None]:
    """(step, option): by its text, value, plain text, plain value, its number, or a text at least SIMILAR by difflib's ratio with
    no other within APART. Where there is none, the first of the pair says what was in the way.
    """
    exact, bare = squeezed(value), plain(value)
    for step, alike in (
        ("text", [o for o in options if o.text == exact]),
        ("value", [o for o in options if o.value == exact and exact]),
        ("plain text", [o for o in options if bare and plain(o.text) == bare]),
        ("plain value", [o for o in options if bare and plain(o.value) == bare]),
        ("number", _same_number(options, value)),
    ):
        if alike:
            same = len({option.value for option in alike}) == 1
            return (step, alike[0]) if same else (f" ({len(alike)} options have this {step})", None)
    scores = sorted(((similar(bare, plain(o.text)), o.position) for o in options), reverse=True)
    if scores and scores[0][0] >= SIMILAR and (len(scores) == 1 or scores[0][0] - scores[1][0] >= APART):
        return "likeness", next(option for option in options if option.position == scores[0][1])
    return "", None


def _same_number(options: Sequence[Option], value: str) -> list[Option]:
    """Options with the one number that the value has."""
    number_of = _numbers(value)
    if len(number_of) != 1:
        return []
    return [o for o in options if _numbers(o.text) == number_of] or [
        o for o in options if _numbers(o.value) == number_of
    ]


def _numbers(text: str) -> list[float]:
    return [
        float(re.sub(r"[ ,\u00a0\u202f']", "", match))
        for match in _NUMBER.findall(text)
        if any(map(str.isdigit, match))
    ]


# ---------------------------------------------------------------------- numbers, days and colours


def number(text: str) -> str:
    """A number as number fields take it: "$1,200.50 a month" is 1200.50. Raises Refused for text with none or several."""
    numbers = [part for part in _NUMBER.findall(text) if any(map(str.isdigit, part))]
    if len(numbers) != 1:
        raise Refused(f"{text!r} holds {'no number' if not numbers else f'{len(numbers)} numbers'}")
    plain_number = re.sub(r"[ ,\u00a0\u202f'+]", "", numbers[0])
    return f"0{plain_number}" if plain_number.startswith(".") else plain_number


def day(text: str, order: Order | None) -> date:
    """A day from its written form: 2024-03-05, 2024/3/5, 5.3.2024, March 5th, 2024, 5 Mar 2024; 3/5/2024 by `order`, or where only
    one order makes a day of it. Raises Refused.
    """
    parts = re.fullmatch(r"\s*(\d{4})\s*[-/.年]\s*(\d{1,2})\s*[-/.月]\s*(\d{1,2})日?(?:[T ].*)?\s*", text)
    if parts:
        return _date(text, *map(int, parts.groups()))
    parts = re.fullmatch(r"\s*(\d{1,2})\.\s*(\d{1,2})\.\s*(\d{4})\s*", text)
    if parts:
        return _date(text, int(parts[3]), int(parts[2]), int(parts[1]))
    parts = re.fullmatch(r"\s*(\d{1,2})[/-](\d{1,2})[/-](\d{4})\s*", text)
    if parts:
        one, two, year = map(int, parts.groups())
        if order is None and one != two and one <= 12 and two <= 12:
            raise Refused(f"{text!r} may be two days; say `dates: mdy` or `dates: dmy`")
        month_first = order == "mdy" if order is not None and max(one, two) <= 12 else two > 12 or one == two
        return _date(text, year, *((one, two) if month_first else (two, one)))
    words = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text.strip()).replace(",", " ").replace(".", " ")
    for form in _MONTHS:
        try:
            return datetime.strptime(squeezed(words), form).date()
        except ValueError:
            continue
    raise Refused(f"{text!r} is no date")


def _date(text: str, year: int, month_number: int, day_number: int) -> date:
    try:
        return date(year, month_number, day_number)
    except ValueError:
        raise Refused(f"{text!r} is no date") from None


def clock(text: str) -> str:
    """HH:MM or HH:MM:SS from 14:30, 2:30 PM, 2pm. Raises Refused."""
    clean = squeezed(text.replace("a.m.", "AM").replace("p.m.", "PM"))
    for form in _CLOCKS:
        try:
            time = datetime.strptime(clean, form).time()
        except ValueError:
            continue
        return time.strftime("%H:%M:%S" if time.second else "%H:%M")
    raise Refused(f"{text!r} is no time of day")


def moment(text: str, order: Order | None) -> str:
    """YYYY-MM-DDTHH:MM from a day and a time with a T, a comma, `at` or a space between. Raises Refused."""
    pieces = re.split(r"T(?=\d)|,\s+(?=\d{1,2}[:. ]|\d{1,2}[ap])|\s+at\s+", text.strip())
    if len(pieces) != 2:
        pieces = list(re.split(r"\s+(?=\d{1,2}[:.]\d\d|\d{1,2}\s?[apAP][mM.])", text.strip()))
    if len(pieces) != 2:
        raise Refused(f"{text!r} is no day with a time")
    return f"{day(pieces[0], order).isoformat()}T{clock(pieces[1])}"


def month(text: str) -> str:
    """YYYY-MM from 2024-03, 03/2024, March 2024, or a whole date. Raises Refused."""
    clean = squeezed(text.replace(",", " "))
    for form in ("%Y-%m", "%Y/%m", "%m/%Y", "%B %Y", "%b %Y"):
        try:
            return datetime.strptime(clean, form).strftime("%Y-%m")
        except ValueError:
            continue
    return day(text, None).strftime("%Y-%m")


def week(text: str, order: Order | None) -> str:
    """YYYY-Www from itself, or from a day in it. Raises Refused."""
    parts = re.fullmatch(r"\s*(\d{4})-?\s*W(?:eek)?\s*(\d{1,2})\s*", text, re.IGNORECASE)
    if parts:
        return f"{parts[1]}-W{int(parts[2]):02d}"
    year, number_of_week, _ = day(text, order).isocalendar()
    return f"{year}-W{number_of_week:02d}"


def colour(text: str) -> str:
    """#rrggbb from itself, #rgb, or one of the names of `_COLOURS`. Raises Refused."""
    clean = text.strip().lower()
    if re.fullmatch(r"#[0-9a-f]{6}", clean):
        return clean
    if re.fullmatch(r"#[0-9a-f]{3}", clean):
        return "#" + "".join(2 * digit for digit in clean[1:])
    if clean in _COLOURS:
        return _COLOURS[clean]
    raise Refused(f"{text!r} is no colour; write #rrggbb")
