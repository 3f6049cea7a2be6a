"""Sites without a browser: plans in sentences, labels and controls, values, what was sent, cases, servers, and what is refused."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from commands import lines as json_lines
from commands import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.settings import checked
from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.sentences import lines, parse, written
from relgrad.environments.sites.accuracy import accuracies
from relgrad.environments.sites.cases import Case, read_cases
from relgrad.environments.sites.controls import Control, Offer, Option
from relgrad.environments.sites.entering import Refused, entry
from relgrad.environments.sites.finding import NotFound, find
from relgrad.environments.sites.serving import Server, server_of
from relgrad.environments.sites.spec import SiteSettings
from relgrad.environments.sites.submission import entries, submitting
from relgrad.environments.sites.telling import reference
from relgrad.environments.sites.verdict import Rule, answer_json, complaint, final
from relgrad.environments.sites.wire import Exchange
from relgrad.runs.named_files import named_files
from relgrad.runs.recipe import load_recipe
from relgrad.tasks import sites as several
from relgrad.tasks._site_cases import all_cases
from relgrad.tasks.site import Settings, load, part_of, parted

# ---------------------------------------------------------------------- plans in sentences

SAID = """Step 1: Navigate to http://127.0.0.1:5050/legal/nda
Step 2: Click on the 'Author's name' input field
Step 3: Type 'it's 'Ada'' into the 'Author's name' field
Step 4: Type 'one
two' into the 'Remarks' field
Step 5: Click on the 'I agree' checkbox to enable it
Step 6: Click on the 'News' checkbox to disable it
Step 7: Select 'Red' from the 'Colour' field
Step 8: Click the 'Next' button
Step 9: Click the Submit button"""


def test_sentences_are_read() -> None:
    found = [(step.verb, step.label, step.value) for step in parse(SAID).steps]
    assert found == [
        ("open", "", "http://127.0.0.1:5050/legal/nda"), ("click", "Author's name", ""), ("fill", "Author's name", "it's 'Ada'"),
        ("fill", "Remarks", "one\ntwo"), ("check", "I agree", ""), ("uncheck", "News", ""), ("choose", "Colour", "Red"),
        ("click", "Next", ""), ("submit", "", ""),
    ]  # fmt: skip


def test_what_is_written_is_read_again_in_both_languages() -> None:
    plan = [step for step in parse(SAID).steps if step.verb not in ("open",) and step.label != "Author's name"]
    again = parse(written(plan, "http://x/"))
    assert [
        (s.verb, s.label, s.value)
        for s in again.steps
        if s.verb not in ("open",) and (s.verb, s.label) != ("click", "Remarks")
    ] == [(s.verb, s.label, s.value) for s in plan]
    assert [(s.verb, s.label, s.value) for s in parse(lines(plan)).steps] == [(s.verb, s.label, s.value) for s in plan]


def test_any_text_is_a_plan_and_both_languages_mix() -> None:
    plan = parse("Step 1: Dance\nfill a: b\nclick THE submit BUTTON.\nStep 4: Type 'x' into\nStep 5: submit\n\ud800")
    assert [step.verb for step in plan.steps] == [None, "fill", "submit", None, "submit", None]
    assert set(plan.errors) == {0, 3, 5}


# ---------------------------------------------------------------------- labels


def control(number: int, label: str = "", **more: Any) -> Control:
    return Control(number, more.pop("kind", "text"), (("label", label),) if label else (), **more)


@pytest.mark.parametrize(
    ("label", "step"),
    {"Loan Amount ($)": "exact", "loan  amount": "plain", "membership type": "name", "Loan Amuont": "fuzzy"}.items(),
)
def test_a_label_is_found_at_the_first_step_that_answers(label: str, step: str) -> None:
    pool = [control(1, "Loan Amount ($)"), control(2, "Other", name="membershipType[]"), control(3, "Third")]
    found = find(label, pool)
    assert (found.control.number, found.step) == ({"name": 2}.get(step, 1), step)


def test_the_fuzzy_step_has_a_bound_and_never_guesses() -> None:
    pool = [control(1, "Delivery note one"), control(2, "Delivery note two"), control(3, "Town")]
    with pytest.raises(NotFound, match="no control is called 'Delivery note'"):
        find("Delivery note", pool)
    with pytest.raises(NotFound, match="no control is called 'Villages'"):
        find("Villages", pool)
    with pytest.raises(NotFound, match="2 controls are called 'Name'"):
        find("Name", [control(1, "Name"), control(2, "Name")])
    assert find("Name", [control(1, "Name", form=0), control(2, "Name", form=1)], form=1).control.number == 2
    assert find("Billing: Name", [control(1, "Name", section=("Billing",)), control(2, "Name")]).control.number == 1
    assert find("Name", [control(1, "Name", state="hidden"), control(2, "Name")]).control.number == 2


# ---------------------------------------------------------------------- values

OPTIONS = (
    Option(0, "-", "", position=0),
    Option(1, "36 months", "a", position=1),
    Option(2, "Doctorate", "phd", position=2),
)


@pytest.mark.parametrize(
    ("kind", "value", "taken"),
    [
        ("number", "$1,200.50 a month", "1200.50"), ("number", "36 months", "36"), ("number", "12 or 13", None),
        ("number", "x", None),
        ("date", "2024/3/5", "2024-03-05"), ("date", "March 5th, 2024", "2024-03-05"), ("date", "5 Mar 2024", "2024-03-05"),
        ("date", "5.3.2024", "2024-03-05"), ("date", "3/4/2024", None), ("date", "3/14/2024", "2024-03-14"),
        ("date", "30 February 2024", None), ("time", "2:30 PM", "14:30"), ("time", "noon", None),
        ("datetime-local", "March 5, 2024 at 7:08 am", "2024-03-05T07:08"), ("datetime-local", "2024-03-05", None),
        ("month", "03/2024", "2024-03"), ("week", "2024-W6", "2024-W06"), ("color", "#abc", "#aabbcc"), ("color", "sky", None),
        ("select-one", "36 Months", "a"), ("select-one", "36", "a"), ("select-one", "PhD", "phd"), ("select-one", "12", None),
        ("checkbox", "Yes", True), ("checkbox", "no", False), ("checkbox", "perhaps", None), ("file", "C:\\me\\cv.pdf", "cv.pdf"),
        ("file", "N/A", ""),
    ],
)  # fmt: skip
def test_values_are_converted_or_refused_and_it_is_said(kind: str, value: str, taken: object) -> None:
    one = Control(1, kind, (("label", "It"),), options=OPTIONS if kind == "select-one" else ())
    if taken is None:
        with pytest.raises(Refused):
            entry(one, value)
        return
    made = entry(one, value)
    assert taken in (made.text, made.tick, made.file, made.option and made.option.value)
    assert made.note


def test_an_ambiguous_date_is_read_in_the_order_that_the_recipe_says() -> None:
    one = Control(1, "date", (("label", "It"),))
    assert [entry(one, "3/4/2024", order).text for order in ("mdy", "dmy")] == ["2024-03-04", "2024-04-03"]


# ---------------------------------------------------------------------- what was sent


def exchange(kind: str, body: str, method: str = "POST", **more: Any) -> Exchange:
    return Exchange(
        method, more.pop("path", "/go"), {"content-type": kind, **more.pop("headers", {})}, body.encode(), **more
    )


PARTS = (
    '--b\r\nContent-Disposition: form-data; name="a[]"\r\n\r\nüx\r\n'
    '--b\r\nContent-Disposition: form-data; name="cv"; filename="c%22v.pdf"\r\n\r\nx\r\n--b--\r\n'
)


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (
            exchange("application/x-www-form-urlencoded", "a=1&a=2&b=%C3%BC%0D%0Ax&c="),
            [("a", "1"), ("a", "2"), ("b", "ü\nx"), ("c", "")],
        ),
        (exchange("multipart/form-data; boundary=b", PARTS), [("a[]", "üx"), ("cv", 'c"v.pdf')]),
        (
            exchange("application/json", '{"a": 1.5, "b": {"c": [true, "x"]}, "d": null}'),
            [("a", "1.5"), ("b.c", "true"), ("b.c", "x")],
        ),
        (exchange("text/plain", '{"a": "1"}'), [("a", "1")]),
        (exchange("text/plain", "hello"), []),
        (exchange("", "", "GET", path="/go?a=1&b="), [("a", "1"), ("b", "")]),
    ],
)
def test_what_a_request_carries(request_: Exchange, sent: list[tuple[str, str]]) -> None:
    assert list(entries(request_)) == sent


def test_the_submitting_request_carries_most_of_the_page() -> None:
    navigating = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    beacon = exchange("text/plain", "seen", headers={"sec-fetch-mode": "no-cors", "sec-fetch-dest": "empty"})
    check = exchange("application/json", '{"town": "x"}')
    form = exchange("application/json", '{"data": {"town": "x", "zip": "1"}}')
    search = exchange("", "", "GET", path="/?town=x", headers=navigating)
    names = frozenset({"town", "zip"})
    assert submitting([check, form, beacon], names) is form
    assert submitting([beacon], names) is None
    assert submitting([search], names) is search
    assert submitting([], names) is None


def test_a_redirect_ends_where_it_leads_and_json_may_come_in_chunks() -> None:
    moved = exchange("", "", status=303, answer_headers={"location": "/thanks"})
    last = exchange("", "", "GET", path="/thanks", status=200)
    assert final([moved, exchange("", "", "GET", path="/icon"), last], moved) is last
    chunked = {"content-type": "application/json", "transfer-encoding": "chunked"}
    assert answer_json(
        exchange("", "", answer_headers=chunked, answer=b'5\r\n{"ok"\r\n7;x\r\n: false\r\n1\r\n}\r\n0\r\n\r\n')
    ) == {"ok": False}
    assert complaint(Rule(status=(404,)), moved, [], Offer(), Offer(), None) == "the server answered 303"


DAYS = (Option(1, "Mon", "m"), Option(2, "Tue", "t"))


def test_field_accuracy_compares_what_was_sent_with_the_case() -> None:
    pool = [
        control(1, "Town", name="town"), control(2, "Days", name="d[]", kind="checkboxes", options=DAYS),
        control(3, "News", name="news", kind="checkbox"), control(4, "Term", name="term", kind="select-one", options=OPTIONS),
        control(5, "Courses", name="courses"), control(6, "Pay", name="pay", kind="number"),
        control(7, "CV", name="cv", kind="file"), control(8, "Terms", name="terms", kind="checkbox"),
    ]  # fmt: skip
    values = {
        "Town": "Bonn", "Days": ("Mon", "Tue"), "News": False, "Term": "36", "Courses": ("A", "B"), "Pay": "1,000", "CV": "None",
        "Terms": "Yes", "Nowhere": "x",
    }  # fmt: skip
    sent = [
        ("town", "Bonn"),
        ("d[]", "m"),
        ("d[]", "t"),
        ("term", "a"),
        ("courses", "A, B"),
        ("pay", "1e3"),
        ("cv", ""),
        ("terms", "on"),
    ]
    right = accuracies(values, sent, pool)
    assert right == {**dict.fromkeys(values, 1.0), "Nowhere": 0.0}
    wrong = accuracies(
        values, [("d", "m"), ("news", "on"), ("term", "phd"), ("courses", "B, C"), ("pay", "1"), ("cv", "x.pdf")], pool
    )
    assert wrong == {
        "Town": 0,
        "Days": 0.5,
        "News": 0,
        "Term": 0,
        "Courses": 1 / 3,
        "Pay": 0,
        "CV": 0,
        "Terms": 0,
        "Nowhere": 0,
    }
    assert set(accuracies(values, None, pool).values()) == {0.0}
    assert accuracies({"News": False, "Town": "Bonn"}, [("news", "false"), ("Town", "bonn")], pool[2:3]) == {
        "News": 1,
        "Town": 1,
    }


# ---------------------------------------------------------------------- cases and tasks


def written_cases(folder: Path) -> None:
    (folder / "nda.json").write_text(
        json.dumps([{"Name": "Ada", "Age": 3.0, "Ok": True, "Skip": None}, {"Name": "Ben"}])
    )
    rows = [
        {
            "page": "/a",
            "values": {"Sub": {"Town": "Bonn"}, "Days": ["Mon", 2], "Next": {"click": True}, "No": False},
            "hint": "h",
        }
    ]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seed = {
        "condition": "Go there",
        "target": ["Step 1: Click the Submit button"],
        "url": "http://h:1/b?x=1",
        "ground_truth_fields": {"A": "1"},
    }
    (folder / "seed.jsonl").write_text(json.dumps(seed))


def test_cases_come_in_three_layouts(tmp_path: Path) -> None:
    written_cases(tmp_path)
    flat, other, own, seed = read_cases([str(tmp_path / "*.json*")], {"nda.json": "/legal/nda"})
    assert (flat.page, dict(flat.values), other.values["Name"]) == (
        "/legal/nda",
        {"Name": "Ada", "Age": "3", "Ok": True},
        "Ben",
    )
    assert own.values == {"Sub Town": "Bonn", "Days": ("Mon", "2"), "No": False}
    assert (own.clicks, own.order) == (("Next",), ("Sub Town", "Days", "Next", "No"))
    assert (seed.page, seed.columns["condition"]) == ("/b?x=1", "Go there")
    assert (
        reference(own, "", "lines")
        == "fill Sub Town: Bonn\nchoose Days: Mon\nchoose Days: 2\nclick Next\nuncheck No\nsubmit"
    )
    assert reference(own, "http://h/a", "sentences").splitlines()[-2:] == [
        "Step 6: Click the 'Next' button",
        "Step 7: Click the Submit button",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    {
        '{"a": 1}': "a file of cases is a list of objects", "[1]": "a list with something else in it", "[]": "holds no case",
        "[": "cannot be read", '[{"x": 1}]': "a case has `page` and `values`", '[{"page": "a", "values": {}}]': "is no path",
        '[{"page": "/a", "values": 1}]': "values are an object",
        '[{"page": "/a", "values": {"b": [[1]]}}]': "a list of something else",
    }.items(),
)  # fmt: skip
def test_a_file_that_holds_no_cases_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(RelgradError, match=why):
        read_cases([str(tmp_path / "c.json")], {})


def test_a_map_and_its_files_must_fit(tmp_path: Path) -> None:
    written_cases(tmp_path)
    with pytest.raises(RelgradError, match="name no file"):
        read_cases([str(tmp_path / "none*.json")], {})
    with pytest.raises(RelgradError, match="has no path in `pages`"):
        read_cases([str(tmp_path / "nda.json")], {"other.json": "/x"})
    with pytest.raises(RelgradError, match=r"`pages` names gone\.json"):
        read_cases([str(tmp_path / "nda.json")], {"nda.json": "/x", "gone.json": "/y"})


def settings(folder: Path, **more: Any) -> Settings:
    rows = [
        {"page": f"/{page}.html", "values": {"Town": f"T{page}{n}", "Ok": bool(n % 2)}}
        for page in range(20)
        for n in range(4)
    ]
    (folder / "cases.json").write_text(json.dumps(rows))
    for page in range(20):
        (folder / f"{page}.html").write_text(
            "<form method=post><label>Town<input name=t></label><button>Go</button></form>"
        )
    return Settings.model_validate({"folder": str(folder), "cases": str(folder / "cases.json"), **more})


def test_pages_are_held_out_for_ever_and_cases_say_that_their_pages_are_not(tmp_path: Path) -> None:
    task = load(settings(tmp_path), 0)
    parts = {"train": task.train, "validation": task.validation, "test": task.own_test or ()}
    pages = {part: {prompt.family for prompt in prompts} for part, prompts in parts.items()}
    assert all(pages.values())
    assert len(set.union(*pages.values())) == sum(map(len, pages.values())) == 20
    assert pages == {
        part: {p.family for p in prompts}
        for part, prompts in zip(
            parts, (load(settings(tmp_path), 9).train, task.validation, task.own_test), strict=True
        )
    }
    tested = task.own_test or ()
    first = tested[: len(pages["test"])]
    assert {prompt.family for prompt in first} == pages["test"], "a few test prompts are of all pages"
    assert len({prompt.id for prompt in tested}) == len(tested)
    by_case = load(settings(tmp_path, split="case"), 0)
    assert {p.family for p in by_case.test} & {p.family for p in by_case.train}
    assert "pages that were trained on" in by_case.facts["Held out"]
    named = settings(tmp_path, test_pages=["/3.html"], validation_pages=["/4.html"])
    assert Counter(part_of(case, named) for case in all_cases(named)) == {"train": 72, "test": 4, "validation": 4}
    with pytest.raises(RelgradError, match=r"no case is of the held-out page '/99\.html'"):
        load(settings(tmp_path, test_pages=["/99.html"]), 0)
    with pytest.raises(RelgradError, match="the hash puts none into"):
        load(settings(tmp_path, test_fraction=0.001), 0)
    assert not parted(settings(tmp_path, test_fraction=0.001))["test"], "a check of pages holds nothing out"


def three_sites(folder: Path, **more: Any) -> Any:
    sites = {}
    for name in ("shop", "clinic", "club"):
        (folder / name).mkdir()
        sites[name] = settings(folder / name).model_dump(include={"folder", "cases"}, mode="json")
    return several.Settings.model_validate({"sites": sites, **more})


def test_whole_sites_are_held_out_and_prompts_say_of_which_site_they_are(tmp_path: Path) -> None:
    task = several.load(three_sites(tmp_path, validation_sites=["club"], test_sites=["clinic"]), 0)
    for name, prompts in (("shop", task.train), ("club", task.validation), ("clinic", task.own_test or ())):
        assert len(prompts) == 80
        assert {prompt.family.partition("/")[0] for prompt in prompts} == {name}
        assert {prompt.columns["site"]["folder"] for prompt in prompts} == {str(tmp_path / name)}
    assert task.facts["Sites"] == "train: shop (80 cases); validation: club (80 cases); test: clinic (80 cases)"
    assert len({prompt.id for prompt in (*task.train, *task.validation, *task.test)}) == 240


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"test_sites": ["bank"]}, r"no site is called 'bank'; sites are shop, clinic, club"),
        ({"test_sites": ["shop"], "validation_sites": ["shop"]}, "both to validate and to test by"),
        ({"test_sites": ["shop", "club"], "validation_sites": ["clinic"]}, "none is in train; name fewer sites"),
        ({"test_fraction": 1e-6}, "none is in (validation|test); name some as"),
    ],
)
def test_sites_that_cannot_be_split_are_refused(tmp_path: Path, more: dict[str, Any], why: str) -> None:
    with pytest.raises((RelgradError, ValidationError), match=why):
        several.load(three_sites(tmp_path, **more), 0)


def test_files_of_cases_are_files_of_the_run(tmp_path: Path) -> None:
    settings(tmp_path)
    site = {
        "folder": str(tmp_path),
        "cases": [str(tmp_path / "*.json"), "{relgrad}/environments/sites/example/cases.jsonl"],
    }
    for task, where in (
        ({"kind": "site", **site}, "task"),
        ({"kind": "sites", "sites": {"a": site, "b": site}}, "task.sites.a"),
    ):
        recipe = {"policy": {"kind": "autoregressive", "model": "tiny"}, "task": task, "rewards": [{"kind": "site"}]}
        (tmp_path / "own.yaml").write_text(json.dumps({"name": "own", **recipe, "grpo": {"steps": 1}}))
        (stage,) = load_recipe(tmp_path / "own.yaml").stages
        named = {each.setting: each.path for each in named_files(stage) if each.setting.startswith(where)}
        assert named == {f"{where}.folder": tmp_path, f"{where}.cases": tmp_path / "*.json"}


def test_prompts_are_told_in_several_wordings_or_read(tmp_path: Path) -> None:
    prompt = load(settings(tmp_path), 0).train[0]
    town = prompt.columns["values"]["Town"]
    assert prompt.text.startswith(f"Go to http://127.0.0.1{prompt.family} and fill out the")
    assert f"  - Town: {town}\n" in prompt.text
    assert prompt.columns["plan"] == f"fill Town: {town}\nuncheck Ok\nsubmit"
    assert (
        load(settings(tmp_path, wording="short"), 0).train[0].text
        == f"{prompt.family[1:-5]}\nTown: {town}\nOk: no\n#\n"
    )
    assert load(settings(tmp_path, template="{page}|{fields}"), 0).train[0].text.startswith(prompt.family + "|")
    with pytest.raises(RelgradError, match=r"no \{town\}"):
        load(settings(tmp_path, template="{town}"), 0)
    with pytest.raises(RelgradError, match="has no column 'ask'"):
        load(settings(tmp_path, prompt_column="ask"), 0)


# ---------------------------------------------------------------------- sites and servers


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "either `folder`"), ({"folder": "x", "url": "http://127.0.0.1"}, "either `folder`"),
        ({"folder": "x", "serve": "y"}, "needs `url`"),
        ({"url": "https://127.0.0.1"}, "https would hide"), ({"url": "http://example.org"}, "name it in `allow_host`"),
        ({"url": "http://127.0.0.1:{port}"}, "needs `serve`"),
        ({"url": "http://127.0.0.1", "side_by_side": 2}, "without memory"),
        ({"url": "http://127.0.0.1", "success": {"text": "Thanks"}}, "name the element"),
    ],
)  # fmt: skip
def test_a_site_that_cannot_be_is_refused_where_it_is_read(data: dict[str, Any], why: str) -> None:
    with pytest.raises(RelgradError, match=why):
        checked(data, SiteSettings, "task")


def serve(code: str, **more: Any) -> Server:
    command = f"{{python}} -c {json.dumps(code)} {{port}}"
    return Server(SiteSettings.model_validate({"serve": command, "url": "http://127.0.0.1:{port}/", **more}))


RUNNING = "import sys, http.server as s; s.HTTPServer(('127.0.0.1', int(sys.argv[1])), s.BaseHTTPRequestHandler).serve_forever()"


def test_a_server_that_does_not_start_is_an_error_with_its_last_words() -> None:
    with pytest.raises(RelgradError, match=r"ended with exit code 3 before it answered .*no database"):
        serve("import sys; print('no database', file=sys.stderr); sys.exit(3)").require()
    with pytest.raises(RelgradError, match=r"does not answer at .* after 0\.2 s"):
        serve("import time; time.sleep(60)", serve_timeout=0.2).require()
    with pytest.raises(RelgradError, match="ended with exit code"):
        Server(SiteSettings(serve="/no/such/command", url="http://127.0.0.1:{port}")).require()
    with pytest.raises(RelgradError, match="nothing answers at"):
        Server(SiteSettings(url="http://127.0.0.1:9")).require()
    with pytest.raises(RelgradError, match="no folder"):
        Server(SiteSettings(folder=Path("/no/such/folder"))).require()


def test_a_server_is_started_again_when_it_died_and_ends_with_the_run() -> None:
    server = serve(RUNNING)
    server.require()
    first = server._process
    assert first is not None
    leader = psutil.Process(first.pid)
    family = [leader, *leader.children()]
    assert len(family) == 2, "the command and what watches over it"
    with pytest.raises(RelgradError, match="something already listens"):
        Server(SiteSettings(serve="x", url=server.origin)).require()
    family[1].kill()
    first.wait(60)
    server.ready()
    second = server._process
    assert second is not None
    assert second.pid != first.pid
    server.close()
    assert not psutil.pid_exists(second.pid)


def test_a_reset_that_fails_is_unscored() -> None:
    server = serve(RUNNING, reset="/nowhere")
    with pytest.raises(Unscored, match=r"reset '/nowhere' failed: HTTP Error 501"):
        server.ready()
    server.close()
    with pytest.raises(Unscored, match="reset"):
        Server(SiteSettings(url="http://127.0.0.1:9", reset=f"{sys.executable} -c 'raise SystemExit(2)'")).reset()
    Server(SiteSettings(url="http://127.0.0.1:9", reset="{python} -c pass")).reset()


# ---------------------------------------------------------------------- commands


def test_cases_are_exported_as_others_read_them_and_read_again(tmp_path: Path) -> None:
    printed = relgrad("forms", "export", "site-quick", "task.plans=sentences", "task.wording=long", "--out", tmp_path)
    assert "train.jsonl: 192" in printed
    assert "test.jsonl: 96" in printed
    row = json_lines(tmp_path / "test.jsonl")[24]
    assert row["condition"].startswith("Go to http://127.0.0.1/insurance-claim and fill out the insurance claim form")
    assert row["target"][0] == "Step 1: Navigate to http://127.0.0.1/insurance-claim"
    cases = read_cases([str(tmp_path / "test.jsonl")], {})
    original = list(
        read_cases([str(Path(sys.modules["relgrad"].__path__[0]) / "environments/sites/example/cases.jsonl")], {})
    )
    by_page = [case for case in original if case.page in {case.page for case in cases}]
    assert [(c.page, c.values, c.clicks) for c in cases] == [(c.page, c.values, c.clicks) for c in by_page]
    assert isinstance(cases[0], Case)


def test_a_recipe_without_a_site_is_refused() -> None:
    from typer.testing import CliRunner

    from relgrad.commands.cli import app

    result = CliRunner().invoke(app, ["forms", "check", "quick"])
    assert result.exit_code == 2
    assert "the task of 'quick' is digits" in result.output.replace("\n", " ")


@pytest.fixture(autouse=True, scope="module")
def _servers_end() -> Any:
    yield
    server_of.cache_clear()
