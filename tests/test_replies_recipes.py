"""The recipes of replies: the settings of the 8B, the same made small, the gate before a long run, and the pass judge they name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commands import lines, relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import GateFailed
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Output, Prompt
from relgrad.rewards import sensible_reply
from relgrad.rewards.sensible_reply import agreement as labels
from relgrad.rewards.sensible_reply.matter import matter_model
from relgrad.runs.build import find_recipe, resolve
from relgrad.runs.gate import require_passed
from relgrad.runs.recipe import load_recipe

POST = "The heating in our flat has been broken for 17 days and nobody calls back."
REWARD = (
    "from relgrad.core.settings import Strict\nfrom relgrad.core.types import Score\n\nclass Settings(Strict):\n    pass\n\n"
    "def build(settings):\n    def letters(prompt, outputs):\n"
    "        return [Score(sum(c.islower() for c in o.text) / 6) for o in outputs]\n    return letters\n"
)


def stages(name: str, *overrides: str) -> Any:
    return resolve(load_recipe(find_recipe(name), overrides)).stages


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Overrides that make a recipe of replies tiny: a character model of Qwen3's shape, and a cheap reward."""
    (tmp_path / "letters.py").write_text(REWARD)
    return [
        f"out={tmp_path}", "policy.model=tiny:32x1", "policy.max_completion_length=6", "task.size=60", "task.chat=false",
        'task.template="{tweet}"', "sft.steps=1", "sft.batch_size=2", "grpo.num_prompts=4", "grpo.num_generations=8",
        "evaluation.num_prompts=3", "evaluation.num_generations=4", "evaluation.rewards=[]", "stages.0.evaluation.suite=null",
        f"stages.1.rewards=[{{kind: {tmp_path}/letters.py}}]",
    ]  # fmt: skip


# ---------------------------------------------------------------------- recipes


def test_the_8b_has_the_settings_of_the_original() -> None:
    sft, grpo, poly, both = stages("replies-qwen3-8b")
    policy = grpo.policy.options
    assert (policy["model"], policy["quantize"], policy["chat_template_kwargs"]) == (
        "Qwen/Qwen3-8B",
        "4bit",
        {"enable_thinking": False},
    )
    assert (policy["lora"]["r"], policy["lora"]["alpha"], policy["lora"]["dropout"]) == (16, 16, 0.1)
    assert (policy["temperature"], policy["top_p"], policy["max_completion_length"]) == (0.8, 0.9, 100)
    assert (grpo.grpo.num_generations, grpo.grpo.beta, grpo.grpo.learning_rate, grpo.grpo.num_prompts) == (
        4,
        0.1,
        1e-5,
        16,
    )
    assert (sft.sft.learning_rate, sft.sft.batch_size, sft.sft.epochs) == (2e-4, 16, 2)
    assert (poly.polychromic.weight, poly.polychromic.num_generations) == (0.3, 3)
    assert [stage.start for stage in (sft, grpo, poly, both)] == [None, None, "start", "polychromic"]


def test_the_full_recipe_branches_as_its_table_needs() -> None:
    by_label = {stage.called: stage for stage in stages("replies")}
    assert list(by_label) == ["sft", "continued", "grpo", "polychromic", "grpo-polychromic"]
    assert [stage.start for stage in by_label.values()] == [None, "sft", "sft", "start", "polychromic"]
    assert by_label["polychromic"].sft == by_label["sft"].sft, "equal steps at lambda 0 and above"
    assert {stage.evaluation.suite.passing.kind for stage in by_label.values()} == {"sensible_reply"}


def test_the_8b_runs_made_small(small: list[str], tmp_path: Path) -> None:
    """All four stages on a tiny network of Qwen3's architecture, with the adapter on the layers that the recipe names."""
    changes = [
        *small, "policy.quantize=null", "policy.dtype=float32", "sft.epochs=null", "grpo.epochs=null", "grpo.steps=1",
        "sft.gradient_accumulation_steps=1", "evaluation.suite=null", "polychromic.distance=ngram", "polychromic.every=1",
        f"stages.3.rewards=[{{kind: {tmp_path}/letters.py}}, {{kind: diversity, weight: 0.3}}]",
    ]  # fmt: skip
    relgrad("run", "replies-qwen3-8b", *changes)
    folders = sorted((tmp_path / "replies-qwen3-8b").glob("*-*"))
    assert [folder.name for folder in folders] == ["1-sft", "2-grpo", "3-polychromic", "4-grpo-polychromic"]
    for folder in folders:
        assert len(lines(folder / "metrics.jsonl")) == 1
        (adapter,) = (folder / "checkpoints").glob("*/adapter_config.json")
        assert set(json.loads(adapter.read_text())["target_modules"]) >= {"q_proj", "down_proj"}
    assert "rewards/diversity/mean" in lines(folders[3] / "metrics.jsonl")[0]
    parity = [line["parity/max_abs"] for n in (1, 3) for line in lines(folders[n] / "metrics.jsonl")]
    assert max(parity) < 1e-4


# ---------------------------------------------------------------------- the gate


