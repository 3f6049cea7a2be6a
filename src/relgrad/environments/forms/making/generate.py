"""Forms drawn: a pure function of (family, seed, grammar). Labels, names, order, constraints, values and looks are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from random import Random
from typing import Any, get_args

from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.environments.forms.making import families, values, wording
from relgrad.environments.forms.making.families import CHOICES, Family, FieldSpec
from relgrad.environments.forms.making.form import Field, Form, Layout, Option, Value
from relgrad.environments.forms.making.grammar import Grammar

_LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_GIVEN = (*CHOICES, "checkbox")
"""Kinds whose values are on the page; all others are typed."""
_MADE_UP = FieldSpec(("a made-up label",), "text", draws="word")
_HELP = {
    "text": ("as in your papers", "please write clearly"),
    "email": ("we send nothing else", "name@place.org"),
    "number": ("a whole number",),
    "date": ("day, month and year",),
    "textarea": ("a few words will do", "tell us more"),
}


def rebuild(spec: Mapping[str, Any]) -> Form:
    """The form of a `spec`. Raises RelgradError where something else is given."""
    try:
        return make(spec["family"], spec["seed"], Grammar.model_validate(spec["grammar"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise RelgradError(
            f"no form: {spec!r} ({error}); a form is {{family, seed, grammar}} as task forms gives it"
        ) from None


@lru_cache(maxsize=1024)
def make(family: str, seed: int, grammar: Grammar) -> Form:
    """Draw a form. Raises RelgradError for an unknown family, or a grammar that is too small for it."""
    check_room(family, grammar)
    topic = families.family(family)
    rng = Random(f"{family}/{seed}")
    names = _Names(topic, rng)
    fields = [_field(spec, label, names, rng, topic, grammar) for spec, label in _chosen(topic, rng, grammar)]
    while len(fields) > 1 and _length(topic.name, fields, grammar) > grammar.fits:
        del fields[next(i for i in reversed(range(len(fields))) if i != _anchor(fields))]
    anchor = _anchor(fields)
    fields[anchor] = replace(fields[anchor], required=True)  # so that no form succeeds with nothing in it
    layout, reset = rng.choice(_LAYOUTS), rng.random() < 0.15
    return Form(family, seed, grammar, topic.name.capitalize(), rng.choice(topic.submit), tuple(fields), layout, reset)


@cache
def check_room(family: str, grammar: Grammar) -> None:
    """Raises RelgradError where a form of the family may not fit with even one field, whichever that is."""
    topic = families.family(family)
    made_up = ["x" * families.SHORT] if grammar.foreign_labels else []
    longest = max(
        _length(
            topic.name,
            [Field(label, spec.kind, "", "", values.largest(spec, grammar.max_value, grammar.lines))],
            grammar,
        )
        for spec in topic.fields
        if spec.kind in grammar.types and spec.kind not in _GIVEN
        for label in [*_labels(spec, grammar), *made_up]
    )
    if longest > grammar.fits:
        raise RelgradError(
            f"forms: a form of {family!r} with one field may take {longest} characters; raise fits={grammar.fits}, or lower "
            f"max_value={grammar.max_value} or lines={grammar.lines}"
        )


def _length(title: str, fields: list[Field], grammar: Grammar) -> int:
    prompt = wording.prompt_of(title.capitalize(), fields, grammar.wording, grammar.width)
    return len(prompt) + len(wording.plan_of(fields))


def _anchor(fields: list[Field]) -> int:
    """The first field whose value is typed: it stays, so that a form always holds a value of its own split."""
    return next(i for i, one in enumerate(fields) if one.kind not in _GIVEN)


def _chosen(topic: Family, rng: Random, grammar: Grammar) -> list[tuple[FieldSpec, str]]:
    """Fields in the order of the page, each with a label that no other has."""
    usable = [spec for spec in topic.fields if spec.kind in grammar.types]
    count = rng.randint(min(grammar.min_fields, len(usable)), min(grammar.max_fields, len(usable)))
    first = rng.choice([spec for spec in usable if spec.kind == "text"])
    chosen = [first, *rng.sample([spec for spec in usable if spec is not first], count - 1)]
    rng.shuffle(chosen)
    labelled: dict[str, FieldSpec] = {}
    for spec in chosen:
        free = [label for label in _labels(spec, grammar) if label not in labelled]
        if grammar.foreign_labels and rng.random() < grammar.foreign_labels:
            word = values.draw(_MADE_UP, rng, topic.split, families.SHORT)
            free = free if word in labelled else [word]
        if free:
            labelled[rng.choice(free)] = spec
    return [(spec, label) for label, spec in labelled.items()]


def _labels(spec: FieldSpec, grammar: Grammar) -> list[str]:
    return [s for s in spec.labels if not grammar.short_labels or (len(s) <= families.SHORT and " " not in s)]


class _Names:
    """Names and ids of the inputs of one form, in the style that was drawn for it."""

    def __init__(self, topic: Family, rng: Random) -> None:
        self.style = rng.choice(("label", "number", "prefix", "camel"))
        self.prefix = "".join(word[0] for word in topic.name.split())
        self.taken: set[str] = set()

    def next(self, label: str) -> str:
        words = label.replace("-", " ").replace("/", " ").split()
        number = len(self.taken) + 1
        name = {
            "label": "_".join(words).lower(),
            "number": f"field{number}",
            "prefix": f"{self.prefix}-{words[0].lower()}",
            "camel": words[0].lower() + "".join(word.capitalize() for word in words[1:]),
        }[self.style]
        if name in self.taken:
            name = f"{name}{number}"
        self.taken.add(name)
        return name


def _field(spec: FieldSpec, label: str, names: _Names, rng: Random, topic: Family, grammar: Grammar) -> Field:
    name = names.next(label)
    value: Value
    options: tuple[Option, ...] = ()
    attributes: dict[str, str] = {}
    if spec.kind == "checkbox":
        value = spec.must or rng.random() < 0.5
    elif spec.kind in CHOICES:
        options = _options(spec, rng, topic, grammar)
        count = rng.randint(1, spec.bounds[1]) if spec.kind == "multi" else 1
        picked = {option.text for option in rng.sample(options, count)}
        texts = tuple(option.text for option in options if option.text in picked)
        value = texts if spec.kind == "multi" else texts[0]
    else:
        value = values.draw(spec, rng, topic.split, grammar.max_value, grammar.lines)
        attributes = _constraints(spec, value, rng)
    helps = _HELP.get(spec.kind, ()) if grammar.help_texts and rng.random() < 0.3 else ()
    return Field(
        label=label,
        kind=spec.kind,
        name=name,
        id=f"{name}-{rng.randint(10, 99)}",
        value=value,
        required=spec.must or (spec.kind != "checkbox" and rng.random() < 0.75),
        options=options,
        attributes=attributes,
        help=rng.choice(helps) if helps else "",
        checked=spec.kind == "checkbox" and not spec.must and rng.random() < 0.3,
        most=spec.bounds[1] if spec.kind == "multi" else 0,
    )


def _options(spec: FieldSpec, rng: Random, topic: Family, grammar: Grammar) -> tuple[Option, ...]:
    fewest = spec.bounds[1] + 1 if spec.kind == "multi" else 2
    texts = rng.sample(spec.options, rng.randint(fewest, len(spec.options)))
    if grammar.foreign_options and rng.random() < grammar.foreign_options:
        made_up = [values.draw(_MADE_UP, rng, topic.split, families.SHORT).capitalize() for _ in texts]
        texts = list(dict.fromkeys(made_up)) if len(set(made_up)) >= fewest else texts
    style = rng.choice(("text", "lower", "number"))
    if style == "number":
        return tuple(Option(text, f"opt-{number}") for number, text in enumerate(texts, 1))
    return tuple(Option(text, text.lower() if style == "lower" else text) for text in texts)


def _constraints(spec: FieldSpec, value: str, rng: Random) -> dict[str, str]:
    """Constraints that the value keeps, in HTML's words."""
    low, high = spec.bounds
    if spec.kind == "number":
        return {"min": str(low), "max": str(high)}
    if spec.kind == "date":
        return {"min": f"{low}-01-01", "max": f"{high}-12-31"} if rng.random() < 0.7 else {}
    attributes = {}
    if rng.random() < 0.5:
        attributes["maxlength"] = str(len(value) + rng.choice((0, 2, 8, 20)))
    if rng.random() < 0.2:
        attributes["minlength"] = str(rng.randint(2, max(2, len(value) - 2)))
    if spec.kind == "text" and (mask := values.pattern(spec.draws)) and rng.random() < 0.8:
        attributes["pattern"] = mask
    return attributes
