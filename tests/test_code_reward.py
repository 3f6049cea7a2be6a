"""Programs against tests, apart from each other in the sandbox: what passes, what fails, what is unscored, and who cannot cheat."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import lines, relgrad
from relgrad.core.types import Output, Prompt
from relgrad.environments.benchmarks.code import Checks, Verdict, checks_of, judge, judge_all
from relgrad.environments.benchmarks.completion import Program
from relgrad.environments.sandbox import bubblewrap
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Job, Sandbox
from relgrad.rewards import code
from sandboxes import needs_walls
from test_benchmarks import published

pytestmark = needs_walls

TWICE = Checks("", ["assert twice(2) == 4", "assert twice('a') == 'aa'", "assert twice((1,)) == (1, 1)"])


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(code.CodeLimits(seconds=20, cpu_seconds=5))


FORGED = """
import json, os, struct
def twice(x):
    data = json.dumps({"value": {"$": "tuple", "v": [[True] * 3, ""]}}).encode()
    os.write(3, struct.pack(">I", len(data)) + data)
    return x
"""
SAME = "class Same{}:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef twice(x): return Same('x')"
FAILED = (False, False, False)
MORE_THAN_DATA = "what the program returns is more than plain data, and only together with it the tests pass"

PROGRAMS: dict[str, tuple[str, Verdict]] = {
    "right": ("def twice(x): return x * 2", Verdict((True, True, True))),
    "right for numbers": (
        "def twice(x): return x + x if x == 2 else x",
        Verdict((True, False, False), "AssertionError"),
    ),
    "raises": ("def twice(x): return 2 * x if x == 2 else 1 / 0", Verdict((True, False, False), "ZeroDivisionError")),
    "does not parse": ("def twice(x) return", Verdict((), "SyntaxError: expected ':'", "syntax")),
    "does nothing": ("pass", Verdict(FAILED, "KeyError")),
    "is loaded with an error": (
        "import nothing_there",
        Verdict((), "No module named 'nothing_there' (line 1)", "exception"),
    ),
    "ends its process": (
        "import os\ndef twice(x): os._exit(0)",
        Verdict((), "exit code 0 and without a value", "crash"),
    ),
    "is equal to everything": (
        SAME.format("(object)").replace("Same('x')", "Same()"),
        Verdict(lost=MORE_THAN_DATA),
    ),
    "a text that is equal to everything": (SAME.format("(str)"), Verdict(lost=MORE_THAN_DATA)),
    "makes assertions harmless": (
        "import builtins\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\ndef twice(x): return x",
        Verdict(FAILED, "AssertionError"),
    ),
    "says that it passed": (FORGED, Verdict((), "a message that only the program itself can have written", "forged")),
    "leaves while it is asked": (
        "import sys\ndef twice(x): sys.exit(0)",
        Verdict((), "SystemExit: 0 (line 2)", "exception"),
    ),
    "answers what is not asked": (
        "[call('next', answer={'value': True, 'exact': True}) for _ in range(3)]\ndef twice(x): return True",
        Verdict(FAILED, "AssertionError"),
    ),
    "answers with no answer": (
        "call('next', answer=[1])\ndef twice(x): return x",
        Verdict((), "an answer that is none", "refused call"),
    ),
}


@pytest.fixture(scope="module")
def verdicts(sandbox: Sandbox) -> dict[str, Verdict]:
    return dict(
        zip(PROGRAMS, judge_all(sandbox, [(Program(text), TWICE) for text, _ in PROGRAMS.values()]), strict=True)
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verdict_on_a_program(verdicts: dict[str, Verdict], name: str) -> None:
    expected = PROGRAMS[name][1]
    assert verdicts[name] == replace(expected, message=verdicts[name].message)
    assert expected.message in verdicts[name].message
    assert verdicts[name].right == (name == "right")


def test_a_program_that_does_not_end_fails(sandbox: Sandbox) -> None:
    quick = Sandbox(code.CodeLimits(seconds=0.3))
    verdict = judge(quick, Program("def twice(x):\n    while True: pass"), TWICE)
    assert (verdict.error, verdict.passed) == ("timeout", ())


def test_values_of_all_kinds_come_through_the_wall(sandbox: Sandbox) -> None:
    program = Program("def same(x, times=1): return x\ndef numbers(n): yield from range(n)")
    values = [
        "None", "[1, (2, {3: {4}})]", "1.5", "10 ** 50", "b'x'", "{1, 2}", "frozenset({1})", "1j", "'\\ud800'",
        "float('inf')", "{'$': 1, 2: 3}", "True", "range(3)", "(None, [], {})",
    ]  # fmt: skip
    statements = [f"assert same({value}, times=2) == {value}" for value in values]
    statements.append("assert type(same(True)) is bool and type(same((1,))) is tuple")
    assert judge(sandbox, program, Checks("", statements)).passed == (True,) * len(statements)
    assert judge(sandbox, program, Checks("", ["assert list(numbers(3)) == [0, 1, 2]"])).right
    raising = Program("def same(x): raise KeyError(x)")
    caught = "try:\n    same(1)\nexcept KeyError:\n    pass\nelse:\n    assert False"
    assert judge(sandbox, raising, Checks("", [caught])).right


def test_tests_that_need_a_programs_classes_run_together_with_it(sandbox: Sandbox) -> None:
    program = Program("class Node:\n    def __init__(self, x): self.x = x\ndef value(node): return node.x")
    verdict = judge(sandbox, program, Checks("root = Node(3)", ["assert value(root) == 3", "assert value(root) == 4"]))
    assert (verdict.passed, verdict.together) == ((True, False), True)
    broken = judge(sandbox, Program("def value(node): return 3"), Checks("root = Node(3)", ["assert value(root) == 3"]))
    assert not broken.right
    assert "Node" in broken.message


RIGHT = {
    "a function is handed over": ("def f(g): return g(2)", ["assert f(lambda x: x + 1) == 3"]),
    "an argument keeps its type": (
        "def f(c): return c.most_common(1)",
        ["from collections import Counter\nassert f(Counter('aab')) == [('a', 2)]"],
    ),
    "a list is sorted in place": ("def f(a): a.sort()", ["l = [2, 1]\nf(l)\nassert l == [1, 2]"]),
    "all kinds change in place": (
        "def f(a, *, m): a[0].append(2); a[1].add(3); m['x'] = 1; m.pop('y')",
        ["l, s, d = [1], set(), {'y': 0}\nf((l, s), m=d)\nassert (l, s, d) == ([1, 2], {3}, {'x': 1})"],
    ),
    "an error of a narrower kind": (
        "class Mine(ValueError): pass\ndef f(): raise Mine('no')",
        ["try:\n    f()\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False"],
    ),
    "its own names are those of built-ins": ("type = list = str = print = 3\ndef f(): return 1", ["assert f() == 1"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes_whatever_its_tests_hand_over(sandbox: Sandbox, name: str) -> None:
    program, statements = RIGHT[name]
    verdict = judge(sandbox, Program(program), Checks("", statements, "f"))
    assert verdict.right, verdict
    assert verdict.together == (name in ("a function is handed over", "an argument keeps its type"))
    wrong = judge(sandbox, Program("def f(*a, **k): return 0"), Checks("", statements, "f"))
    assert (wrong.passed, wrong.lost) == ((False,), "")


@pytest.mark.parametrize(
    ("program", "wrong", "statement"),
    [
        ("from collections import Counter\ndef f(): return Counter('aab')", "Counter('bb')", "f().most_common(1)[0][0] == 'a'"),
        ("import datetime\ndef f(): return datetime.date(2020, 1, 1)", "datetime.date(2021, 1, 1)", "f().year == 2020"),
        ("def f(): return lambda x: x + 1", "lambda x: x", "f()(2) == 3"),
    ],
)  # fmt: skip
def test_a_value_that_is_more_than_data_is_lost_where_it_may_be_right_and_fails_where_it_is_not(
    sandbox: Sandbox, program: str, wrong: str, statement: str
) -> None:
    tests = Checks("import datetime", [f"assert {statement}"], "f")
    right = judge(sandbox, Program(program), tests)
    assert right.lost == MORE_THAN_DATA
    failed = judge(sandbox, Program(program.partition("return")[0] + f"return {wrong}"), tests)
    assert (failed.passed, failed.lost) == ((False,), "")


def test_tests_that_fail_by_themselves_are_lost() -> None:
    quick = Sandbox(code.CodeLimits(seconds=0.5, calls=5))
    right = Program("def f(): return 1")
    for setup, statement, why in (
        ("x = [0] * 10 ** 9", "assert f() == 1", "memory"),
        ("", "x = [0] * 10 ** 9", "memory"),
        ("", "while True: f", "no value within"),
        ("", "import nothing_there\nassert f() == 1", "nothing_there"),
        ("", "for _ in range(9): f()", "questions"),
    ):
        verdict = judge(quick, right, Checks(setup, [statement], "f"))
        assert why in verdict.lost, verdict
    imports = judge(quick, Program("def f(): import nothing_there"), Checks("", ["assert f() == 1"]))
    assert imports.passed == (False,)


def test_names_that_the_tests_make_themselves_are_not_asked_of_the_program(sandbox: Sandbox) -> None:
    tests = """