def test_the_gate_says_by_its_exit_code_whether_a_long_run_is_worth_it(small: list[str]) -> None:
    """The same run: its gain is above -1 and not above 1. What a gate asks for may change in a run that has ended."""
    arguments = ["run", "replies-quick", *small, "task.size=60", "grpo.steps=12", "grpo.learning_rate=0.03"]
    assert "done:" in relgrad(*arguments, "stages.1.evaluation.gate.min_gain=-1")
    result = CliRunner().invoke(app, [*arguments, "stages.1.evaluation.gate.min_gain=1"], env={"COLUMNS": "500"})
    assert result.exit_code == 3
    assert "2-grpo: the gate is not passed: the score gained +0." in result.output
    assert "more than 1 is asked for (min_gain)" in result.output


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([{"difference": 0.2, "difference_low": 0.1, "kl": 0.3}], None),
        ([{"difference": 0.0, "difference_low": -0.1, "kl": 0.3}], r"the score gained \+0, at least -0\.1 with"),
        ([{"difference": 0.2, "difference_low": -0.01, "kl": 0.3}], r"at least -0\.01 .*more than 0 is asked for"),
        ([{"difference": None, "difference_low": None, "kl": 0.3}], r"the score gained \+nan"),
        (
            [{"difference": 0.2, "difference_low": 0.1, "kl": 1.5}],
            r"is 1\.5 nats per decision, and at most 1 is asked for \(max_kl\)",
        ),
        ([{"difference": 0.2, "difference_low": 0.1, "kl": None}], r"was not measured \(set grpo\.beta\)"),
        ([{"difference": -0.2, "kl": 2}], r"gained -0\.2.*; the KL to the start is 2"),
        ([], "no evaluation before and after"),
    ],
)
def test_what_a_gate_asks_for(records: list[dict[str, Any]], problem: str | None, tmp_path: Path) -> None:
    _, grpo = stages("replies-quick")
    folder = RunDir(tmp_path)
    base = {"step": 0, "name": "test", "ids": [1], "score": 0.1}
    for record in [base, *({**base, "step": 5, **record} for record in records)]:
        folder.append("evaluations.jsonl", record)
    if problem is None:
        require_passed(folder, grpo)
        return
    with pytest.raises(GateFailed, match=problem):
        require_passed(folder, grpo)


# ---------------------------------------------------------------------- the pass judge


@pytest.mark.parametrize(
    ("reply", "shut"),
    [
        ("Call the council, ours sent an inspector about the broken heating within a week.", None),
        ("Call the council, ours sent an inspector about the broken", "whole"),
        ("Heating.", "whole"),
        ("Call the council about your heating, see https://help.example for the form.", "plain"),
        ('"Call the council about the broken heating, they answered within a week."', "plain"),
        ("Here is a reply to the tweet: heating in a flat matters to many families.", "untasked"),
        ("Our heating broke in winter too, subscribe to my newsletter for landlord tips.", "unsold"),
        ("The heating in your flat has been broken for 17 days.", "own"),
        ("My cat knocked a plant off the windowsill and then slept in the pot.", "about"),
    ],
)
def test_every_check_of_the_pass_judge_shuts_on_what_it_is_for(reply: str, shut: str | None) -> None:
    judge = sensible_reply.build(sensible_reply.Settings())
    (score,) = judge(Prompt(POST, {"tweet": POST}), [Output(reply)])
    assert score.value == (shut is None)
    assert score.parts.keys() == sensible_reply.PARTS.keys()
    if shut is not None:
        assert score.parts[shut] == 0


def test_the_pass_judge_agrees_with_the_labels_by_hand() -> None:
    rows = labels.labelled()
    verdicts = labels.verdicts_of(sensible_reply.build(sensible_reply.Settings()), 0.5, rows)
    figures = labels.agreement(rows, verdicts)
    assert (figures.count, figures.labels) == (100, 45)
    assert figures.share >= 0.8
    assert figures.kappa >= 0.6
    shown = relgrad("rewards", "agreement", "--texts", 1)
    assert f"{figures.equal} of 100 equal" in shown
    assert shown.count("labelled otherwise") == 1
    assert "no second labeller" in relgrad("rewards", "agreement", "--guideline").replace("\n", " ")


@pytest.mark.parametrize("threshold", ["nan", "5", "-0.1"])
def test_a_threshold_that_is_none(threshold: str):
    ended = CliRunner().invoke(app, ["rewards", "agreement", f"--threshold={threshold}"], env={"COLUMNS": "300"})
    assert ended.exit_code == 2
    assert f"--threshold {threshold}: give a number from 0 to 1" in ended.stderr


def test_agreement_is_counted() -> None:
    rows = [labels.Labelled("p", str(n), "own", n < 2) for n in range(5)]
    figures = labels.agreement(rows, [True, False, False, True, None])
    assert (figures.count, figures.equal, figures.labels, figures.verdicts) == (4, 2, 2, 2)
    assert figures.kappa == pytest.approx(0)
    assert labels.agreement(rows[:2], [True, True]).share == 1
    assert math.isnan(labels.agreement(rows[:2], [True, True]).kappa)


def test_what_no_matter_has_says_nothing() -> None:
    model = matter_model()
    assert model.alike(POST, "Zxqv blorf.") == pytest.approx(1 / model.matters)
    assert model.posterior("") == pytest.approx([1 / model.matters] * model.matters)
    assert sum(model.posterior(POST)) == pytest.approx(1)
