"""Problem sets: what counts as an answer and whether it is right, against their authors' own definitions and solutions."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component, settings_of
from relgrad.core.types import Output, Prompt
from relgrad.environments.benchmarks import overlap
from relgrad.environments.benchmarks.completion import Program, body_in, program_of
from relgrad.environments.benchmarks.mathematics import boxed, cleaned, same
from relgrad.environments.benchmarks.numbers import gsm8k_answer
from relgrad.rewards import competition_math, drop, gsm8k, hotpotqa
from relgrad.tasks import competition_math as math_task
from relgrad.tasks import gsm8k as gsm8k_task
from relgrad.tasks import humaneval, mbpp

NEAR = [folder / "shared" / "data" for folder in Path(__file__).resolve().parents]
DATA = next((folder for folder in NEAR if folder.is_dir()), NEAR[2])
"""Published files, beside the repository where they are."""


def published(name: str) -> list[dict[str, Any]]:
    """Rows of a published file. Skips where it is not there."""
    if not (DATA / name).is_file():
        pytest.skip(f"no {DATA / name}")
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def values(reward: Any, columns: dict[str, Any], *texts: str) -> list[float]:
    return [score.value for score in reward(Prompt("?", columns), [Output(text) for text in texts])]


# ---------------------------------------------------------------------- GSM8K


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 5 + 7 = 12\n#### 1,234", "1234"),
        ("#### -3.50", "-3.5"),
        ("#### $72 dollars, in 3 days", "72"),
        ("#### 5\n\nQuestion: and now?\n#### 6", "5"),
        ("####", None),
        ("#### many", None),
        ("#### Step 1: add\n48+24=72\n#### 72", "72"),
        ("#### Solution\n48 + 24 = 72\n#### 72", "72"),
        ("#### -$5", "-5"),
        ("####\n72", "72"),
        ("#### 3/4 of it", "0.75"),
        (r"#### -\frac{1}{2}", "-0.5"),
        ("it costs $1,234.50.", "1234.5"),
        ("minus −7", "-7"),
        ("three quarters are 3/4", "0.75"),
        (r"$\frac{3}{4}$ of it", "0.75"),
        (r"x = -\frac{1}{2}", "-0.5"),
        (r"3\dfrac{1}{4}", "0.25"),
        ("5/0", "0"),
        ("on 3/4/2020", "2020"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_answer_of_gsm8k(text: str, answer: str | None) -> None:
    assert gsm8k_answer(text) == (None if answer is None else Decimal(answer))


def test_white_space_without_end_after_a_mark_is_read_in_one_go() -> None:
    assert gsm8k_answer("####" + " " * 100_000 + "many") is None


def test_only_marked_numbers_count_where_that_is_wanted() -> None:
    assert gsm8k_answer("it is 5", only_marked=True) is None
    strict = gsm8k.build(gsm8k.Settings(only_marked=True))
    assert values(strict, {"answer": "#### 5"}, "5", "#### 5", r"\boxed{5}") == [0, 1, 0]
    reward = gsm8k.build(gsm8k.Settings())
    texts = ["so it is 5, not 6", "#### 5", r"\boxed{5} of 6", "5.0000001", "", "Error: division by zero, see line V"]
    assert values(reward, {"answer": "steps\n#### 5"}, *texts) == [0, 1, 1, 1, 0, 0]
    assert math.isnan(values(reward, {"answer": "nothing"}, "5")[0])
    assert math.isnan(values(reward, {"answer": None}, "5")[0])


def test_gsm8k_agrees_with_the_authors_on_their_solutions() -> None:
    """Their rule: the text after `#### `, of digits, points and commas, without commas, the same as the expected one's."""
    rule = re.compile(r"#### (\-?[0-9\.\,]+)")

    def theirs(text: str) -> str:
        found = rule.search(text)
        return found[1].strip().replace(",", "") if found else "[invalid]"

    rows = published("gsm8k_test_300.jsonl") + published("gsm8k_train_2000.jsonl")
    strict, free = gsm8k.build(gsm8k.Settings(only_marked=True)), gsm8k.build(gsm8k.Settings())
    right = 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        texts = [row["answer"], other["answer"], row["answer"].replace("####", "so"), "Error: no answer"]
        expected = [float(theirs(text) == theirs(row["answer"])) for text in texts]
        assert expected[0] == 1
        assert values(strict, row, *texts) == expected
        assert values(free, row, *texts) == [1, expected[1], 1, 0], "its last number is the answer"
        right += int(expected[1])
    assert right < len(rows) / 10, "most other solutions are wrong"


# ---------------------------------------------------------------------- MATH