try:
    f(0)
except ZeroDivisionError as error:
    assert str(error)
async def later(): return f(1)
match [1, 2]:
    case [first, *others] if (both := first):
        assert [f(n) for n in others] == [0.5] and both
"""
    verdict = judge(sandbox, Program("def f(n): return 1 / n"), Checks("", [tests]))
    assert (verdict.passed, verdict.together) == ((True,), False)


def test_together_a_program_with_names_of_built_ins_does_not_take_the_tests_over(sandbox: Sandbox) -> None:
    tests = Checks("", ["assert value(Node(3)) == 3"])
    for program in ("def exec(*a): pass", "def type(*a): pass\nException = str = 1"):
        verdict = judge(sandbox, Program(program), tests)
        assert (verdict.passed, verdict.together) == ((False,), True)


def test_what_is_wrong_with_the_tests_is_not_held_against_the_program(sandbox: Sandbox) -> None:
    right = Program("def f(): return 1")
    for tests in (
        Checks("", ["assert f( == 1"]),
        Checks("", ["assert True"]),
        Checks("import nothing_there", ["assert f() == 1"]),
    ):
        verdict = judge(sandbox, right, tests)
        assert verdict.lost
        assert not verdict.right
    assert checks_of({"tests": []}, "f") is None
    assert checks_of({"tests": "def check(f): pass"}, None) is None


def test_the_reward_scores_shares_and_leaves_unscored_what_nobody_knows() -> None:
    columns = {"tests": list(TWICE.statements), "entry_point": None}
    outputs = [
        Output(f"```python\n{text}\n```")
        for text in (PROGRAMS[name][0] for name in ("right", "right for numbers", "raises"))
    ]
    strict, partial = code.build(code.Settings()), code.build(code.Settings(partial=True))
    scores = strict(Prompt("?", columns), [*outputs, Output("no program at all")])
    assert [score.value for score in scores] == [1, 0, 0, 0]
    assert [(score.parts["passed"], score.parts["ended"]) for score in scores[1:]] == [(1 / 3, 1), (1 / 3, 1), (0, 0)]
    assert [score.value for score in partial(Prompt("?", columns), outputs[:2])] == [1, 1 / 3]
    for tests in (None, [], "", ["assert twice( =="]):
        (score,) = strict(Prompt("?", {"tests": tests}), outputs[:1])
        assert math.isnan(score.value)
        assert score.why


def test_a_sandbox_that_breaks_leaves_programs_unscored(sandbox: Sandbox) -> None:
    broken = Sandbox(SandboxSettings())
    tools = bubblewrap.Tools("/no/such/bwrap", None)
    broken.containment = replace(sandbox.containment, tools=tools)
    verdict = judge(broken, Program("def twice(x): return 2 * x"), TWICE)
    assert "No such file" in verdict.lost
    assert not verdict.right


# ---------------------------------------------------------------------- HumanEval


def humaneval_verdicts(reward: Callable[..., Any], rows: list[dict[str, Any]], others: list[str]) -> list[list[float]]:
    """Per problem: its own solution, a stub, another problem's solution."""
    scores = []
    for row, other in zip(rows, others, strict=True):
        columns = {**row, "before": row["prompt"], "setup": row["prompt"], "tests": row["test"]}
        outputs = [Output(text) for text in (row["canonical_solution"], "    pass\n", other)]
        scores.append([score.value for score in reward(Prompt(row["prompt"], columns), outputs)])
    return scores


