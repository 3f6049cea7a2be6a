"""Plans on hand-made pages in Chromium: what is found, entered, sent and taken, what is refused, and what survives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from commands import lines, relgrad, relgrad_process
from relgrad.core.errors import RelgradError
from relgrad.environments.forms.executing.browser import find_chromium
from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.sentences import parse, written
from relgrad.environments.sites import agreement
from relgrad.environments.sites.accuracy import accuracies
from relgrad.environments.sites.cases import Case
from relgrad.environments.sites.chromium import Chromium
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.serving import Server
from relgrad.environments.sites.site import Site
from relgrad.environments.sites.spec import SiteSettings
from relgrad.environments.sites.telling import reference, steps
from relgrad.environments.sites.verdict import Rule
from relgrad.runs.build import find_recipe
from site_pages import KIND_SENT, KIND_VALUES, SENDING, STILL_PLAN, served

PATIENT = 300.0
"""Seconds; machines that run tests may be busy with other things."""
SEND = "fill town: Bonn\ncheck fine\nsubmit"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    try:
        find_chromium()
    except RelgradError as error:
        pytest.skip(str(error))
    one = Chromium(PATIENT)
    yield one
    one.close()


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[str, Any]]:
    with served() as server:
        yield server


@pytest.fixture
def run(chromium: Chromium, pages: tuple[str, Any]) -> Any:
    """Executes a plan on a page; its outcome or why there is none."""

    def run(path: str, plan: str, **settings: Any) -> Any:
        site = SiteSettings(url=pages[0], **settings)
        return Site(site, Server(site), chromium).run_all(path, [parse(plan)])[0]

    return run


def children(kind: str) -> list[psutil.Process]:
    """Processes of Chromium that this process started."""
    return [p for p in psutil.Process(os.getpid()).children(recursive=True) if kind in p.name().lower()]


# ---------------------------------------------------------------------- finding and entering


@pytest.mark.parametrize("language", ["sentences", pytest.param("lines", marks=pytest.mark.slow)])
def test_every_kind_of_control_takes_its_value_by_every_kind_of_name(run: Any, language: Any) -> None:
    case = Case("/kinds", KIND_VALUES, order=tuple(KIND_VALUES))
    plan = reference(case, "http://127.0.0.1/kinds", language)
    if language == "sentences":  # which say no to nothing
        plan = written(steps(case), "http://127.0.0.1/kinds")
    outcome = run("/kinds", plan)
    assert outcome.misses == {}
    assert outcome.submitted == KIND_SENT
    assert outcome.success
    assert all(outcome.executed)
    shares = accuracies(KIND_VALUES, outcome.submitted, outcome.controls)
    del shares["Biography"]  # which its page sends under a hidden name
    assert {label: share for label, share in shares.items() if share < 1} == {}
    told = "\n".join(outcome.notes)
    for note in (
        "'$1,200.50' entered as '1200.50'",
        "'March 5th, 1990' entered as '1990-03-05'",
        "'36' chosen as '36 months', by its value",
        "'membership_type', by its name",
        "Photo: 'None' entered as 'no file'",
    ):
        assert note in told


TRAPPED = {
    "fill Street: Here": "2 controls are called 'Street'",
    "fill Billing Street: Mill Lane": "",
    "fill Delivery street: Oak Lane": "",
    "fill Zip: 123": "",
    "fill Rank: high": "'Rank' is disabled",
    "fill Account: 5": "'Account' is read-only",
    "fill Code: abc": "",
    "fill Short: abcdef": "",
    "fill notes: none": "",
    "fill weight: 70 kg": "",
    "fill weight: 70 or 80": "'70 or 80' holds 2 numbers",
    "fill Delivery note: x": "no control is called 'Delivery note'",
    "fill Organization: Red Cross": "",
    "check Fancy box": "",
    "fill Special wish: too early": "no control is called 'Special wish'",
    "choose Kind: special": "",
    "fill Special wish: soon": "",
    "choose Taken: Gone": "'Taken' has no option 'Gone': there are 'Free'",
    "check Weight": "'Yes' holds no number",
    "dance": "unknown verb",
    "fill City: Bonn": "",
    "click Nowhere": "no control is called 'Nowhere'",
    "submit": "",
}


def test_traps_are_found_or_refused_and_never_guessed(run: Any) -> None:
    outcome = run("/traps", "\n".join(TRAPPED))
    for number, (line, why) in enumerate(TRAPPED.items()):
        assert (number in outcome.misses) == bool(why), (line, outcome.misses.get(number))
        assert why in outcome.misses.get(number, "")
    assert outcome.submitted == (
        ("b_street", "Mill Lane"), ("d_street", "Oak Lane"), ("trap", ""), ("city", "Bonn"), ("zip1", ""), ("zip2", "123"),
        ("account", "77"), ("code", "ABC"), ("short", "abc"), ("notes", "none"), ("weight", "70"), ("n1", ""), ("n2", ""),
        ("org", "Red Cross"), ("fancy", "on"), ("kind", "x"), ("wish", "soon"), ("taken", "Free"),
    )  # fmt: skip
    assert any("the page made 'ABC' of 'abc'" in note for note in outcome.notes)
    assert any("(fuzzy)" in note and "Organization" in note for note in outcome.notes)


# ---------------------------------------------------------------------- sending, and what the server says of it


@pytest.mark.parametrize("way", SENDING)
def test_what_was_sent_is_read_from_the_request(run: Any, pages: tuple[str, Any], way: str) -> None:
    pages[1].got.clear()
    outcome = run(f"/sending/{way}", SEND)
    assert outcome.misses == {}
    assert outcome.success, outcome.why
    assert [value for _, value in outcome.submitted] in (["Bonn", "on"], ["Bonn", "true"])
    right = accuracies({"Town": "Bonn", "Fine": True}, outcome.submitted, outcome.controls)
    assert right == {"Town": 1, "Fine": 1}
    wrong = accuracies({"Town": "Bern", "Fine": False}, outcome.submitted, outcome.controls)
    assert wrong["Fine"] == 0
    assert 0 < wrong["Town"] < 1
    assert len(pages[1].got) == {"get": 0, "beacon": 2}.get(way, 1)


@pytest.mark.parametrize(
    ("path", "why"),
    {
        "/again": "with errors: Town: no such town", "/kept": "with what was sent still in it", "/cleared": "",
        "/json-no": "ok: false", "/json-errors": "errors", "/json-yes": "", "/broken": "answered 500", "/moved": "",
    }.items(),
)  # fmt: skip
def test_success_is_the_servers_answer(run: Any, path: str, why: str) -> None:
    outcome = run(f"/to{path}", SEND)
    assert outcome.submitted is not None
    assert outcome.success == (not why)
    assert why in outcome.why


def test_a_rule_of_the_site_takes_the_defaults_place(run: Any) -> None:
    element = {"selector": "#t", "text": "THANK YOU"}
    assert run("/to/moved", SEND, success=Rule(path="/thanks", **element)).success
    assert run("/to/moved", SEND, success=Rule(path="/there")).why == "the page is /thanks, not /there"
    assert run("/to/broken", SEND, success=Rule(status=(500,))).success
    assert "'message' of the answer is" in run("/to/json-yes", SEND, success=Rule(answer={"message": "no"})).why


def test_what_the_browser_refuses_is_not_sent(run: Any) -> None:
    outcome = run("/required", "submit\nfill town: Bonn\nclick Send")
    assert outcome.misses == {0: "the browser finds invalid: 'Town'"}
    assert outcome.submitted == (("town", "Bonn"),)


@pytest.mark.slow
def test_a_page_that_never_rests_is_filled_in_all_the_same(run: Any) -> None:
    outcome = run("/lively", SEND)
    assert outcome.success
    assert outcome.submitted == (("town", "Bonn"), ("ok", "on"))


def test_pages_that_lead_to_pages_and_dialogs(run: Any) -> None:
    outcome = run("/twice", "fill Town: one\nsubmit\nfill town: two\nsubmit")
    assert outcome.submitted == (("first", "one"), ("town", "two"))
    outcome = run("/dialog", SEND)
    assert outcome.success
    assert outcome.submitted == (("town", "Bonn"), ("ok", "on"))
    assert outcome.incidents["dialog"] == 1


# ---------------------------------------------------------------------- safety, and what cannot be scored


def test_only_the_site_is_reached(run: Any) -> None:
    outcome = run("/greedy", SEND)
    assert outcome.success, "the page goes on without them"
    refused = {what for what in outcome.incidents if what.startswith("refused ")}
    assert {
        "refused cdn.example.org",
        "refused fonts.example.org",
        "refused 127.0.0.1:8999",
        "refused 127.0.0.1:8998",
    } <= refused
    assert outcome.incidents["popup"] >= 1


def test_a_host_is_reached_where_the_recipe_names_it(run: Any) -> None:
    outcome = run("/greedy", SEND, allow_host=("fonts.example.org", "cdn.example.org"))
    assert not {"refused cdn.example.org", "refused fonts.example.org"} & set(outcome.incidents)


@pytest.mark.slow
def test_every_plan_gets_an_empty_profile(run: Any, pages: tuple[str, Any]) -> None:
    for _ in range(2):
        pages[1].cookies.clear()
        assert run("/visits", "submit").submitted == (("n", ""), ("town", ""))
        assert pages[1].cookies[0] == ""


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/captcha", "has a captcha"),
        ("/nowhere", "answered 404"),
        pytest.param("/none", "has nothing to fill in", marks=pytest.mark.slow),
    ],
)
def test_a_page_that_allows_nothing_is_unscored(run: Any, path: str, why: str) -> None:
    outcome = run(path, SEND)
    assert isinstance(outcome, Unscored)
    assert why in str(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dialogs", "/silent", "/hang"])
def test_a_page_that_does_not_end_costs_one_time_out(run: Any, chromium: Chromium, path: str) -> None:
    chromium.timeout = 6.0
    try:
        outcome = run(path, SEND)
    finally:
        chromium.timeout = PATIENT
    assert isinstance(outcome, Unscored)
    assert "took longer than 6 s" in str(outcome)
    assert run("/sending/get", SEND).success, "and the next plan is executed"


def test_a_killed_browser_is_started_again_and_nothing_is_lost(chromium: Chromium, pages: tuple[str, Any]) -> None:
    settings = SiteSettings(url=pages[0], stateless=True)
    site = Site(settings, Server(settings), chromium)
    killed = []

    async def kill(page: Any, number: int, executed: bool | None) -> None:
        if executed and not killed:
            killed.extend(children("chrom"))
            for process in killed:
                process.kill()

    outcome = site.watch("/sending/get", parse(SEND), kill)
    assert killed
    assert isinstance(outcome, SiteOutcome)
    assert outcome.success


def test_outcomes_are_remembered_only_where_the_server_has_no_memory(
    chromium: Chromium, pages: tuple[str, Any]
) -> None:
    posts = {}
    for key, more in {"neither": {}, "stateless": {"stateless": True}, "reset": {"reset": "/reset"}}.items():
        settings = SiteSettings(url=pages[0], **more)
        site = Site(settings, Server(settings), chromium)
        pages[1].got.clear()
        outcomes = site.run_all("/sending/urlencoded", [parse(SEND)] * 2)
        assert all(isinstance(one, SiteOutcome) and one.success for one in outcomes)
        posts[key] = [path for path, _ in pages[1].got]
    assert posts == {"neither": ["/echo"] * 2, "stateless": ["/echo"], "reset": ["/reset", "/echo"]}


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_still_page_is_executed_in_process_once_both_executors_agree(
    chromium: Chromium, pages: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(agreement, "MUTATED", count)
    settings = SiteSettings(url=pages[0], stateless=True)
    site = Site(settings, Server(settings), chromium)
    (first,) = site.run_all("/still", [parse(STILL_PLAN)], STILL_PLAN)
    assert site._still["/still"] is not None
    assert dict(first.submitted) == {
        "name": "Ada", "mail": "ada@post.org", "pages": "3", "day": "2024-03-05", "size": "l", "toppings": "o", "pay": "b",
        "cv": "cv.txt", "notes": "a\nb", "action": "go", "b": "1",
    }  # fmt: skip
    monkeypatch.setattr(chromium, "run_all", None)  # what follows needs no browser
    wrong, short = site.run_all(
        "/still", [parse("fill Name: A\nsubmit"), parse("fill Nam: Ada\nfill Size: s\nsubmit")], STILL_PLAN
    )
    assert (wrong.submitted, wrong.executed) == (None, (True, False))
    assert short.success
    assert dict(short.submitted)["news"] == "on"


def test_pages_that_move_or_on_which_they_disagree_are_for_the_browser(
    chromium: Chromium, pages: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "MUTATED", 0)
    settings = SiteSettings(url=pages[0], stateless=True)
    site = Site(settings, Server(settings), chromium)
    assert site.run_all("/sending/json", [parse(SEND)], SEND)[0].success
    assert site._still == {"/sending/json": None}
    monkeypatch.setattr(agreement, "execute", lambda page, where, plan: SiteOutcome(False, None, (False,)))
    assert site.run_all("/sending/urlencoded", [parse(SEND)], SEND)[0].success
    assert site._still["/sending/urlencoded"] is None


@pytest.mark.slow
def test_five_hundred_plans_leave_nothing_behind_and_two_kills_lose_nothing(pages: tuple[str, Any]) -> None:
    settings = SiteSettings(url=pages[0], stateless=True, side_by_side=2)
    chromium = Chromium(PATIENT, 2)
    site = Site(settings, Server(settings), chromium)
    files = None
    for turn in range(50):
        if turn in (15, 35):
            for process in children("chrom"):
                process.kill()
        plans = [parse(f"fill town: {turn}-{number}\nsubmit") for number in range(10)]
        outcomes = site.run_all("/sending/get", plans)
        assert [one.submitted for one in outcomes if isinstance(one, SiteOutcome)] == [
            (("town", f"{turn}-{number}"),) for number in range(10)
        ]
        files = files or psutil.Process().num_fds()
    assert psutil.Process().num_fds() <= files + 10
    chromium.close()
    _, alive = psutil.wait_procs(children("chrom"), timeout=20)
    assert alive == []


# ---------------------------------------------------------------------- the site that comes with relgrad


def example() -> tuple[Any, list[Any]]:
    from relgrad.runs.build import find_recipe
    from relgrad.runs.recipe import load_recipe
    from relgrad.tasks.site import Settings, load

    task = load_recipe(find_recipe("site-quick")).stages[0].task
    settings = Settings.model_validate(task.options)
    loaded = load(settings, 0)
    return settings, [*loaded.train, *loaded.validation, *(loaded.own_test or ())]


def all_right(chromium: Chromium, each: int, pages: tuple[str, ...] = ()) -> None:
    """Every reference plan of the pages (all where none are named) earns 1, and sending the page as it comes at most 0.2."""
    from relgrad.environments.sites.serving import server_of
    from relgrad.rewards.site import Settings, figures, worth

    settings, prompts = example()
    server = server_of(settings.key)
    site = Site(settings, server, chromium)
    by_page: dict[str, list[Any]] = {}
    for prompt in prompts:
        by_page.setdefault(prompt.columns["page"], []).append(prompt)
    assert len(by_page) >= 12
    for page, some in by_page.items():
        if pages and page not in pages:
            continue
        outcomes = site.run_all(page, [parse(prompt.columns["plan"]) for prompt in some[:each]] + [parse("submit")])
        *scores, floor = (
            worth(figures(prompt.columns["values"], parse(plan), outcome, "exact", None), Settings())
            for prompt, plan, outcome in zip(
                [*some[:each], some[0]], [*(p.columns["plan"] for p in some[:each]), "submit"], outcomes, strict=True
            )
        )
        assert scores == [1.0] * len(scores), (page, outcomes)
        assert floor <= 0.2, page
    server.close()
    server_of.cache_clear()


def test_the_reference_plan_earns_all_and_an_empty_one_little(chromium: Chromium) -> None:
    all_right(chromium, 1, ("/hotel-booking", "/insurance-claim"))


@pytest.mark.slow
def test_the_reference_plan_of_every_case_earns_all(chromium: Chromium) -> None:
    all_right(chromium, 1000)


# ---------------------------------------------------------------------- commands and runs


CHECKED = """<!doctype html><form method=post action=/sent><label>Town<input name=town required></label>
<label>Size<select name=size><option>Small</option><option>Large</option></select></label><button>Send</button></form>"""


def test_the_check_says_what_a_page_allows_and_why_not_all(chromium: Chromium, tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(CHECKED)
    (tmp_path / "bad.html").write_text(CHECKED)
    good = [{"page": "/good.html", "values": {"Town": town, "Size": "Large"}} for town in ("Bonn", "Bern")]
    bad = [
        {"page": page, "values": {"Town": "Bonn", "Size": "Huge", "Pet": "cat"}} for page in ("/bad.html", "/gone.html")
    ]
    (tmp_path / "cases.json").write_text(json.dumps(good + bad))
    task = {
        "kind": "site",
        "folder": str(tmp_path),
        "cases": str(tmp_path / "cases.json"),
        "validation_fraction": 0,
        "test_fraction": 0,
    }
    policy = {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 8}
    recipe = {
        "name": "own",
        "policy": policy,
        "task": task,
        "rewards": [{"kind": "site", "timeout": PATIENT}],
        "grpo": {"steps": 1},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    printed = relgrad("forms", "check", tmp_path / "own.yaml", "--out", tmp_path / "out")
    assert "'Size' has no option 'Huge': there are 'Small', 'Large'" in printed
    assert "/gone.html: the page /gone.html answered 404" in printed
    pages = {page["page"]: page for page in json.loads((tmp_path / "out" / "check.json").read_text())}
    well, ill, gone = (pages[f"/{name}.html"] for name in ("good", "bad", "gone"))
    assert (well["mean"], well["lowest"], well["as_it_comes"], well["reasons"]) == (1.0, 1.0, 0.0, {})
    assert 0.6 < well["other_case"] < 1
    assert ill["mean"] == pytest.approx(0.4 + 0.4 / 3 + 0.2 * 2 / 4)
    assert ill["found"]["Pet"] == "no control is called 'Pet'"
    assert (gone["mean"], gone["checked"]) == (None, 0)
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http://" not in page.replace("http-equiv", "")


@pytest.mark.slow
def test_pages_of_several_sites_are_checked_by_their_sites_names(chromium: Chromium, tmp_path: Path) -> None:
    sites = {}
    for name, size in (("shop", "Large"), ("clinic", "Huge")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "order.html").write_text(CHECKED)
        case = {"page": "/order.html", "values": {"Town": "Bonn", "Size": size}}
        (tmp_path / name / "cases.json").write_text(json.dumps([case]))
        sites[name] = {"folder": str(tmp_path / name), "cases": str(tmp_path / name / "cases.json")}
    task = {"kind": "sites", "sites": sites, "test_sites": ["clinic"], "validation_fraction": 0}
    recipe = {"name": "own", "policy": {"kind": "autoregressive", "model": "tiny:32x1"}, "task": task}
    rewards = [{"kind": "site", "timeout": PATIENT}]
    (tmp_path / "own.yaml").write_text(json.dumps({**recipe, "rewards": rewards, "grpo": {"steps": 1}}))
    relgrad("forms", "check", tmp_path / "own.yaml", "--out", tmp_path / "out")
    shop, clinic = json.loads((tmp_path / "out" / "check.json").read_text())
    assert (shop["page"], shop["part"], shop["mean"]) == ("shop/order.html", "train", 1.0)
    assert (clinic["page"], clinic["part"]) == ("clinic/order.html", "test")
    assert clinic["mean"] < 1


@pytest.mark.slow
def test_flow_trains_on_a_site(chromium: Chromium, tmp_path: Path) -> None:
    network = {"hidden": 16, "blocks": 1, "heads": 2, "cond_dim": 8, "length": 1024}
    policy = {"kind": "flow", "network": network, "max_completion_length": 400, "sampling_steps": 2}
    own = {"name": "own", "policy": policy, "sft": {"steps": 1, "batch_size": 2, "completion_column": "plan"}}
    recipe = yaml.safe_load(find_recipe("site-quick").read_text()) | own
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    less = ("sft.steps=2", "grpo.steps=1", "grpo.num_prompts=1", "grpo.num_generations=2", "evaluation.num_prompts=1")
    relgrad_process("run", tmp_path / "own.yaml", f"out={tmp_path}", *less)
    (step,) = lines(tmp_path / "own" / "2-grpo" / "metrics.jsonl")
    assert 0 <= step["reward"] <= 1


@pytest.mark.slow
def test_a_recipe_trains_on_a_site_and_leaves_no_server(chromium: Chromium, tmp_path: Path) -> None:
    less = ("sft.steps=2", "grpo.steps=1", "grpo.num_prompts=1", "grpo.num_generations=2", "evaluation.num_prompts=1")
    relgrad_process(
        "run", "site-quick", f"out={tmp_path}", "policy.model=tiny:32x1", "policy.max_completion_length=24", *less
    )
    (step,) = lines(tmp_path / "site-quick" / "2-grpo" / "metrics.jsonl")
    assert 0 <= step["reward"] <= 1
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
