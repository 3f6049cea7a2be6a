"""Forms: families and their splits, plans, HTML's rules, the in-process executor, the task, the reward, the server."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from form_cases import (
    ABOUT,
    ASKED,
    CASES,
    DAY,
    DAYS,
    GRAMMARS,
    MAIL,
    NEWS,
    NUMBER,
    ONE,
    RULES,
    SIZE,
    TEXT,
    Case,
    filled,
    form_of,
    forms,
)
from relgrad.cli import app
from relgrad.forms import browser, desk, families, rules, values, wording
from relgrad.forms.document import Document
from relgrad.forms.form import Field, Form, make, rebuild
from relgrad.forms.grammar import Grammar
from relgrad.forms.in_process import InProcess
from relgrad.forms.outcome import Outcome, Unscored, field_accuracy
from relgrad.forms.page import film_page, form_page, outcome_page
from relgrad.forms.plan import MOST, VERBS, Plan, parse
from relgrad.forms.serve import address, server
from relgrad.forms.watch import Frame
from relgrad.forms.wording import ALPHABET, END, escape, unescape
from relgrad.rewards import forms as reward
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import forms as task
from relgrad.types import Output, Prompt, RelgradError

SMALL, LARGE, LONG = GRAMMARS
EVERY = list(families.families())


def outcome(form: Form, plan: str) -> Outcome:
    return InProcess().run(form, parse(plan))


def typed_values(prompt: Prompt) -> set[str]:
    """Everything to be entered, ticks apart."""
    found: set[str] = set()
    for value in prompt.columns["values"].values():
        if not isinstance(value, bool):
            found |= {value} if isinstance(value, str) else set(value)
    return found


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
        "from relgrad.forms.form import make; from relgrad.forms.grammar import Grammar\n"
        "print(*(make(name, seed, Grammar()).html for name in ('food order', 'pet adoption') for seed in range(20)))"
    )
    forms = [make(name, seed, SMALL) for name in ("food order", "pet adoption") for seed in range(20)]
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == " ".join(form.html for form in forms) + "\n"


def test_the_golden_form() -> None:
    """One form to the letter: a change here changes what recorded scores are about."""
    form = make("library card", 1, SMALL)
    assert form.prompt == "news-\ntown=Bihuford\nbranch>Hill\nstreet=Pareirweg 13\n#\n"
    assert form.plan == "uncheck news\nfill town: Bihuford\nchoose branch: Hill\nfill street: Pareirweg 13\nsubmit"
    assert form.values == {"news": False, "town": "Bihuford", "branch": "Hill", "street": "Pareirweg 13"}


@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_the_reference_plan_of_every_family_is_worth_1(grammar: Grammar) -> None:
    for name, seed in itertools.product(EVERY, range(6)):
        form = make(name, seed, grammar)
        found = outcome(form, form.plan)
        assert found.success, (name, seed)
        assert all(found.executed), (name, seed)
        assert field_accuracy(form, found.submitted, "exact") == 1, (name, seed)


@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_a_form_keeps_its_grammar(grammar: Grammar) -> None:
    for name, seed in itertools.product(EVERY, range(6)):
        form = make(name, seed, grammar)
        assert 1 <= len(form.fields) <= grammar.max_fields
        assert len(form.prompt) + len(form.plan) <= grammar.fits
        assert set(form.prompt + form.plan) <= set(ALPHABET)
        assert {field.kind for field in form.fields} <= set(grammar.types)
        assert len({field.label for field in form.fields}) == len(form.fields)
        assert len({field.name for field in form.fields}) == len(form.fields)
        assert any(field.kind in rules.FILLABLE and field.required for field in form.fields), "it cannot be sent empty"
        if grammar.short_labels:
            assert all(len(field.label) <= 8 and " " not in field.label for field in form.fields)


def test_few_types_and_little_room() -> None:
    for name, seed in itertools.product(EVERY, range(4)):
        form = make(name, seed, Grammar(min_fields=1, max_fields=8, types=("text", "checkbox"), fits=64))
        assert {field.kind for field in form.fields} <= {"text", "checkbox"}
        assert len(form.prompt) + len(form.plan) <= 64
    wordy = Grammar(min_fields=1, max_fields=1, fits=64, wording="long")
    with pytest.raises(RelgradError, match=r"one field of 'pet adoption' already takes \d+ characters; raise fits=64"):
        make("pet adoption", 0, wordy)


def test_forms_vary_with_the_seed() -> None:
    found = [make("hotel booking", seed, LONG) for seed in range(30)]
    assert len({form.html for form in found}) == 30
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
    assert own >= {label for prompt in loaded.held_out for label in prompt.columns["values"]}
    for prompt in list(loaded.train)[:20]:
        form = rebuild(prompt.columns["form"])
        assert outcome(form, form.plan).success


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
    assert form.prompt == "town=Bonn\nsize>L\ndays>Mon\ndays>Wed\nnews-\nrules+\nabout=one\\ntwo\n#\n"
    assert wording.prompt("Made by hand", form.fields, "long") == (
        "Fill in the form: Made by hand\ntown (text) = Bonn\nsize (one of S, M, L) = L\ndays (some of Mon, Tue, Wed) = Mon, Wed\n"
        "news (box) = no\nrules (box) = yes\nabout (text) = one\\ntwo\nPlan:\n"
    )
    assert form.plan == (
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
    ],
)
def test_constraints(kind: str, value: str, attributes: dict[str, str], fault: str) -> None:
    assert rules.fault(kind, value, attributes) == fault


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
    document = Document.parse(form.html)
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
        assert outcome(rebuild(form.spec), form.plan).success
    assert len(read) == 1


def test_pages_escape_whatever_they_show() -> None:
    evil = "<script>\"&'"
    field = Field(evil, "select", "n", "i", evil, options=(SIZE.options[0],), help=evil)
    for page in (
        form_page(form_of(field), hints=True),
        outcome_page(form_of(field), [evil], {evil: 0.5}),
        film_page(form_of(field), [Frame(evil, True, b"PNG")], {"success": 1.0}),
    ):
        assert "<script" not in page
        assert "&lt;script" in page


# ---------------------------------------------------------------------- the server's side


def test_the_server_checks_everything_again() -> None:
    form = form_of(ASKED, MAIL, DAYS, SIZE, RULES)
    right = [("q", "Ada"), ("e", "a@b.de"), ("m", "mon-sent"), ("s", "l-sent"), ("r", "on")]
    assert desk.complaints(form, right) == []

    def with_(name: str, *sent: str) -> list[str]:
        return desk.complaints(form, [entry for entry in right if entry[0] != name] + [(name, value) for value in sent])

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
    assert desk.decode(urllib.parse.urlencode(entries).encode()) == entries
    assert desk.decode(b"a=%ff%fe&b") == (("a", "\ufffd\ufffd"), ("b", ""))


# ---------------------------------------------------------------------- the reward


def prompt_of(form: Form) -> Prompt:
    return Prompt(form.prompt, {"form": form.spec, "plan": form.plan})


def score(form: Form, *plans: str, **options: Any) -> list[Any]:
    """Scores as the recipe's reward gives them, for a form that was made by hand too."""
    built = reward.build(reward.Settings(**options))
    return [built._score(form, plan) for plan in plans]