def test_some_solutions_of_humaneval_pass_and_others_fail() -> None:
    """Those with helpers in the prompt (32, 38), with a test that calls often (53), and of several kinds of values."""
    rows = published("humaneval.jsonl")
    chosen = [32, 38, 53]
    others = [rows[number + 1]["canonical_solution"] for number in chosen]
    assert humaneval_verdicts(code.build(code.Settings()), [rows[n] for n in chosen], others) == [[1, 0, 0]] * len(
        chosen
    )


@pytest.mark.slow
def test_all_solutions_of_humaneval_pass_and_all_others_fail() -> None:
    rows = published("humaneval.jsonl")
    assert len(rows) == 164
    others = [row["canonical_solution"] for row in rows[1:] + rows[:1]]
    assert humaneval_verdicts(code.build(code.Settings()), rows, others) == [[1, 0, 0]] * 164


CHANGES = (
    ("==", "!="),
    (" < ", " <= "),
    (" > ", " >= "),
    (" + ", " - "),
    ("True", "False"),
    ("[0]", "[-1]"),
    ("1", "2"),
    ("0", "1"),
)


def changed(solution: str) -> str:
    """A solution with the first of the changes that it has a place for; None of them: the solution."""
    return next((solution.replace(old, new, 1) for old, new in CHANGES if old in solution), solution)


