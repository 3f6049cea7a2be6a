"""Forms as a task: the prompts, what a plan is worth, and what happens where the browser is not there."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from form_cases import ABOUT, DAY, DAYS, GRAMMARS, MAIL, NEWS, NUMBER, ONE, RULES, SIZE, TEXT, form_of
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt
from relgrad.environments.forms.executing import browser
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.form import Field, Form
from relgrad.environments.forms.making.generate import make, rebuild
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.making.wording import END
from relgrad.environments.forms.outcome import Outcome, Unscored, field_accuracy
from relgrad.environments.forms.plan import Plan, parse
from relgrad.rewards import forms as reward
from relgrad.tasks import forms as task

SMALL = GRAMMARS[0]


def typed_values(prompt: Prompt) -> set[str]:
    """Everything to be entered, ticks apart."""
    found: set[str] = set()
    for value in prompt.columns["values"].values():
        if not isinstance(value, bool):
            found |= {value} if isinstance(value, str) else set(value)
    return found


# ---------------------------------------------------------------------- the reward


def prompt_of(form: Form) -> Prompt:
    return Prompt(wording.prompt(form), {"form": form.spec, "plan": wording.plan(form)})


def score(form: Form, *plans: str, **options: Any) -> list[Any]:
    """Scores as the recipe's reward gives them, for a form that was made by hand too."""
    return reward.build(reward.Settings(**options)).scores(form, plans)


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
        "success": 1, "perfect": 1, "field_accuracy": 1, "executed": 1, "submitted": 1, "steps": 4, "broken": 0, "nonzero": 1,
    }  # fmt: skip
    assert no_box.value == pytest.approx(0.4 + 0.4 * 2 / 3 + 0.2)
    assert (no_box.parts["success"], no_box.parts["perfect"]) == (1, 0)
    assert blocked.value == pytest.approx(0.2 * 1 / 2)
    assert blocked.parts["field_accuracy"] == 0, "nothing was submitted, so nothing was right"
    assert broken.value == pytest.approx(0.8 + 0.2 * 3 / 5)
    assert broken.parts["broken"] == pytest.approx(1 / 5)
    assert (nothing.value, nothing.parts["nonzero"]) == (0, 0)
    assert only.value == 0, "a page that was not sent is no step that executed"


def test_the_weights_are_settings() -> None:
    form = form_of(TEXT)
    (success,) = score(form, "fill town: Rome\nsubmit", success_weight=1, fields_weight=0, steps_weight=0)
    assert success.value == 1
    (fields,) = score(form, "fill town: Rome\nsubmit", success_weight=0, fields_weight=2, steps_weight=0, text="exact")
    assert fields.value == 0
    (exact,) = score(form, "fill town: Rome\nsubmit", part="perfect")
    assert (exact.value, exact.parts["nonzero"]) == (0, 1), "one part alone; what is not zero is still the sum"
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
    scores = reward.build(reward.Settings())(prompt_of(form), [Output(wording.plan(form)), Output("nonsense")])
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

    def run_all(self, form: Form, plans: Sequence[Plan]) -> list[Outcome | Unscored]:
        self.ran += plans
        return [self._run(form, plan) for plan in plans]

    def _run(self, form: Form, plan: Plan) -> Outcome | Unscored:
        if any("bad" in step.line for step in plan.steps):
            return Unscored("the browser failed twice: gone")
        return InProcess().run(form, plan)


def test_what_the_browser_could_not_do_is_unscored_and_not_0() -> None:
    form = make("museum tour", 3, SMALL)
    one = reward.FormReward(Fails(), reward.Settings())
    scores = one(prompt_of(form), [Output(wording.plan(form)), Output("fill bad: x"), Output("fil: x")])
    assert [s.value for s in scores[::2]] == [1, 0]
    assert math.isnan(scores[1].value)
    assert scores[1].why == "the browser failed twice: gone"


def test_equal_plans_are_executed_once_and_failures_are_tried_again() -> None:
    form, fails = make("museum tour", 3, SMALL), Fails()
    one = reward.FormReward(reward.Remembering(fails), reward.Settings())
    one(prompt_of(form), [Output(wording.plan(form))] * 3)
    one(prompt_of(rebuild(form.spec)), [Output(wording.plan(form))])
    assert len(fails.ran) == 1
    one(prompt_of(make("museum tour", 4, SMALL)), [Output(wording.plan(form))])
    assert len(fails.ran) == 2, "another form"
    scores = one(prompt_of(form), [Output("fill bad: x"), Output(wording.plan(form)), Output("fill bad: x")])
    assert [math.isnan(s.value) for s in scores] == [True, False, True]
    assert len(fails.ran) == 3, "once in this group"
    one(prompt_of(form), [Output("fill bad: x")])
    assert len(fails.ran) == 4, "and again in the next"