def test_the_reward_is_its_formula() -> None:
    form = form_of(TEXT, NEWS, RULES)
    full, no_box, blocked, broken, nothing, only = score(
        form,
        "fill town: Bonn\nuncheck news\ncheck rules\nsubmit",
        "fill town: Bonn\ncheck news\ncheck rules\nsubmit",
        "fill town: Bonn\nsubmit",
        "fill town: Bonn\nchk rules\ncheck rules\nsubmit\nsubmit",
        "",
        "submit",
    )
    assert full.value == 1
    assert full.parts == {
        "success": 1, "perfect": 1, "field_accuracy": 1, "executed": 1, "submitted": 1, "steps": 4, "broken": 0,
    }  # fmt: skip
    assert no_box.value == pytest.approx(0.4 + 0.4 * 2 / 3 + 0.2)
    assert (no_box.parts["success"], no_box.parts["perfect"]) == (1, 0)
    assert blocked.value == pytest.approx(0.2 * 1 / 2)
    assert blocked.parts["field_accuracy"] == 0, "nothing was submitted, so nothing was right"
    assert broken.value == pytest.approx(0.8 + 0.2 * 3 / 5)
    assert broken.parts["broken"] == pytest.approx(1 / 5)
    assert nothing.value == 0
    assert only.value == 0, "a page that was not sent is no step that executed"