@pytest.mark.slow
def test_apart_and_as_the_reference_does_it_programs_get_the_same_verdict(sandbox: Sandbox) -> None:
    """HumanEval's own harness executes prompt, completion, test and `check(...)` in one module; so does this, in one guest.

    The programs are the published solutions, each changed in one place: some still pass, most do not.
    """
    rows = published("humaneval.jsonl")
    completions = [changed(row["canonical_solution"]) for row in rows]
    end = "\n{test}\ncheck({entry_point})\ndef main(): return True"
    jobs = [Job(row["prompt"] + text + end.format_map(row)) for row, text in zip(rows, completions, strict=True)]
    reference = [outcome.value is True for outcome in sandbox.run_all(jobs)]
    reward = code.build(code.Settings(sandbox=code.CodeLimits(seconds=20, cpu_seconds=5)))
    scores = []
    for row, text in zip(rows, completions, strict=True):
        columns = {**row, "before": row["prompt"], "setup": row["prompt"], "tests": row["test"]}
        scores.append(reward(Prompt(row["prompt"], columns), [Output(text)])[0].value == 1)
    assert scores == reference
    assert 10 < sum(reference) < 100


# ---------------------------------------------------------------------- in a recipe


def test_a_recipe_with_programs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "prompt": f"def f():  # {n}\n    return ",
            "before": f"def f():  # {n}\n    return ",
            "tests": ["assert f() in range(10)"],
        }
        for n in range(8)
    ]
    (tmp_path / "programs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "programs.yaml").write_text(
        "policy: {kind: autoregressive, model: tiny, max_completion_length: 2}\n"
        "task: {kind: file, path: programs.jsonl, held_out_fraction: 0.25}\n"
        "rewards: [{kind: code, sandbox: {cpu_seconds: 1, memory_mb: 128}}]\n"
        "grpo: {steps: 1, num_prompts: 2, num_generations: 2}\n"
        "evaluation: {num_prompts: 1, num_generations: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    relgrad("run", "programs.yaml")
    (sample,) = {line["why"] for line in lines(tmp_path / "runs/programs/1-grpo/metrics.jsonl") if "why" in line} or {
        ""
    }
    assert sample == ""