def test_only_the_last_outcomes_are_remembered() -> None:
    fails = Fails()
    two = reward.Remembering(fails, size=2)
    plans = [parse(f"fill town: {number}\nsubmit") for number in range(3)]
    expected = InProcess().run_all(ONE, plans)
    assert two.run_all(ONE, plans) == expected
    assert two.run_all(ONE, plans[1:]) == expected[1:]
    assert len(fails.ran) == 3
    assert two.run_all(ONE, plans[:1]) == expected[:1]
    assert len(fails.ran) == 4, "the first one had been forgotten"


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
        (unscored,) = reward.FormReward(one, reward.Settings())(
            prompt_of(make("taxi ride", 0, SMALL)), [Output("submit")]
        )
        assert math.isnan(unscored.value)
        assert "failed twice" in unscored.why
    finally:
        one.close()


# ---------------------------------------------------------------------- the task


def test_columns_and_prompts() -> None:
    loaded = task.load(task.Settings(train_size=50, held_out_size=5), seed=0)
    assert (len(loaded.train), len(loaded.validation)) == (50, 5)
    for prompt in [*loaded.train, *loaded.validation]:
        form = rebuild(prompt.columns["form"])
        assert prompt.content == wording.prompt(form)
        assert prompt.columns["plan"] == wording.plan(form)
        assert prompt.columns["values"] == form.values
        assert prompt.columns["family"] == form.family
        json.dumps(dict(prompt.columns))
    assert loaded.train[-1] == loaded.train[49]
    with pytest.raises(IndexError):
        loaded.train[50]
    assert loaded.ask("town=Bonn") == f"town=Bonn\n{END}"
    assert loaded.ask(f"town=Bonn\n{END}") == f"town=Bonn\n{END}"
    wide = task.load(task.Settings(held_out_size=0, grammar=Grammar(width=40)), seed=0)
    assert wide.ask("town=Bonn") == "town=Bonn\n".ljust(38, "\n") + END
    assert len(wide.ask("town=Bonn")) == 40


@pytest.mark.parametrize("held_out", ["validation", "test"])
@pytest.mark.parametrize("grammar", GRAMMARS, ids=["small", "large", "long"])
def test_nothing_to_be_entered_into_a_held_out_form_was_trained_on(held_out: Any, grammar: Grammar) -> None:
    settings = task.Settings(held_out=held_out, train_size=1500, held_out_size=150, grammar=grammar)
    loaded = task.load(settings, seed=5)
    trained = set().union(*(typed_values(prompt) for prompt in loaded.train))
    judged = set().union(*(typed_values(prompt) for prompt in loaded.validation))
    assert len(trained) > 2000
    assert len(judged) > 200
    assert not trained & judged
    assert not {p.columns["family"] for p in loaded.train} & {p.columns["family"] for p in loaded.validation}
    assert {p.columns["family"] for p in loaded.train} == set(families.names("train"))
    assert {p.columns["family"] for p in loaded.validation} == set(families.names(held_out))
    assert not {p.text for p in loaded.train} & {p.text for p in loaded.validation}


def test_seeds_change_what_is_trained_on_and_not_what_is_judged_by() -> None:
    one, other = (task.load(task.Settings(held_out_size=20), seed) for seed in (0, 1))
    assert [p.text for p in one.validation] == [p.text for p in other.validation]
    assert [one.train[i].text for i in range(9)] != [other.train[i].text for i in range(9)]
    again = task.load(task.Settings(held_out_size=0), 0)
    assert [one.train[i] for i in range(9)] == [again.train[i] for i in range(9)]
    judged = {split: task.load(task.Settings(held_out=split), 0).validation[0].text for split in ("validation", "test")}
    assert judged["validation"] != judged["test"]


def test_families_to_train_on_can_be_chosen_but_not_held_out_ones() -> None:
    loaded = task.load(task.Settings(families=("taxi ride", "library card")), 0)
    assert {loaded.train[i].columns["family"] for i in range(30)} == {"taxi ride", "library card"}
    with pytest.raises(RelgradError, match="'food order' is held out for ever; to train on there are job application"):
        task.load(task.Settings(families=("food order",)), 0)
    with pytest.raises(RelgradError, match="no family 'taxi'"):
        task.load(task.Settings(families=("taxi",)), 0)


@pytest.mark.slow
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