def test_the_weights_are_settings() -> None:
    form = form_of(TEXT)
    (success,) = score(form, "fill town: Rome\nsubmit", success_weight=1, fields_weight=0, steps_weight=0)
    assert success.value == 1
    (fields,) = score(form, "fill town: Rome\nsubmit", success_weight=0, fields_weight=2, steps_weight=0, text="exact")
    assert fields.value == 0
    with pytest.raises(ValueError, match="all 0"):
        reward.Settings(success_weight=0, fields_weight=0, steps_weight=0)


@pytest.mark.parametrize(
    ("field", "sent", "right"),
    [
        (TEXT, ["Bonn"], 1.0),
        (TEXT, [" bonn "], 1.0),
        (TEXT, ["Born"], 0.75),
        (TEXT, [], 0.0),
        (ABOUT, ["one\r\ntwo"], 1.0),
        (NUMBER, ["42.0"], 1.0),
        (NUMBER, ["43"], 0.0),
        (NUMBER, [""], 0.0),
        (DAY, ["2026-05-18"], 0.0),
        (MAIL, ["A@b.de"], 0.0),
        (SIZE, ["l-sent"], 1.0),
        (SIZE, ["L"], 0.0),
        (DAYS, ["mon-sent", "wed-sent"], 1.0),
        (DAYS, ["mon-sent", "tue-sent"], 1 / 3),
        (DAYS, [], 0.0),
        (NEWS, [], 1.0),
        (NEWS, ["on"], 0.0),
        (RULES, ["on"], 1.0),
        (RULES, [], 0.0),
    ],
)
def test_how_right_a_field_is(field: Field, sent: list[str], right: float) -> None:
    entries = tuple((field.name, value) for value in sent)
    assert field_accuracy(form_of(field), entries) == pytest.approx(right)


def test_text_may_have_to_be_exact() -> None:
    assert [field_accuracy(ONE, (("t", text),), "exact") for text in ("Bonn", " Bonn\r\n", "bonn", "Born")] == [
        1,
        1,
        0,
        0,
    ]


def test_the_reward_reads_the_column_and_scores_a_group() -> None:
    form = make("museum tour", 3, SMALL)
    scores = reward.build(reward.Settings())(prompt_of(form), [Output(form.plan), Output("nonsense")])
    assert [s.value for s in scores] == [1, 0]
    (none,) = reward.build(reward.Settings())(Prompt("p", {"form": None}), [Output("submit")])
    assert math.isnan(none.value)
    with pytest.raises(RelgradError, match="no column 'form'"):
        reward.build(reward.Settings())(Prompt("p", {"from": 1}), [Output("submit")])
    with pytest.raises(RelgradError, match="no form"):
        reward.build(reward.Settings())(Prompt("p", {"form": "library card"}), [Output("submit")])


class Fails:
    """An executor whose browser fails on plans that hold `bad`."""

    def __init__(self) -> None:
        self.ran: list[Plan] = []

    def run(self, form: Form, plan: Plan) -> Outcome:
        self.ran.append(plan)
        if any("bad" in step.line for step in plan.steps):
            raise Unscored("the browser failed twice: gone")
        return InProcess().run(form, plan)


def test_what_the_browser_could_not_do_is_unscored_and_not_0() -> None:
    form = make("museum tour", 3, SMALL)
    one = reward.FormReward(Fails(), reward.Settings())
    scores = one(prompt_of(form), [Output(form.plan), Output("fill bad: x"), Output("fil: x")])
    assert [s.value for s in scores[::2]] == [1, 0]
    assert math.isnan(scores[1].value)
    assert scores[1].why == "the browser failed twice: gone"


def test_equal_plans_are_executed_once_and_failures_are_tried_again() -> None:
    form, fails = make("museum tour", 3, SMALL), Fails()
    one = reward.FormReward(reward.Remembering(fails), reward.Settings())
    one(prompt_of(form), [Output(form.plan)] * 3)
    one(prompt_of(rebuild(form.spec)), [Output(form.plan)])
    assert len(fails.ran) == 1
    one(prompt_of(make("museum tour", 4, SMALL)), [Output(form.plan)])
    assert len(fails.ran) == 2, "another form"
    one(prompt_of(form), [Output("fill bad: x")] * 2)
    assert len(fails.ran) == 4


# ---------------------------------------------------------------------- a browser that is not there


def test_without_playwright_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(RelgradError, match=r"pip install 'relgrad\[browser\]'"):
        browser.Browser()


