"""Forms: families and their splits, values, plans, HTML's rules, the in-process executor, the server's side."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from form_cases import (
    ABOUT,
    ASKED,
    CASES,
    DAYS,
    GRAMMARS,
    MAIL,
    NEWS,
    RULES,
    SIZE,
    TEXT,
    Case,
    filled,
    form_of,
    forms,
    outcome,
)
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.environments.forms.executing import html_rules, server_verdict
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.executing.parsed_page import Document
from relgrad.environments.forms.making import families, values, wording
from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.making.generate import make, rebuild
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.making.wording import ALPHABET
from relgrad.environments.forms.outcome import Outcome, field_accuracy
from relgrad.environments.forms.pages.page import Frame, film_page, form_page, hinted_page, outcome_page
from relgrad.environments.forms.plan import MOST, VERBS, escape, parse, unescape
from relgrad.tasks import forms as task

SMALL, _, LONG = GRAMMARS
EVERY = list(families.families())


# ---------------------------------------------------------------------- families


def test_there_are_many_families_and_every_split_has_its_own() -> None:
    assert len(EVERY) >= 30
    assert {split: len(families.names(split)) for split in families.SPLITS} == {"train": 26, "validation": 6, "test": 6}
    assert sorted(families.names(*families.SPLITS)) == sorted(EVERY)
    kinds = {spec.kind for one in families.families().values() for spec in one.fields}
    assert kinds == set(families.KINDS)


def test_families_of_different_splits_share_no_option() -> None:
    options = {
        split: {
            text.casefold()
            for name in families.names(split)
            for spec in families.family(name).fields
            for text in spec.options
        }
        for split in families.SPLITS
    }
    for one, other in itertools.combinations(families.SPLITS, 2):
        assert not options[one] & options[other]
    assert all(len(text) <= 10 for texts in options.values() for text in texts), "Grammar.max_value is at least 10"


def test_a_held_out_family_asks_for_what_no_training_family_calls_so() -> None:
    """Names of training fields are met again (an e-mail is an e-mail), but most labels of a held-out family are new."""

    def labels(*splits: families.Split) -> list[str]:
        return [spec.labels[0] for name in families.names(*splits) for spec in families.family(name).fields]

    known = set(labels("train"))
    held_out = labels("validation", "test")
    assert sum(label not in known for label in held_out) > 0.5 * len(held_out)


def test_labels_of_a_family_are_all_different() -> None:
    for name in EVERY:
        labels = [label for spec in families.family(name).fields for label in spec.labels]
        assert len(set(labels)) == len(labels), name


def test_an_unknown_family_is_told_with_the_nearest() -> None:
    with pytest.raises(RelgradError, match=r"no family 'libary card'; did you mean 'library card'\?"):
        make("libary card", 0, SMALL)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("split", families.SPLITS)
def test_values_are_of_their_split_and_keep_their_length(split: families.Split) -> None:
    from random import Random

    for spec in (spec for name in EVERY for spec in families.family(name).fields):
        if spec.kind in (*families.CHOICES, "checkbox"):
            continue
        for seed in range(3):
            value = values.draw(spec, Random(seed), split, 12)
            assert values.split_of(value) == split
            assert 1 <= len(value) <= 12
            assert set(value) <= set(ALPHABET)


def test_about_eight_tenths_of_all_texts_are_for_training() -> None:
    found = [values.split_of(str(i)) for i in range(5000)]
    assert [found.count(split) / 5000 for split in families.SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_a_value_that_cannot_be_is_an_error() -> None:
    from random import Random

    street = families.FieldSpec(("street",), "text", draws="street")
    with pytest.raises(RelgradError, match=r"no text value of at most 3 characters.*raise max_value"):
        values.draw(street, Random(0), "train", 3)


# ---------------------------------------------------------------------- forms


def test_a_form_is_the_same_in_every_process() -> None:
    code = (
        "from relgrad.environments.forms.making.generate import make\n"
        "from relgrad.environments.forms.making.grammar import Grammar\n"
        "from relgrad.environments.forms.pages.page import form_page\n"
        "print(*(form_page(make(name, seed, Grammar())) for name in ('food order', 'pet adoption') for seed in range(20)))"
    )
    forms = [make(name, seed, SMALL) for name in ("food order", "pet adoption") for seed in range(20)]
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == " ".join(form_page(form) for form in forms) + "\n"


def test_the_golden_form() -> None:
    """One form to the letter: a change here changes what recorded scores are about."""
    form = make("library card", 1, SMALL)
    assert wording.prompt(form) == "news-\ntown=Bihuford\nbranch>Hill\nstreet=Pareirweg 13\n#\n"
    assert (
        wording.plan(form)
        == "uncheck news\nfill town: Bihuford\nchoose branch: Hill\nfill street: Pareirweg 13\nsubmit"
    )
    assert form.values == {"news": False, "town": "Bihuford", "branch": "Hill", "street": "Pareirweg 13"}


@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_the_reference_plan_of_every_family_is_worth_1(grammar: Grammar) -> None:
    for name, seed in itertools.product(EVERY, range(6)):
        form = make(name, seed, grammar)
        found = outcome(form, wording.plan(form))
        assert found.success, (name, seed)
        assert all(found.executed), (name, seed)
        assert field_accuracy(form, found.submitted, "exact") == 1, (name, seed)


@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_a_form_keeps_its_grammar(grammar: Grammar) -> None:
    for name, seed in itertools.product(EVERY, range(6)):
        form = make(name, seed, grammar)
        assert 1 <= len(form.fields) <= grammar.max_fields
        assert len(wording.prompt(form)) + len(wording.plan(form)) <= grammar.fits
        assert set(wording.prompt(form) + wording.plan(form)) <= set(ALPHABET)
        assert {field.kind for field in form.fields} <= set(grammar.types)
        assert len({field.label for field in form.fields}) == len(form.fields)
        assert len({field.name for field in form.fields}) == len(form.fields)
        assert any(field.kind in html_rules.FILLABLE and field.required for field in form.fields), (
            "it cannot be sent empty"
        )
        if grammar.short_labels:
            assert all(len(field.label) <= 8 and " " not in field.label for field in form.fields)


def test_few_types_and_little_room() -> None:
    for name, seed in itertools.product(EVERY, range(4)):
        form = make(name, seed, Grammar(min_fields=1, max_fields=8, types=("text", "checkbox"), fits=64))
        assert {field.kind for field in form.fields} <= {"text", "checkbox"}
        assert len(wording.prompt(form)) + len(wording.plan(form)) <= 64


def test_a_grammar_that_is_too_small_is_refused_before_the_run_and_not_inside_it() -> None:
    """Whether it is depends on the family alone, not on which of its forms is drawn."""
    why = r"a form of '[\w ]+' with one field may take \d+ characters; raise fits=64"
    wordy = Grammar(min_fields=1, max_fields=1, fits=64, wording="long")
    for seed in range(5):
        with pytest.raises(RelgradError, match=why):
            make("pet adoption", seed, wordy)
    with pytest.raises(RelgradError, match=why):
        task.load(task.Settings(held_out_size=0, grammar=wordy), seed=0)
    with pytest.raises(RelgradError, match=why):
        task.load(task.Settings(families=("taxi ride",), grammar=Grammar(fits=64, width=60)), seed=0)


@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_no_value_takes_more_room_than_was_reckoned_with(grammar: Grammar) -> None:
    from random import Random

    for name, seed in itertools.product(EVERY, range(5)):
        known = families.family(name)
        for spec in known.fields:
            if spec.kind not in (*families.CHOICES, "checkbox"):
                drawn = values.draw(spec, Random(seed), known.split, grammar.max_value, grammar.lines)
                room = values.largest(spec, grammar.max_value, grammar.lines)
                assert len(escape(drawn)) <= len(escape(room)), (name, spec.labels)


def test_forms_vary_with_the_seed() -> None:
    found = [make("hotel booking", seed, LONG) for seed in range(30)]
    assert len({form_page(form) for form in found}) == 30
    assert {form.layout for form in found} == {"stack", "wrap", "table"}
    assert {form.reset for form in found} == {True, False}
    guests = {f.label for form in found for f in form.fields if f.label in ("guest", "name of guest", "booked for")}
    assert len(guests) == 3, "labels vary"
    assert len({tuple(sorted(f.label for f in form.fields)) for form in found}) > 20
    assert any(f.help for form in found for f in form.fields)
    assert len({f.name.strip("0123456789") for form in found for f in form.fields}) > 10


def test_labels_may_be_made_up_words_in_training() -> None:
    grammar = Grammar(foreign_labels=0.5)
    own = {label for name in EVERY for spec in families.family(name).fields for label in spec.labels}
    loaded = task.load(task.Settings(train_size=200, held_out_size=50, grammar=grammar), seed=0)
    labels = [label for prompt in loaded.train for label in prompt.columns["values"]]
    made_up = [label for label in labels if label not in own]
    assert 0.4 < len(made_up) / len(labels) < 0.6
    assert len(set(made_up)) > 0.8 * len(made_up)
    assert all(values.split_of(label) == "train" and len(label) <= 8 for label in made_up)
    assert own >= {label for prompt in loaded.validation for label in prompt.columns["values"]}
    for prompt in list(loaded.train)[:20]:
        form = rebuild(prompt.columns["form"])
        assert outcome(form, wording.plan(form)).success


def test_options_may_be_made_up_words_in_training() -> None:
    own = {option for name in EVERY for spec in families.family(name).fields for option in spec.options}
    loaded = task.load(task.Settings(train_size=200, held_out_size=50, grammar=Grammar(foreign_options=0.5)), seed=0)

    def lists(prompts: Iterable[Prompt]) -> list[set[str]]:
        forms = [rebuild(prompt.columns["form"]) for prompt in prompts]
        assert all(outcome(form, wording.plan(form)).success for form in forms)
        return [{option.text for option in one.options} for form in forms for one in form.fields if one.options]

    trained = lists(loaded.train)
    assert 0.35 < sum(texts.isdisjoint(own) for texts in trained) / len(trained) < 0.65
    assert all(texts <= own or texts.isdisjoint(own) for texts in trained)
    assert all(texts <= own for texts in lists(loaded.validation))


def test_the_width_fills_prompts_up_and_lines_say_what_a_plan_does() -> None:
    plain, padded = Grammar(wording="lines", fits=400), Grammar(wording="lines", fits=400, width=150)
    for seed in range(20):
        form = make("library card", seed, padded)
        assert len(wording.prompt(form)) == 150
        short = wording.prompt(make("library card", seed, plain))
        assert wording.prompt(form).replace("\n", "") == short.replace("\n", "")
        assert wording.prompt(form).endswith("#\n")
        assert len(short.splitlines()) == len(
            wording.plan(form).splitlines()
        )  # a line per step, and the last one for the end
    with pytest.raises(ValidationError, match="width=150 is for wording short or lines"):
        Grammar(wording="long", width=150)


def test_a_form_is_rebuilt_from_plain_data() -> None:
    form = make("food order", 7, LONG)
    assert rebuild(json.loads(json.dumps(form.spec))) == form
    for wrong in ({}, {"family": "food order", "seed": 7}, {**form.spec, "grammar": {"max_field": 3}}, "food order"):
        with pytest.raises(RelgradError, match="no form"):
            rebuild(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_fields": 1}, "less than min_fields=2"),
        ({"types": ("number",)}, "must hold text"),
        ({"types": ("text", "file")}, "Input should be"),
        ({"fits": 10}, "greater than or equal to 64"),
    ],
)
def test_an_illegal_grammar_says_why(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Grammar(**options)


def test_two_ways_to_tell_a_form() -> None:
    form = form_of(TEXT, SIZE, DAYS, NEWS, RULES, ABOUT)
    assert wording.prompt(form) == "town=Bonn\nsize>L\ndays>Mon\ndays>Wed\nnews-\nrules+\nabout=one\\ntwo\n#\n"
    assert wording.prompt(replace(form, grammar=Grammar(wording="long"))) == (
        "Fill in the form: Made by hand\ntown (text) = Bonn\nsize (one of S, M, L) = L\ndays (some of Mon, Tue, Wed) = Mon, Wed\n"
        "news (box) = no\nrules (box) = yes\nabout (text) = one\\ntwo\nPlan:\n"
    )
    assert wording.plan(form) == (
        "fill town: Bonn\nchoose size: L\nchoose days: Mon\nchoose days: Wed\nuncheck news\ncheck rules\n"
        "fill about: one\\ntwo\nsubmit"
    )


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("fill town: Bonn", ("fill", "town", "Bonn")),
        ("fill  home   town :Bonn: am Rhein ", ("fill", "home town", "Bonn: am Rhein")),
        ("fill town:", ("fill", "town", "")),
        ("fill about: a\\nb\\\\nc\\d", ("fill", "about", "a\nb\\nc\\d")),
        ("choose size: L", ("choose", "size", "L")),
        ("check news", ("check", "news", "")),
        ("uncheck news", ("uncheck", "news", "")),
        ("click Get my card", ("click", "Get my card", "")),
        ("\tsubmit\r", ("submit", "", "")),
    ],
)
def test_steps(line: str, step: tuple[str, str, str]) -> None:
    (found,) = parse(line).steps
    assert (found.verb, found.label, found.value, found.error) == (*step, "")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("fil town: Bonn", "unknown verb 'fil'; there are fill, choose"),
        ("Fill town: Bonn", "unknown verb 'Fill'"),
        ("fill town Bonn", "fill: a colon is missing"),
        ("fill: Bonn", "unknown verb 'fill:'"),
        ("fill : Bonn", "fill: a label is missing"),
        ("choose size:", "choose: an option is missing"),
        ("check", "check: a label is missing"),
        ("submit now", "submit stands alone"),
    ],
)
def test_broken_lines_say_why_and_the_plan_goes_on(line: str, why: str) -> None:
    plan = parse(f"check news\n{line}\n\nsubmit")
    assert [step.verb for step in plan.steps] == ["check", None, "submit"]
    assert why in plan.errors[1]
    found = outcome(form_of(NEWS), f"check news\n{line}\nsubmit")
    assert found == Outcome(True, (("c", "on"),), (True, False, True))


@given(st.text())
def test_any_text_is_a_plan(text: str) -> None:
    plan = parse(text)
    assert len(plan.steps) == sum(1 for line in text.split("\n") if line.strip())
    assert all((step.verb in VERBS) == (step.error == "") for step in plan.steps)


@given(st.text())
def test_what_is_escaped_comes_back(text: str) -> None:
    assert "\n" not in escape(text)
    assert unescape(escape(text)) == text


# ---------------------------------------------------------------------- HTML's rules


@pytest.mark.parametrize(
    ("kind", "value", "attributes", "fault"),
    [
        ("text", "", {"required": ""}, "valueMissing"),
        ("text", "", {"minlength": "3", "pattern": "a+"}, ""),
        ("text", "😀", {"minlength": "2", "maxlength": "2"}, ""),
        ("text", "ab", {"maxlength": "1"}, "tooLong"),
        ("email", "a@-b", {}, "typeMismatch"),
        ("email", "a@" + "b" * 63, {}, ""),
        ("email", "a@" + "b" * 64, {}, "typeMismatch"),
        ("number", "5.", {}, "badInput"),
        ("number", ".5", {}, "stepMismatch"),
        ("number", "1e-2", {}, "stepMismatch"),
        ("number", "1.5e1", {"min": "10", "max": "20"}, ""),
        ("number", "99999999999999999999.5", {}, ""),
        ("date", "2024-02-29", {"min": "2024-02-29", "max": "2024-02-29"}, ""),
        ("date", "1900-02-29", {}, "badInput"),
        ("date", "0000-01-01", {}, "badInput"),
        ("date", "10000-01-01", {"max": "9999-12-31"}, "rangeOverflow"),
        ("date", "275760-09-14", {}, "badInput"),
        ("date", "0" * 5000 + "2026-01-01", {}, ""),
        ("date", "202-01-01", {}, "badInput"),
        ("number", "1e999999999", {}, "badInput"),
        ("number", "1e-" + "9" * 5000, {"min": "0", "max": "3"}, ""),
        ("number", "1e-" + "9" * 5000, {"min": "1"}, "rangeUnderflow"),
        ("number", "9" * 5000, {}, "badInput"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_constraints(kind: str, value: str, attributes: dict[str, str], fault: str) -> None:
    assert html_rules.fault(kind, value, attributes) == fault


# ---------------------------------------------------------------------- pages and the in-process executor


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_in_process_executor_knows_what_comes_of_it(case: Case) -> None:
    found = outcome(case.form, case.plan)
    assert "".join("ny"[executed] for executed in found.executed) == case.executed
    assert found.submitted == case.sent
    assert found.success == case.success


@settings(max_examples=150, deadline=None)
@given(filled())
def test_no_plan_breaks_the_in_process_executor(given: tuple[Form, str]) -> None:
    form, text = given
    plan = parse(text)
    found = InProcess().run(form, plan)
    assert found == InProcess().run(form, plan), "a page begins afresh"
    assert len(found.executed) == len(plan.steps)
    assert not any(found.executed[number] for number in plan.errors)
    assert not any(found.executed[MOST:])
    assert found.success <= (found.submitted is not None)
    assert 0 <= field_accuracy(form, found.submitted) <= 1


@settings(max_examples=60, deadline=None)
@given(forms())
def test_the_page_holds_the_form(form: Form) -> None:
    document = Document.parse(form_page(form))
    assert [c.name for c in document.controls if c.kind not in ("radio", "submit", "reset")] == [
        f.name for f in form.fields if f.kind != "radio"
    ]
    assert list(document.labels) == sorted(document.labels, key=[f.label for f in form.fields].index)
    for field in form.fields:
        named = document.labels[field.label]
        if field.kind == "radio":
            assert {text: control.initial for text, control in named.group.items()} == {
                option.text: option.value for option in field.options
            }
            continue
        assert named.control is not None
        assert named.control.required == field.required
        assert field.attributes.items() <= named.control.attributes.items()
        if field.options:
            shown = [(option.text, option.value) for option in named.control.options if option.value]
            assert shown == [(option.text, option.value) for option in field.options]
    assert document.submit is not None
    assert document.submit.text == form.submit


def test_a_form_is_read_once_however_many_plans_fill_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    parse_page = Document.parse
    monkeypatch.setattr(Document, "parse", staticmethod(lambda html: read.append(html) or parse_page(html)))
    form = make("taxi ride", 9_999, SMALL)
    for _ in range(5):
        assert outcome(rebuild(form.spec), wording.plan(form)).success
    assert len(read) == 1


def test_pages_escape_whatever_they_show() -> None:
    evil = "<script>\"&'"
    field = Field(evil, "select", "n", "i", evil, options=(SIZE.options[0],), help=evil)
    for page in (
        hinted_page(form_of(field)),
        outcome_page(form_of(field), [evil], {evil: 0.5}),
        film_page(form_of(field), [Frame(evil, True, b"PNG")], {"success": 1.0}),
    ):
        assert "<script" not in page
        assert "&lt;script" in page


# ---------------------------------------------------------------------- the server's side


def test_the_server_checks_everything_again() -> None:
    form = form_of(ASKED, MAIL, DAYS, SIZE, RULES)
    right = [("q", "Ada"), ("e", "a@b.de"), ("m", "mon-sent"), ("s", "l-sent"), ("r", "on")]
    assert server_verdict.complaints(form, right) == []

    def with_(name: str, *sent: str) -> list[str]:
        return server_verdict.complaints(
            form, [entry for entry in right if entry[0] != name] + [(name, value) for value in sent]
        )

    assert with_("q") == ["name: this is needed"]
    assert with_("q", "  ") == ["name: this is needed"]
    assert with_("q", "Ada", "Eve") == ["name: at most 1"]
    assert with_("e", "ab") == ["mail: typeMismatch"]
    assert with_("e") == ["mail: this is missing"]
    assert with_("m", "mon-sent", "tue-sent", "wed-sent") == ["days: at most 2"]
    assert with_("s", "XL") == ["size: there is no such option"]
    assert with_("r") == ["rules: this is needed"]
    assert with_("admin", "1") == ["admin: the form has no such field"]


def test_what_browsers_send_is_read_as_it_was_meant() -> None:
    entries = (("a", "one\r\ntwo"), ("b", ""), ("b", "x=y&z+ %"), ("ü", "😀"))
    assert server_verdict.decode(urllib.parse.urlencode(entries).encode()) == entries
    assert server_verdict.decode(b"a=%ff%fe&b") == (("a", "\ufffd\ufffd"), ("b", ""))