def test_what_a_box_holds() -> None:
    assert boxed(r"first \boxed{1}, then $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert boxed(r"\fbox{2}") == "2"
    assert boxed(r"so \boxed 5$ is it") == "5"
    assert boxed(r"\boxed{{a}{b}}") == "{a}{b}"
    for text in ("", "5", r"\boxed{never closed"):
        assert boxed(text) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\tfrac{1}{2}", r"\frac12"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".25", r"\frac{1}{4}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"\$18.90", "18.90"),
        ("18.9", "18.90"),
        (r"50\%", "50"),
        (r"5\text{ cm}", "5"),
        ("x=5", "5"),
        (r"\sqrt3", r"\sqrt{3}"),
        ("10,080", "10080"),
        (r"2 + 3\sqrt{2}", r"2+3\sqrt2"),
    ],
)
def test_answers_of_math_that_are_the_same(a: str, b: str) -> None:
    assert same(a, b)
    assert same(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("1", "2"), ("", "1"), ("x", "y"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("(1,2)", "1")]
)
def test_answers_of_math_that_are_not(a: str, b: str) -> None:
    assert not same(a, b)


def test_the_reward_of_math() -> None:
    reward = competition_math.build(competition_math.Settings())
    columns = {"solution": r"We get $x = \boxed{\frac{3}{4}}$."}
    assert values(reward, columns, r"\boxed{3/4}", r"\boxed{4/3}", "3/4", "Error: 3/4") == [1, 0, 0, 0]
    assert values(reward, {"solution": "12"}, r"\boxed{12}") == [1]
    assert math.isnan(values(reward, {"solution": None}, r"\boxed{12}")[0])
    assert cleaned(r"\frac{1}{2}") == r"\frac{1}{2}"


# ---------------------------------------------------------------------- shared words


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("The Beatles!", "beatles", 1, 1),
        ("yes", "no", 0, 0),
        ("yes it is", "yes", 0, 0),
        ("Yes.", "yes", 1, 1),
        ("the big red house", "a red house", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("red red", "red", 0, 2 * 0.5 * 1 / 1.5),
        ("", "red", 0, 0),
    ],
)
def test_hotpotqa(answer: str, expected: str, exact: float, f1: float) -> None:
    result = overlap.hotpotqa(answer, expected)
    assert (result.exact, result.f1) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        (["td"], ["the td"], 1, 1),
        (["the a NOT an ARTICLE the an a"], ["NOT ARTICLE"], 1, 1),
        (["David Thomas"], ["Thomas David"], 0, 1),
        (["78-yard"], ["78 yard"], 1, 1),
        (["Per.i.o.d...."], [".P....e.r,,i;;;o...d,,"], 1, 1),
        (["77 yards"], ["78 yards"], 0, 0),
        (["78.0"], ["78"], 1, 1),
        (["1,200 men"], ["1200 men"], 1, 1),
        (["David", "Thomas"], ["Thomas", "David"], 1, 1),
        (["David"], ["David", "Thomas"], 0, 0.5),
        (["David", "Anna", "Thomas"], ["David"], 0, 0.33),
        (["John Elway"], ["Elway"], 0, 0.67),
        ([""], ["Elway"], 0, 0),
    ],
)
def test_drop(answer: list[str], expected: list[str], exact: float, f1: float) -> None:
    assert overlap.drop(answer, expected) == overlap.Overlap(exact, f1)


def test_the_rewards_of_shared_words() -> None:
    words = hotpotqa.build(hotpotqa.Settings(after="Answer:"))
    assert values(words, {"answer": "Paris"}, "I think. Answer: paris", "paris", "Answer: x. Answer: Paris") == [
        1,
        0,
        1,
    ]
    for settings in (hotpotqa.Settings, drop.Settings):
        with pytest.raises(ValidationError, match="after"):
            settings(after="")
    exact = hotpotqa.build(hotpotqa.Settings(score="exact"))
    (score,) = exact(Prompt("?", {"answer": "red house"}), [Output("big red house")])
    assert (score.value, score.parts) == (0, {"exact": 0, "f1": pytest.approx(0.8)})
    assert math.isnan(values(words, {"answer": None}, "x")[0])
    spans = drop.build(drop.Settings(others="validated_answers", separator=";"))
    row = {
        "answer": {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["David", "Thomas"]},
        "validated_answers": [{"number": "2", "spans": []}, {"date": {"day": "5", "month": "May", "year": "1999"}}],
    }
    assert values(spans, row, "Thomas; David", "2", "5 May 1999", "three") == [1, 1, 1, 0]
    assert math.isnan(values(spans, {**row, "answer": {}, "validated_answers": None}, "x")[0])