def test_without_a_browser_the_line_to_install_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(RelgradError, match="playwright install chromium"):
        reward.build(reward.Settings(executor="browser", timeout=7.25))


def test_a_browser_that_was_named_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setenv(browser.VARIABLE, "/nowhere/chromium")
    with pytest.raises(RelgradError, match="RELGRAD_CHROMIUM='/nowhere/chromium' is no file"):
        browser.Browser()


def test_a_browser_that_does_not_start_leaves_plans_unscored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv(browser.VARIABLE, str(fake))
    one = browser.Browser()
    try:
        with pytest.raises(Unscored, match="the browser failed twice"):
            one.run(ONE, parse("submit"))
        rewards = RewardSet([NamedReward("forms", reward.FormReward(one, reward.Settings()))], timeout=60)
        (unscored,) = rewards._callers[0].bind(prompt_of(make("taxi ride", 0, SMALL)), [Output("submit")], 0)[0]()
        assert math.isnan(unscored.value)
        assert "failed twice" in unscored.why
    finally:
        one.close()


# ---------------------------------------------------------------------- the task


def test_columns_and_prompts() -> None:
    loaded = task.load(task.Settings(train_size=50, held_out_size=5), seed=0)
    assert (len(loaded.train), len(loaded.held_out)) == (50, 5)
    for prompt in [*loaded.train, *loaded.held_out]:
        form = rebuild(prompt.columns["form"])
        assert prompt.content == form.prompt
        assert prompt.columns["plan"] == form.plan
        assert prompt.columns["values"] == form.values
        assert prompt.columns["family"] == form.family
        json.dumps(dict(prompt.columns))
    assert loaded.train[-1] == loaded.train[49]
    with pytest.raises(IndexError):
        loaded.train[50]
    assert loaded.ask("town=Bonn") == f"town=Bonn\n{END}"
    assert loaded.ask(f"town=Bonn\n{END}") == f"town=Bonn\n{END}"


@pytest.mark.parametrize("held_out", ["validation", "test"])
@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_nothing_to_be_entered_into_a_held_out_form_was_trained_on(held_out: Any, grammar: Grammar) -> None:
    settings = task.Settings(held_out=held_out, train_size=1500, held_out_size=150, grammar=grammar)
    loaded = task.load(settings, seed=5)
    trained = set().union(*(typed_values(prompt) for prompt in loaded.train))
    judged = set().union(*(typed_values(prompt) for prompt in loaded.held_out))
    assert len(trained) > 2000
    assert len(judged) > 200
    assert not trained & judged
    assert not {p.columns["family"] for p in loaded.train} & {p.columns["family"] for p in loaded.held_out}
    assert {p.columns["family"] for p in loaded.train} == set(families.names("train"))
    assert {p.columns["family"] for p in loaded.held_out} == set(families.names(held_out))
    assert not {p.text for p in loaded.train} & {p.text for p in loaded.held_out}


def test_seeds_change_what_is_trained_on_and_not_what_is_judged_by() -> None:
    one, other = (task.load(task.Settings(held_out_size=20), seed) for seed in (0, 1))
    assert [p.text for p in one.held_out] == [p.text for p in other.held_out]
    assert [one.train[i].text for i in range(9)] != [other.train[i].text for i in range(9)]
    again = task.load(task.Settings(held_out_size=0), 0)
    assert [one.train[i] for i in range(9)] == [again.train[i] for i in range(9)]
    judged = {split: task.load(task.Settings(held_out=split), 0).held_out[0].text for split in ("validation", "test")}
    assert judged["validation"] != judged["test"]


def test_families_to_train_on_can_be_chosen_but_not_held_out_ones() -> None:
    loaded = task.load(task.Settings(families=("taxi ride", "library card")), 0)
    assert {loaded.train[i].columns["family"] for i in range(30)} == {"taxi ride", "library card"}
    with pytest.raises(RelgradError, match="'food order' is held out for ever; to train on there are job application"):
        task.load(task.Settings(families=("food order",)), 0)
    with pytest.raises(RelgradError, match="no family 'taxi'"):
        task.load(task.Settings(families=("taxi",)), 0)


