"""A language model learns to write workflows: described problems, what a written workflow is worth, and the recipes."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

import relgrad as package
from chat_server import Answer, says, serving
from commands import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.workflows.described import (
    LEVELS,
    PRICES,
    Kind,
    described,
    draw_kind,
    judge_of,
    part_of,
    programs,
)
from relgrad.environments.workflows.edits import Space
from relgrad.environments.workflows.language import parse
from relgrad.rewards import workflow
from relgrad.tasks import noisy_workflows

SPACE = Space(max_size=5)
RECIPES = Path(package.__file__).parent / "recipes"


def kind_where(**words: Any) -> dict[str, Any]:
    """A kind of problems in which everything mostly fails, but for what is said."""
    usual = {
        "type": "sum", "plain": "mostly", "careful": "mostly", "program": "mostly", "miss": "often", "fixes": "rarely",
        "careful_price": "dear", "program_price": "dear", "cost_weight": 0.05,
    }  # fmt: skip
    return usual | words


def scores(prompt: Prompt, texts: list[str], **settings: Any) -> list[Score]:
    reward = workflow.build(workflow.Settings(**settings))
    return asyncio.run(reward(prompt, [Output(text) for text in texts]))


def prompt_of(**words: Any) -> Prompt:
    return Prompt("p", {"kind_of_problem": kind_where(**words), "max_size": 5, "seed": 7})


# ---------------------------------------------------------------------- described problems


def test_the_parts_share_no_kind_whatever_the_seed() -> None:
    tasks = [noisy_workflows.load(noisy_workflows.Settings(held_out_size=60), seed) for seed in (0, 1)]
    assert [p.text for p in tasks[0].test] == [p.text for p in tasks[1].test]
    assert tasks[0].train[3].text == noisy_workflows.load(noisy_workflows.Settings(), 0).train[3].text
    assert [tasks[0].train[n].text for n in range(9)] != [tasks[1].train[n].text for n in range(9)]
    kinds = {
        name: {json.dumps(p.columns["kind_of_problem"]) for p in part}
        for name, part in (
            ("train", [tasks[seed].train[n] for seed in (0, 1) for n in range(100)]),
            ("validation", tasks[0].validation),
            ("test", tasks[0].test),
        )
    }
    assert len(kinds["validation"]) == len(kinds["test"]) == 60
    assert not kinds["train"] & kinds["validation"]
    assert not kinds["train"] & kinds["test"]
    assert not kinds["validation"] & kinds["test"]


def test_no_held_out_kind_has_a_twin_in_training_that_differs_in_its_type_alone() -> None:
    """Of kinds that may be drawn: whatever the type, equal rates and prices are of one part."""
    kinds = {
        part: {
            json.dumps(draw_kind(part, draw, 0.05).model_dump(exclude={"type"}))
            for draw in map(random.Random, range(1500))
        }
        for part in ("train", "validation", "test")
    }
    assert all(len(some) > 150 for some in kinds.values())
    assert not kinds["train"] & (kinds["validation"] | kinds["test"])
    assert not kinds["validation"] & kinds["test"]


def test_a_demonstration_is_a_workflow_and_knows_nothing_of_the_problem() -> None:
    task = noisy_workflows.load(noisy_workflows.Settings(held_out_size=10), 0)
    steps = [parse(task.train[n].columns["demonstration"]) for n in range(150)]
    assert {step.size for step in steps} == {1, 2, 3, 4, 5} - ({2} - {s.size for s in programs(SPACE)})
    judges = [judge_of(task.train[n].columns["kind_of_problem"], SPACE) for n in range(20)]
    shuffled = random.Random(0).sample(steps[:20], 20)
    own, other = (
        sum(judge.worth(step) for judge, step in zip(judges, some, strict=True)) / 20 for some in (steps[:20], shuffled)
    )
    best = sum(judge.best[1] for judge in judges) / 20
    assert best - own > 2 * abs(own - other)


def test_a_demonstration_that_is_the_best_of_eight_is_worth_more_and_still_a_draw() -> None:
    """Of the same draws: the first one, and of eight the one that is worth most for the very problem."""
    plain, chosen = (noisy_workflows.load(noisy_workflows.Settings(max_size=3, best_of=k), 0) for k in (1, 8))
    worth: dict[int, list[float]] = {1: [], 8: []}
    for number in range(200):
        assert plain.train[number].content == chosen.train[number].content
        judge = judge_of(plain.train[number].columns["kind_of_problem"], Space(max_size=3))
        for k, task in ((1, plain), (8, chosen)):
            worth[k].append(judge.worth(parse(task.train[number].columns["demonstration"])))
    assert all(best >= first for first, best in zip(worth[1], worth[8], strict=True))
    # measured .524 and .710 on 300 kinds; the standard error of 200 is about .015
    assert statistics.fmean(worth[1]) < 0.58 < 0.66 < statistics.fmean(worth[8])
    assert len({chosen.train[number].columns["demonstration"] for number in range(200)}) > 5


def test_a_description_tells_every_rate_in_words_or_numbers() -> None:
    kind = Kind(**kind_where(plain="often", careful_price="cheap"))
    assert described(kind, "{plain} {careful} {careful_price}", "words") == "often mostly cheap"
    assert described(kind, "{plain} {careful} {careful_price}", "numbers") == "55% 80% 1"
    assert {draw_kind("test", random.Random(n), 0.05).type for n in range(40)} == {"sum", "story", "riddle"}
    assert all(part_of(draw_kind("validation", random.Random(n), c)) == "validation" for n in range(9) for c in (0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": ["{speed}:"]}, "no field; there are type, plain"),
        ({"templates": [" "]}, "a template is empty"),
        ({"max_size": 9}, "less than or equal to 6"),
        ({"held_out_size": 401}, "less than or equal to 400"),
        ({"rates": "both"}, "'words' or 'numbers'"),
    ],
)
def test_a_mistake_in_the_task_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisy_workflows.Settings(**settings)


# ---------------------------------------------------------------------- what a written workflow is worth


def test_the_best_workflow_has_no_regret_and_no_workflow_less() -> None:
    """Programs are rarely wrong and cheap here, and all else fails: one program is best, worth .9 less its price of .05."""
    prompt = prompt_of(program="rarely", program_price="cheap")
    texts = ["program()", *(step.text for step in programs(SPACE)[:40])]
    regrets = [score.value for score in scores(prompt, texts, part="regret")]
    assert regrets[0] == min(regrets)
    (best,) = scores(prompt, ["program()"], score="exact")
    judge = judge_of(prompt.columns["kind_of_problem"], SPACE)
    assert judge.best[1] >= 0.9 - 0.05
    assert best.value == pytest.approx(0.9 - 0.05)
    assert best.parts["regret"] == pytest.approx(judge.best[1] - best.value)
    assert regrets[0] == pytest.approx(best.parts["regret"])


def test_executions_agree_with_the_exact_value() -> None:
    """Within 4 standard errors of 200 executions, each of which is right or wrong; the cost of this workflow does not vary."""
    prompt = prompt_of(plain="often")
    text = "ensemble(3 * generate())"
    (executed,), (exact,) = scores(prompt, [text], repeats=200), scores(prompt, [text], score="exact")
    assert executed.parts["cost"] == pytest.approx(3.0)
    assert abs(executed.value - exact.value) < 4 * 0.5 / math.sqrt(200)
    assert executed.parts["exact"] == exact.value


def test_what_is_no_workflow_has_a_score_of_its_own_and_a_reason() -> None:
    texts = ["", "I would vote.", "solve()", "ensemble(6 * generate())", " generate()\n"]
    found = scores(prompt_of(), texts, invalid=-0.9, repeats=2)
    assert [score.value for score in found[:4]] == [-0.9] * 4
    assert [score.parts["valid"] for score in found] == [0, 0, 0, 0, 1]
    assert "unknown operator 'solve'" in found[2].why
    assert found[3].why == "7 operators; at most 5 are allowed"
    best = judge_of(kind_where(), SPACE).best[1]
    assert found[0].parts["regret"] == pytest.approx(best + 0.9)
    assert [score.value for score in scores(prompt_of(), texts, part="valid")] == [0, 0, 0, 0, 1]


def test_no_workflow_of_any_kind_is_worth_less_than_what_is_none() -> None:
    """Errors and prices enter a worth monotonically, but not those of reviews: the worst of their levels is looked for."""
    invalid = workflow.Settings().invalid
    lowest = min(
        judge_of(kind_where(miss=miss, fixes=fixes, careful_price=careful, program_price=program), SPACE).worth(step)
        for miss in LEVELS
        for fixes in LEVELS
        for careful in PRICES
        for program in PRICES
        for step in programs(SPACE)
    )
    assert lowest == pytest.approx(-0.422, abs=1e-3), "four careful answers that are mostly wrong, at 3 each"
    dearest = (
        max(PRICES.values()) * SPACE.max_size * 0.05
    )  # of an execution, which may be wrong whatever its expectation
    assert invalid < -dearest < lowest


@pytest.mark.parametrize("words", [{"cost_weight": 0.1}, {"cost_weight": 1.0}])
def test_an_invalid_that_a_workflow_could_fall_below_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(RelgradError, match=r"Set invalid to -\S+ or less, or lower cost_weight"):
        scores(prompt_of(**words), ["generate()"])
    assert scores(prompt_of(**words), ["?"], invalid=-15.0)[0].value == -15
    endpoint = {"kind": "endpoint", "url": "http://x", "model": "m"}
    question = Prompt("p", {"question": "1", "answer": "1"})
    with pytest.raises(RelgradError, match=r"invalid=-0\.5, and a workflow may score -0\.7"):
        scores(question, ["?"], backend=endpoint, cost_weight=0.1, invalid=-0.5)


def test_a_python_program_runs_in_the_sandbox() -> None:
    good = "```python\nasync def workflow(operators):\n    return await operators.program('', '0')\n```"
    bad = "async def workflow(operators):\n    return 1 / 0"
    prompt = prompt_of(program="rarely")
    found = scores(prompt, [good, bad, "no program"], language="python", repeats=4)
    (same,) = scores(prompt, ["program()"], repeats=4)
    assert found[0].value == same.value, "the same questions, asked from inside"
    assert [score.value for score in found[1:]] == [-1, -1]
    assert "ZeroDivisionError" in found[1].why


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"invalid": 0.5}, "less than or equal to 0"),
        ({"repeats": 0}, "greater than or equal to 1"),
        (
            {"language": "python", "part": "regret"},
            "the exact value is known for expressions and described problems only",
        ),
        ({"backend": {"kind": "scripted"}, "score": "exact"}, "leave `backend` out"),
        ({"part": "cost"}, "'valid', 'exact' or 'regret'"),
    ],
)
def test_a_mistake_in_the_reward_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workflow.Settings(**settings)


def test_back_ends_that_cannot_be_are_said() -> None:
    endpoint = {"kind": "endpoint", "url": "http://x", "model": "m"}
    with pytest.raises(RelgradError, match="the back end knows no prices"):
        workflow.build(workflow.Settings(backend=endpoint, cost="money", cost_weight=0.1))
    with pytest.raises(RelgradError, match="looks like a secret"):
        workflow.build(workflow.Settings(backend=endpoint | {"key": "sk-abcdefgh1234"}))
    with pytest.raises(RelgradError, match="no column 'question'"):
        scores(Prompt("p", {"answer": "1"}), ["generate()"], backend=endpoint)
    with pytest.raises(RelgradError, match="no column 'kind_of_problem'"):
        scores(Prompt("p", {"answer": "1"}), ["generate()"])


def chat(number: int, body: dict[str, Any]) -> Answer:
    """A server that knows what 2 + 2 is, and fails for good where it is asked for something else."""
    text = body["messages"][-1]["content"]
    return says("answer: 4") if "2 + 2" in text else Answer({"error": {"message": "too long"}}, 400)


def test_a_model_behind_an_endpoint_answers_and_what_fails_is_unscored() -> None:
    with serving(chat) as server:
        settings: dict[str, Any] = {
            "backend": {"kind": "endpoint", "url": server.url, "model": "m", "retries": 0},
            "repeats": 2, "cost_weight": 0.01, "max_tokens": 8,
        }  # fmt: skip
        right = Prompt("p", {"question": "What is 2 + 2?", "answer": "two and two\n#### 4"})
        found = scores(right, ["ensemble(3 * generate())", "hm", "generate()", "generate()"], **settings)
        assert [score.value for score in found] == pytest.approx([1 - 0.03, -1, 1 - 0.01, 1 - 0.01])
        assert len(server.asked) == 2 * 3 + 2, "equal workflows are executed once"
        (failed,) = scores(Prompt("p", {"question": "Why?", "answer": "1"}), ["generate()"], **settings)
        (nobody,) = scores(Prompt("p", {"question": "", "answer": "1"}), ["generate()"], **settings)
    assert math.isnan(failed.value)
    assert "too long" in failed.why
    assert nobody.why.startswith("no problem: ")


# ---------------------------------------------------------------------- recipes


def evaluations(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "evaluations.jsonl").read_text().splitlines()]


SHORT = (
    "policy.model=tiny:32x1", "stages.0.sft.steps=2", "stages.1.grpo.steps=2", "stages.1.grpo.num_prompts=2",
    "evaluation.num_prompts=4", "evaluation.num_generations=2",
)  # fmt: skip


def test_the_tiny_recipe_runs_and_reports_validity_and_regret(tmp_path: Path) -> None:
    relgrad("run", "workflows-tiny", *SHORT, f"out={tmp_path}")
    samples = (tmp_path / "workflows-tiny" / "2-grpo" / "metrics.jsonl").read_text()
    assert "reward" in samples
    after = evaluations(tmp_path / "workflows-tiny" / "2-grpo")[-1]
    assert {"exact", "valid", "regret"} <= after["rewards"].keys()


@pytest.mark.slow
def test_a_tiny_model_learns_which_operator_suits(tmp_path: Path) -> None:
    relgrad("run", "workflows-tiny", f"out={tmp_path}", "seed=2")
    before, after = evaluations(tmp_path / "workflows-tiny" / "2-grpo")
    assert before["score"] > 0.3, "the language was not learnt"
    assert after["difference_low"] > 0


def test_the_recipe_of_qwen_is_whole_and_the_same_on_a_tiny_model_trains(tmp_path: Path) -> None:
    assert "Qwen/Qwen2.5-7B-Instruct" in relgrad("run", "workflows-qwen", "--dry-run")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "What is 2 + 2? ({n})", "answer": "{n} #### 4"}}\n' for n in range(6)))
    recipe = yaml.safe_load((RECIPES / "workflows-qwen.yaml").read_text())
    recipe["policy"] = {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 8}
    wording = {key: recipe["task"][key] for key in ("template",)}
    recipe["task"] = {"kind": "file", "path": str(path), "held_out_fraction": 0.3, **wording}
    recipe["grpo"] |= {"steps": 1, "num_prompts": 2, "num_generations": 2}
    with serving(chat) as server:
        recipe["rewards"][0]["backend"] |= {"url": server.url, "model": "m"}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe | {"evaluation": {"num_prompts": 1}}))
        relgrad("run", tmp_path / "small.yaml", f"out={tmp_path}")
    after = evaluations(next((tmp_path / "workflows-qwen").glob("*/evaluations.jsonl")).parent)[-1]
    assert after["score"] <= 1
