"""Values to enter: names, towns, e-mails, dates, numbers, codes and free text, all made up, none in two splits.

A value belongs to the split that the hash of its text falls to (8 : 1 : 1), whichever form and kind it is drawn for. So a
value of a held-out form is in no training form, and no list has to be kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.making.families import FieldSpec, Split

ROUNDS = 5000
"""Draws before a value counts as impossible."""

_FIRST = "b br d f fl g h j k kl l m n p r s st t tr v w z sh".split()  # noqa: SIM905
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ei", "ou"]
_LAST = ["", "n", "l", "r", "s", "t", "m", "k"]
_TOWNS = ["burg", "ton", "ford", "heim", "ville", "by", "dorf", "stad", "bach"]
_STREETS = ["weg", "gate", "lane", "road"]
_FIRMS = ["AG", "Co", "Ltd", "Works"]
_DOMAINS = ["de", "com", "org", "net", "eu"]
_WORDS = (  # noqa: SIM905  (a list of a hundred lines is no easier to read)
    "about above after again almost along always animal apple arrive autumn basket before better bread bridge bright "
    "candle careful chair clean cloud coffee corner count daily dinner early enough evening every family farm fast "
    "field finger first flower forest friend garden gentle green happy heavy honey house inside island kitchen large "
    "later letter light listen little lunch maybe middle minute morning mountain music narrow never night often open "
    "orange paper people place plenty pocket quick quiet rain ready river round salt season second seven short silver "
    "simple slow small soft sound spring stone street strong summer sunday sweet table thank thick three ticket today "
    "tomorrow travel tuesday under until village warm water week white window winter without wooden yellow young"
).split()


def split_of(text: str) -> Split:
    """The split a value belongs to: eight tenths of all texts are for training, a tenth each for validation and test."""
    part = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
    return "train" if part < 8 else "validation" if part == 8 else "test"


def draw(spec: FieldSpec, rng: Random, split: Split, longest: int, lines: int = 1) -> str:
    """A value for a field of kind text, email, number, date or textarea: of this split, at most `longest` characters.

    Only `textarea` values may have several lines, at most `lines`, of `longest` characters each. Raises RelgradError when
    there is hardly any such value.
    """
    many = rng.randint(1, lines) if spec.kind == "textarea" else 1
    for _ in range(ROUNDS):
        value = "\n".join(_short(spec, rng, longest) for _ in range(many))
        if split_of(value) == split:
            return value
    raise RelgradError(f"field {spec.labels[0]!r}: no {spec.kind} value for {split} in {ROUNDS} draws")


def largest(spec: FieldSpec, longest: int, lines: int = 1) -> str:
    """A stand-in that takes as much room as any value that `draw` gives for the same arguments."""
    most = longest
    if spec.kind == "number":
        most = max(len(str(bound)) for bound in spec.bounds)
    elif spec.kind == "date" or pattern(spec.draws):
        most = len(spec.draws) or len("2026-05-17")
    return "\n".join(["x" * min(most, longest)] * (lines if spec.kind == "textarea" else 1))


def _short(spec: FieldSpec, rng: Random, longest: int) -> str:
    for _ in range(ROUNDS):
        value = _draw(spec, rng)
        if len(value) <= longest:
            return value
    raise RelgradError(
        f"field {spec.labels[0]!r}: no {spec.kind} value of at most {longest} characters in {ROUNDS} draws; raise max_value"
    )


def _draw(spec: FieldSpec, rng: Random) -> str:
    low, high = spec.bounds
    if spec.kind == "number":
        return str(rng.randint(low, high))
    if spec.kind == "date":
        first = date(low, 1, 1)
        return (first + timedelta(days=rng.randrange((date(high, 12, 31) - first).days + 1))).isoformat()
    name = {"email": "email", "textarea": "words"}.get(spec.kind, spec.draws)
    return GENERATORS[name](rng) if name in GENERATORS else _mask(name, rng)


def pattern(draws: str) -> str:
    """The HTML pattern of a mask such as `000-AA`; "" for other generators."""
    if draws in GENERATORS or not draws:
        return ""
    return "".join({"0": "[0-9]", "A": "[A-Z]"}.get(sign, sign) for sign in draws)


def _mask(mask: str, rng: Random) -> str:
    sets = {"0": "0123456789", "A": "ABCDEFGHJKLMNPRSTUVWXYZ"}
    return "".join(rng.choice(sets[sign]) if sign in sets else sign for sign in mask)


def _word(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(_FIRST) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_LAST)


def _name(rng: Random) -> str:
    return _word(rng).capitalize()


def _words(rng: Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(2, 6)))


def _email(rng: Random) -> str:
    digits = str(rng.randint(1, 99)) if rng.random() < 0.2 else ""
    return f"{_word(rng)}{digits}@{_word(rng)}.{rng.choice(_DOMAINS)}"


GENERATORS: dict[str, Callable[[Random], str]] = {
    "first": _name,
    "person": lambda rng: f"{_name(rng)} {_name(rng)}",
    "town": lambda rng: _name(rng) + rng.choice(_TOWNS),
    "street": lambda rng: f"{_name(rng)}{rng.choice(_STREETS)} {rng.randint(1, 99)}",
    "company": lambda rng: f"{_name(rng)} {rng.choice(_FIRMS)}",
    "phone": lambda rng: "0" + "".join(rng.choice("0123456789") for _ in range(rng.randint(6, 9))),
    "word": _word,
    "words": _words,
    "email": _email,
}
"""What `text GENERATOR` in families.yaml may name; everything else is a mask."""