def test_an_autoregressive_policy_trains_on_it(tmp_path: Path) -> None:
    """Supervised plans, then GRPO on what the executor says of its own, with a monitor of success."""
    recipe = tmp_path / "forms.yaml"
    recipe.write_text(
        "policy: {kind: autoregressive, model: 'tiny:64x2', max_completion_length: 70}\n"
        "task: {kind: forms, held_out_size: 4, grammar: {min_fields: 1, max_fields: 1, fits: 80, types: [text, checkbox]}}\n"
        "rewards:\n"
        "  - {kind: forms}\n"
        "  - {kind: forms, name: success, weight: 0, success_weight: 1, fields_weight: 0, steps_weight: 0}\n"
        f"out: {tmp_path / 'runs'}\n"
        "evaluation: {num_prompts: 4, num_generations: 2}\n"
        "stages:\n"
        "  - {stage: sft, sft: {steps: 150, batch_size: 16, learning_rate: 5e-3, completion_column: plan}}\n"
        "  - {stage: grpo, grpo: {steps: 2, num_prompts: 4, num_generations: 8, learning_rate: 1e-4}}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    stages = tmp_path / "runs" / "forms"
    losses = [json.loads(line)["loss"] for line in (stages / "1-sft" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]
    sample = json.loads(next((stages / "2-grpo" / "samples").iterdir()).read_text().splitlines()[0])
    assert {"forms", "success", "forms/field_accuracy", "forms/executed"} <= sample["parts"].keys()
    for line in (stages / "2-grpo" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["parity/max_abs"] < 1e-4
        assert 0 < record["rewards/forms/mean"] <= 1, "after 150 steps some lines of a plan execute"


# ---------------------------------------------------------------------- relgrad forms


@pytest.fixture
def served() -> Iterator[int]:
    with server(0, SMALL) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


def fetch(url: str, entries: list[tuple[str, str]] | None = None) -> str:
    body = urllib.parse.urlencode(entries).encode() if entries is not None else None
    with urllib.request.urlopen(url, body, timeout=300) as answer:
        assert "script" not in answer.headers["Content-Security-Policy"]
        return answer.read().decode()


def test_forms_are_served_to_people(served: int) -> None:
    index = fetch(address(served))
    for name in EVERY:
        assert f'href="/form/{urllib.parse.quote(name)}/0"' in index
    form = make("food order", 12, SMALL)
    url = address(served, "food order", 12)
    shown = fetch(url)
    assert Document.parse(shown).labels.keys() == {field.label for field in form.fields}
    assert "fill " in shown, "the reference plan stands beside it"
    sent = outcome(form, form.plan).submitted
    assert sent is not None
    success = fetch(url, list(sent))
    assert 'data-outcome="success"' in success
    assert success.count("100 %") == len(form.fields)
    assert 'data-outcome="error"' in fetch(url, [])


@pytest.mark.parametrize(
    "path", ["form/food/3", "form/food%20order/x", "form/food%20order/-1", "../../etc/passwd", "x"]
)
def test_what_is_not_there_is_not_found(served: int, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        fetch(address(served) + path)
    assert error.value.code == 404


def test_too_much_is_refused(served: int) -> None:
    request = urllib.request.Request(address(served, "food order", 1), b"", {"Content-Length": "9" * 12}, method="POST")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=300)
    assert error.value.code == 400


def test_a_port_that_is_taken(served: int) -> None:
    with pytest.raises(RelgradError, match=rf"cannot listen on port {served}.*--port"):
        server(served, SMALL)


def test_the_command_serves_until_it_is_interrupted() -> None:
    import signal

    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from relgrad.cli import main; main()"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            command,
            "forms",
            "serve",
            "--family",
            "taxi ride",
            "--seed",
            "4",
            "--port",
            "0",
            "max_fields=3",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        addresses = [process.stdout.readline().split(": ")[1].strip() for _ in range(2)]
        assert addresses[1].endswith("/form/taxi%20ride/4")
        assert "<form" in fetch(addresses[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["watch"], "give a file with a plan, or --reference"),
        (["watch", "plan.txt", "--reference"], "one of the two"),
        (["watch", "nowhere.txt"], "cannot read the plan 'nowhere.txt'"),
        (["watch", "--reference", "max_field=3"], "Did you mean 'max_fields'?"),
        (["watch", "--reference", "fits=1"], "greater than or equal to 64"),
        (["watch", "--reference", "--family", "libary card"], "did you mean 'library card'?"),
        (["serve", "--family", "libary card"], "did you mean 'library card'?"),
        (["serve", "max_fields"], "write KEY=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["forms", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert why in result.stderr