# ---------------------------------------------------------------------- programs in completions

HEAD = 'def f(x):\n    """Twice."""\n'


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("    return 2 * x\n", Program(f"{HEAD}    return 2 * x\n")),
        ("    return 2 * x\n\nprint(f(2))\nmore\n", Program(f"{HEAD}    return 2 * x\n\n")),
        ("    y = [\n1,\n]\n    return 2\n", Program(f"{HEAD}    y = [\n")),
        (
            "Sure.\n```python\ndef f(x):\n    return 2 * x\n```\nIt works.",
            Program("def f(x):\n    return 2 * x\n", HEAD),
        ),
        ("```\ndef g(): 1\n```\n```py\ndef f(x): 2\n```\n```\nf(3)\n```", Program("def f(x): 2\n", HEAD)),
        ("```python\nasync def f(x): 3", Program("async def f(x): 3", HEAD)),
        ("def f(x): return 4", Program("def f(x): return 4", HEAD)),
        ("```python\n    return 5\n```", Program(f"{HEAD}    return 5\n")),
    ],
)
def test_the_program_in_a_completion(completion: str, program: Program) -> None:
    assert program_of(completion, "f", HEAD) == program
    assert body_in("one line") == "one line"


def test_without_a_beginning_the_completion_is_all() -> None:
    assert program_of("x = 1", None) == Program("x = 1")
    assert program_of("text\n```\nx = 1\n```", None) == Program("x = 1\n")


# ---------------------------------------------------------------------- tasks by path


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def loaded(module: Any, **options: Any) -> Any:
    settings = settings_of(Component(kind="kind", **options), module.Settings, "task")
    return module.load(settings, seed=0)


def test_tasks_read_files_as_published(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(20)]
    task = loaded(
        gsm8k_task,
        path=written(tmp_path, "train.jsonl", rows[:15]),
        test_path=written(tmp_path, "test.jsonl", rows[15:]),
    )
    assert [len(part) for part in (task.train, task.validation, task.test)] == [13, 2, 5]
    assert task.test[0].text == "15 + 15?"
    problems = [{"problem": f"{n}?", "solution": rf"\boxed{{{n}}}", "level": "Level 5"} for n in range(20)]
    task = loaded(math_task, path=written(tmp_path, "math.jsonl", problems), held_out_fraction=0.25, test_fraction=0.25)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [10, 5, 5]
    functions = [
        {
            "task_id": f"H/{n}",
            "prompt": f"def f{n}():\n",
            "entry_point": f"f{n}",
            "test": "def check(f): assert f() == 1",
        }
        for n in range(4)
    ]
    task = loaded(
        humaneval, path=written(tmp_path, "HumanEval.jsonl", functions), held_out_fraction=0.25, test_fraction=0.25
    )
    assert task.train[0].columns["before"] == task.train[0].text
    with pytest.raises(
        RelgradError, match=r"train.jsonl, row 1: no column 'prompt'; the columns are 'question', 'answer'"
    ):
        loaded(humaneval, path=str(tmp_path / "train.jsonl"))


def test_mbpp_by_its_published_parts_or_others(tmp_path: Path) -> None:
    rows = [
        {"task_id": n, "text": f"Write f{n}.", "code": "", "test_list": [f"assert f{n}() == 1"], "test_setup_code": ""}
        for n in (2, 11, 510, 511, 600, 601, 974)
    ]
    path = written(tmp_path, "mbpp.jsonl", rows)
    task = loaded(mbpp, path=path)
    numbers = [[prompt.columns["task_id"] for prompt in part] for part in (task.train, task.validation, task.test)]
    assert numbers == [[601, 974], [511, 600], [11, 510]], "1 to 10 are nobody's"
    assert "Write f601. Your code should pass these tests:\n\nassert f601() == 1" in task.train[0].text
    with pytest.raises(RelgradError, match="parts of your own need split: fractions"):
        loaded(mbpp, path=path, test_fraction=0.3)
    own = loaded(mbpp, path=path, split="fractions", test_fraction=0.3)
    assert len(own.train) + len(own.validation) + len(own.test) == 7
    few = written(tmp_path, "few.jsonl", rows[-2:])
    with pytest.raises(RelgradError, match="no problem with a task_id of 511 to 600, the published validation part"):
        loaded(mbpp, path=few)
    clean = [
        {
            "task_id": row["task_id"],
            "prompt": row["text"],
            "test_imports": ["import math"],
            "test_list": row["test_list"],
        }
        for row in rows
    ]
    task = loaded(mbpp, path=written(tmp_path, "sanitized-mbpp.json", clean))
    assert task.train[0].columns["setup"] == "import math"
