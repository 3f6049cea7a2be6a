"""The real browser: it agrees with the in-process executor on everything, and its failures are values, not zeros."""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner

from form_cases import (
    ABOUT,
    ASKED,
    CASES,
    CODE,
    DAY,
    DAYS,
    GRAMMARS,
    HOSTILE,
    MAIL,
    MUST_SIZE,
    NEWS,
    NUMBER,
    ONE,
    PAY,
    RULES,
    SIZE,
    TEXT,
    TICKED,
    Case,
    filled,
    form_of,
    mistaken,
)
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt
from relgrad.environments.forms.executing.browser import Browser, find_chromium
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.executing.pictures import watch
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.making.generate import make
from relgrad.environments.forms.outcome import Outcome, Unscored
from relgrad.environments.forms.plan import parse
from relgrad.rewards import forms as reward
from relgrad.rewards._deadline import Hung

PATIENT = 300.0
"""Seconds; machines that run tests may be busy with other things."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        find_chromium()
    except RelgradError as error:
        pytest.skip(str(error))
    one = Browser(PATIENT)
    yield one
    one.close()


def kill_browsers(kind: str = "") -> int:
    """Kill the browsers that this process started, or their processes of a kind; how many that were."""
    ours = psutil.Process(os.getpid()).children(recursive=True)
    chromium = [p for p in ours if "chrom" in p.name().lower() and kind in " ".join(p.cmdline())]
    for process in chromium:
        process.kill()
    psutil.wait_procs(chromium, timeout=20)
    return len(chromium)


# ---------------------------------------------------------------------- agreement


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_browser_knows_what_comes_of_it(browser: Browser, case: Case) -> None:
    """The cases of test_forms.py, with the same outcomes."""
    found = browser.run(case.form, parse(case.plan))
    assert "".join("ny"[executed] for executed in found.executed) == case.executed
    assert found.submitted == case.sent
    assert found.success == case.success


@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(given=filled())
def test_both_executors_agree_on_any_plan_for_any_form(browser: Browser, given: tuple[Form, str]) -> None:
    form, text = given
    plan = parse(text)
    assert browser.run(form, plan) == InProcess().run(form, plan)


@pytest.mark.parametrize(
    ("name", "plans"),
    [
        *((name, 2) for name in sorted(families.families())[::6]),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in families.families()),
    ],
)
def test_both_executors_agree_on_plans_with_mistakes(browser: Browser, name: str, plans: int) -> None:
    for number, (form, text) in enumerate(mistaken(name, plans)):
        plan = parse(text)
        found = browser.run(form, plan)
        assert found == InProcess().run(form, plan), text
        assert found.success or number, "the first plan has no mistake"


FIELDS = (TEXT, MAIL, NUMBER, DAY, SIZE, MUST_SIZE, PAY, DAYS, NEWS, TICKED, RULES, ABOUT, CODE, ASKED)


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.kind} {field.label}")
def test_both_executors_agree_on_every_odd_value_in_every_kind_of_field(browser: Browser, field: Field) -> None:
    """Entered into a field as it comes, and, without its constraints, into one that holds something."""
    right = [step for step in wording.plan_of([field]).split("\n") if step != "submit"]
    verb, other = ("choose", "fill") if field.options else ("fill", "choose")
    texts = [*HOSTILE, *(option.text for option in field.options), *(option.value for option in field.options)]
    lines = [f"{verb} {field.label}: {text}" for text in texts]
    lines += [
        f"{other} {field.label}: {texts[-1]}",
        *(f"{verb} {field.label}" for verb in ("check", "uncheck", "click")),
    ]
    plain = replace(field, required=False, attributes={})
    for form, before in ((form_of(field), []), (form_of(plain, reset=True), right)):
        plans = ["\n".join([*before, line, "submit"]) for line in lines]
        parsed = [parse(plan) for plan in plans]
        outcomes = zip(plans, browser.run_all(form, parsed), InProcess().run_all(form, parsed), strict=True)
        assert [plan for plan, found, expected in outcomes if found != expected] == []


@pytest.mark.slow
@settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(given=filled())
def test_both_executors_agree_on_hundreds_of_plans(browser: Browser, given: tuple[Form, str]) -> None:
    form, text = given
    plan = parse(text)
    assert browser.run(form, plan) == InProcess().run(form, plan)


def test_many_plans_at_once_get_their_own_outcomes(browser: Browser) -> None:
    plans = [parse(f"fill town: {number}\nsubmit") for number in range(7)] + [parse("submi"), parse("submit")] * 2
    assert browser.run_all(ONE, plans) == InProcess().run_all(ONE, plans)


def test_it_serves_callers_on_any_thread(browser: Browser) -> None:
    found: dict[int, Outcome] = {}

    def fill(number: int) -> None:
        found[number] = browser.run(ONE, parse(f"fill town: {number}\nsubmit"))

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: outcome.submitted for number, outcome in found.items()} == {n: (("t", str(n)),) for n in range(4)}


# ---------------------------------------------------------------------- failures


def browsers() -> set[int]:
    """Process ids of the browsers that this process started, without their own children."""
    found = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile; a killed one may be a zombie for a while
            if "chrom" in process.name().lower() and "--type=" not in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


class Killing:
    """An `after` that ends the browser in the middle of a plan, so many times."""

    def __init__(self, times: int, kind: str = "") -> None:
        self.times, self.kind = times, kind

    async def __call__(self, page: Any, number: int, executed: bool | None) -> None:
        if executed and self.times:
            self.times -= 1
            assert kill_browsers(self.kind)


@pytest.mark.slow
def test_a_browser_that_dies_is_started_again_once(browser: Browser) -> None:
    plan = parse("fill town: Bonn\nsubmit")
    expected = InProcess().run(ONE, plan)
    assert browser.run(ONE, plan) == expected
    assert kill_browsers()
    assert browser.run(ONE, plan) == expected, "dead before the plan"
    assert browser.run(ONE, plan, Killing(1)) == expected, "dead inside of the plan"
    with pytest.raises(Unscored, match="the browser failed twice"):
        browser.run(ONE, plan, Killing(2))
    assert browser.run(ONE, plan) == expected, "and the next plan gets a new one"


def test_a_page_that_crashes_is_opened_again(browser: Browser) -> None:
    plan = parse("fill town: Bonn\nsubmit")
    killing = Killing(1, "--type=renderer")
    assert browser.run(ONE, plan, killing) == InProcess().run(ONE, plan)
    assert not killing.times


def test_a_plan_that_takes_too_long_is_unscored_and_costs_a_page_and_no_browser(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relgrad.environments.forms.executing.browser.FAREWELL", PATIENT)
    assert browser.run(ONE, parse("submit")).success
    before = browsers()
    browser.timeout = 0.001
    try:
        with pytest.raises(Unscored, match=r"the plan took longer than 0\.001 s in the browser"):
            browser.run(ONE, parse("submit"))
    finally:
        browser.timeout = PATIENT
    assert browser.run(ONE, parse("submit")).success
    assert browsers() == before


def test_the_reward_is_the_same_in_the_browser_and_unscored_where_it_fails(browser: Browser) -> None:
    form = make("boat licence", 1, GRAMMARS[0])
    prompt = Prompt(wording.prompt(form), {"form": form.spec})
    plans = [
        Output(wording.plan(form)),
        Output(wording.plan(form).replace("fill", "fil")),
        Output("nonsense"),
        Output(""),
    ]
    real = reward.FormReward(browser, reward.Settings())
    assert real(prompt, plans) == reward.build(reward.Settings())(prompt, plans)
    browser.timeout = 0.001
    try:
        (score,) = real(prompt, [Output(wording.plan(form))])
    finally:
        browser.timeout = PATIENT
    assert math.isnan(score.value)
    assert "took longer than 0.001 s" in score.why


def test_two_rewards_share_a_browser(browser: Browser) -> None:
    one = reward.build(reward.Settings(executor="browser"))
    other = reward.build(reward.Settings(executor="browser", success_weight=1, fields_weight=0, steps_weight=0))
    assert one.executor is other.executor


# ---------------------------------------------------------------------- watching


def test_a_plan_can_be_watched(browser: Browser) -> None:
    plan = parse("fill town: Bonn\nfil x\nsubmit\nsubmit")
    outcome, frames = watch(browser, ONE, plan)
    assert outcome == InProcess().run(ONE, plan)
    assert [(frame.line, frame.executed) for frame in frames] == [
        ("", None), ("fill town: Bonn", True), ("fil x", False), ("submit", True), ("submit", False),
    ]  # fmt: skip
    assert all(frame.picture.startswith(b"\x89PNG") for frame in frames)
    assert len({frame.picture for frame in frames[:2]}) == 2, "the typed text is seen"
    assert frames[3].picture != frames[2].picture, "the page after the form"


def test_the_command_keeps_the_pictures(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.txt").write_text("fill town: Bonn\nfil x\nsubmit\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["forms", "watch", "plan.txt", "--seed", "1"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "done   fill town: Bonn" in result.stdout
    assert "not    fil x   (unknown verb 'fil'" in result.stdout
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"https?://", page), "one file that needs nothing else"


def test_plans_end_when_the_wait_for_them_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group whose time is over leaves no plans behind that the next one would wait for."""
    monkeypatch.setattr("relgrad.environments.forms.executing.browser.find_chromium", lambda: None)
    begun, ended = threading.Event(), threading.Event()

    async def run(self: Browser, *plan: Any) -> Outcome:
        begun.set()
        try:
            return await asyncio.sleep(600)
        finally:
            ended.set()

    def interrupted(future: object) -> None:
        assert begun.wait(60)
        raise Hung

    monkeypatch.setattr(Browser, "_run", run)
    monkeypatch.setattr("relgrad.environments.forms.executing.own_thread._answer", interrupted)
    waiting = Browser()
    with pytest.raises(Hung):
        waiting.run_all(form_of(MAIL), [parse("submit")] * 2)
    assert ended.wait(60)
    waiting.close()
