"""Workflows: their language and canonical form, execution against compiled Python, exact worth, edits, and AFlow's files."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chat_server import says, serving
from commands import relgrad
from relgrad.backends import scripted
from relgrad.backends.protocol import CallFailed, Reply, Request, Usage
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.environments.workflows import aflow, file, noisy, sandboxed, sources
from relgrad.environments.workflows.compiled import python
from relgrad.environments.workflows.edits import Space, neighbours
from relgrad.environments.workflows.execute import Outcome, execute, run
from relgrad.environments.workflows.language import NoWorkflow, Step, parse
from relgrad.environments.workflows.operators import Calculator, Operators, Solution, says_right
from relgrad.environments.workflows.problem import Problem, answer_of, is_right, number_in, read_problems
from relgrad.environments.workflows.prompts import PROMPTS
from relgrad.runs import workflows

# ---------------------------------------------------------------------- the language


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("generate()", "generate()"),
        ("generate( plain )", "generate()"),
        ("ensemble(program(), generate(), program())", "ensemble(generate(), 2 * program())"),
        ("ensemble(1 * program())", "program()"),
        ("ensemble(2*generate(careful),generate( 'careful'))", "ensemble(2 * generate(careful), generate(careful))"),
        ("extract(extract(program()))", "extract(program())"),
        ("verify(\n  program(),\n  revise(review(generate())))", "verify(program(), revise(review(generate())))"),
        ('format(generate("Use {braces} and \\"quotes\\"."))', "format(generate('Use {braces} and \"quotes\".'))"),
    ],
)
def test_a_workflow_has_one_form(text: str, canonical: str) -> None:
    step = parse(text)
    if "'careful'" not in text:
        assert step.text == canonical
    assert parse(step.text) == step
    assert parse(step.text).hash == step.hash


def test_equal_programs_have_one_hash_and_others_do_not() -> None:
    same = ["ensemble(program(), 2 * generate())", "ensemble(generate(), program(), generate(plain))"]
    assert len({parse(text).hash for text in same}) == 1
    assert parse("generate(careful)").hash == parse(f"generate({PROMPTS['careful']!r})").hash
    others = [
        "ensemble(program(), generate())",
        "verify(program(), generate())",
        "verify(generate(), program())",
        *same[:1],
    ]
    assert len({parse(text).hash for text in others}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no workflow"),
        ("generate(", "no workflow"),
        ("solve()", "unknown operator 'solve'; there are generate"),
        ("generate(clever)", "no prompt is called 'clever'; there are plain"),
        ("generate(7)", "a prompt is a name or a text (received 7)"),
        ("generate(prompt='x')", "arguments have no names here (received 'prompt')"),
        ("ensemble()", "ensemble takes 1 to 32 workflows (received 0)"),
        ("verify(program())", "verify takes 2 workflows (received 1)"),
        ("revise(generate())", "revise takes a review (received generate): write revise(review(generate()))"),
        ("verify(2 * program(), generate())", "only an ensemble repeats"),
        ("ensemble(99 * program())", "only an ensemble repeats"),
        ("__import__('os').system('x')", "no operator"),
        ("generate(__import__('os'))", "unknown operator '__import__'"),
        ("ensemble(program(), careful)", "ensemble has no prompt"),
        ("format('x', program())", "nothing stands behind the prompt"),
        ("extract(" * 40 + "program()" + ")" * 40, "more than 12 deep"),
        ("ensemble(32 * ensemble(32 * program()))", "more than 64|of 1057 operators"),
        ("x" * 30_000, "at most 20000 are read"),
    ],
)
def test_what_is_no_workflow_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(NoWorkflow) as refused:
        parse(text)
    assert any(part in str(refused.value) for part in message.split("|"))


# ---------------------------------------------------------------------- execution

SUM = Problem("p", "What is 2 + 2?", "4", "sum", ("5", "6", "7"), (("even_as", 0),))


class Script:
    """Answers by what a request is about; `asked` holds all of it."""

    def __init__(self, **texts: Any) -> None:
        self.texts, self.asked = {name: list(t) if isinstance(t, tuple) else [t] for name, t in texts.items()}, []

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        texts = self.texts[request.about["operator"]]
        text = texts.pop(0) if len(texts) > 1 else texts[0]
        if isinstance(text, Exception):
            raise text
        return Reply(text, Usage(1, 2, 3, 0.5), "m")


def outcome(text: str, problem: Problem = SUM, seed: int = 0, **texts: Any) -> tuple[Outcome, Script]:
    script = Script(**texts)
    return asyncio.run(execute(parse(text), Operators(problem, script, seed))), script


def test_operators_do_what_they_say() -> None:
    result, script = outcome("generate(careful)", generate="Two and two.\nanswer: 4")
    assert (result.answer, result.right, result.usage) == ("4", 1.0, Usage(1, 2, 3, 0.5))
    text = script.asked[0].messages[0]["content"]
    assert PROMPTS["careful"] in text
    assert "What is 2 + 2?" in text

    result, script = outcome("ensemble(3 * generate())", generate=("answer: 5", "answer: 4.0", "answer: 4"))
    assert result.answer in ("4.0", "4")
    assert len({request.seed for request in script.asked}) == 3

    result, script = outcome(
        "revise(review(generate()))", generate="answer: 5", review="Wrong: 2 + 2 < 5", revise="answer: 4"
    )
    assert result.right
    assert "Objection: Wrong: 2 + 2 < 5" in script.asked[2].messages[0]["content"]
    result, script = outcome("revise(review(generate()))", generate="answer: 5", review="right")
    assert (result.answer, len(script.asked)) == ("5", 2)

    result, script = outcome(
        "verify(generate(), program())", generate="answer: 5", verify="wrong", program="```python\nprint(2 + 2)\n```"
    )
    assert result.answer == "4"
    result, script = outcome("verify(generate(), program())", generate="answer: 4", verify="It is correct, not wrong.")
    assert len(script.asked) == 2
    result, script = outcome("test(generate(), program())", generate="answer: 5", program="print(4)")
    assert (result.answer, len(script.asked)) == ("4", 2)
    result, script = outcome("test(generate(), program())", generate="answer: 6")
    assert (result.right, len(script.asked)) == (0.0, 1)
    result, script = outcome("format(extract(generate()))", generate="I say\nanswer: 4", format="answer: 4")
    assert "Solution: answer: 4\n" in script.asked[1].messages[0]["content"]


def test_a_program_that_fails_has_no_answer_and_its_message_is_none() -> None:
    for text in (
        "print(4",
        "import os; print(4)",
        "print(1 / 0)",
        "raise ValueError('4')",
        "print(9 ** 9 ** 9)",
        "print('4')",
    ):
        result, _ = outcome("program()", program=text)
        assert (result.answer, result.right, result.failure) == ("", 0.0, "")
    assert asyncio.run(Calculator().run("print(-(7 - 3) * 2 // 3)")) == str(-(7 - 3) * 2 // 3)
    result, _ = outcome("ensemble(program(), generate())", program="oops", generate="answer: 4")
    assert result.right, "who has no answer does not vote"


def test_a_call_that_fails_leaves_the_problem_unscored() -> None:
    result, _ = outcome("ensemble(3 * generate())", generate=("answer: 4", CallFailed("status 500"), "answer: 4"))
    assert math.isnan(result.right)
    assert result.failure == "status 500"
    assert len(result.calls) == 2
    with pytest.raises(CallFailed, match="is down"):
        outcome("generate()", generate=CallFailed("is down", fatal=True))


WHOLE = (
    "test(verify(program(), revise(review(ensemble(generate(careful), 2 * generate())))), "
    "format(extract(revise(review(generate('Say it.'), 'Look.'), 'Better.'))))"
)


def test_the_compiled_program_asks_and_answers_the_same() -> None:
    namespace: dict[str, Any] = {}
    step = parse(WHOLE)
    exec(python(step), namespace)
    solver = scripted.build(scripted.Settings())
    answers = set()
    for seed in range(30):
        operators, twin = (Operators(SUM, solver.generate, seed) for _ in range(2))
        solution = asyncio.run(run(step, operators, "0"))
        assert asyncio.run(namespace["workflow"](twin)) == solution
        assert sorted(map(repr, twin.calls)) == sorted(map(repr, operators.calls))
        answers.add(solution.answer)
    assert len(answers) > 1


def test_the_words_right_and_wrong() -> None:
    assert says_right("Right.")
    assert says_right("The answer is correct")
    assert not says_right("wrong, since right would be 5")
    assert not says_right("Incorrect")
    assert says_right("")
    for reply in (
        "The solution is not correct.",
        "Not right: 2 + 2 is 4.",
        "It isn't quite right",
        "It isn’t correct.",
    ):
        assert not says_right(reply), reply
    for reply in ("I do not object: it is correct.", "I cannot find anything wrong.", "Not brief, but correct"):
        assert says_right(reply), reply


# ---------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\nAnswer: 1,234\nbye", "1,234"),
        ("**answer:** 7", "7"),
        ("answer: 3\nno, answer: 4", "4"),
        ("thus \\boxed{\\frac{1}{2}} holds", "\\frac{1}{2}"),
        ("first\nthe last line\n", "the last line"),
        ("answer:", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_answer_of_a_solution(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def test_answers_are_right_as_numbers_or_as_words() -> None:
    for gold, right, wrong in (
        ("1234", ["1,234", "$1,234.00", "1234 apples"], ["234", "", "1235", "twelve"]),
        ("-7", ["-7", "x = -7."], ["7"]),
        ("0.5", ["1/2", ".5", "0.50"], ["5", "1/0"]),
        ("Paris", ["paris", " Paris. "], ["Paris, France", ""]),
        (r"\frac{1}{2}", ["1/2", "0.5", r"x = \dfrac{1}{2}"], ["2", "1"]),
        ("1/2", [r"\frac{1}{2}", r"$\frac{2}{4}$"], ["1", "2", "1/0", "1 1/2", r"1\frac{1}{2}"]),
        ("−3", ["-3", "−3", "-$3"], ["3"]),
        ("1000000", ["1e6", "1,000,000"], ["1", "6", "100000"]),
        ("10", ["5 + 5 = 10", "10%", "-5 or 10"], ["2^10", "2^{10}", "x^10", "5 - 10", "1e10"]),
        ("2^10", ["2^10"], ["10", "2"]),
        ("3-2", ["3-2."], ["-2", "2", "3"]),
        ("x^2", ["x^2"], ["2"]),
        ("2x", ["2x"], ["2"]),
        (f"{10**40 + 1}", [f"{10**40 + 1}.0"], [f"{10**40}"]),
    ):
        problem = Problem("p", "?", gold)
        assert all(is_right(problem, answer) for answer in right), gold
        assert not any(is_right(problem, answer) for answer in wrong), gold
    assert number_in("33 of 1/2") == pytest.approx(0.5)


def test_problem_files_are_read_or_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "Q?", "answer": "So.\\n#### 1,000"}\n\n{"problem": "R?", "answer": 5, "id": "b"}\n')
    assert read_problems(path) == [Problem("1", "Q?", "1,000"), Problem("b", "R?", "5")]
    for content, message in (
        ("", "is empty"),
        ('{"question": "Q?"}\n', "line 1 has no `answer`, so nothing could be scored; it has question"),
        ('{"question": "Q?", "answer": " "}\n', "line 1 has no `answer`"),
        ('{"answer": "1"}\n', "line 1 has no question: give problem, question or prompt"),
        ('{"question": "Q?", "answer": "1"}\n[]', "line 2: an object belongs there"),
        ("{", "line 1 is no JSON"),
        ('{"question": "Q?", "answer": "1", "id": "2"}\n{"question": "R?", "answer": "1"}\n', "two problems of one `id`"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(RelgradError, match=message):
            read_problems(path)
    with pytest.raises(RelgradError, match="no file"):
        read_problems(tmp_path / "none")


def test_problems_are_parted_by_type_and_neither_part_is_empty() -> None:
    problems = noisy.problems(noisy.Settings(count=12), 0)
    search, test = sources.parted(problems, 0.25, 0)
    assert [problem.type for problem in test].count("sum") == 1
    assert len(search) == 9
    assert {p.id for p in search} | {p.id for p in test} == {p.id for p in problems}
    assert [len(part) for part in sources.parted(problems[:2], 0.0, 0)] == [1, 1]
    alone = [Problem(str(n), "?", "1", str(n)) for n in range(10)]
    for share in (0.2, 0.5, 0.7):
        search, test = sources.parted(alone, share, 0)
        assert (len(test), len(search)) == (share * 10, 10 - share * 10)
        assert not {p.id for p in search} & {p.id for p in test}
    assert sources.parted(alone, 0.5, 0) != sources.parted(alone, 0.5, 1)
    with pytest.raises(RelgradError, match="1 problem cannot be parted"):
        sources.parted(problems[:1], 0.5, 0)


# ---------------------------------------------------------------------- exact worth

SOME = [
    "generate(careful)",
    "ensemble(3 * generate())",
    "ensemble(2 * generate(careful), program())",
    "revise(review(generate()))",
    "verify(program(), revise(review(generate(careful))))",
    "test(generate(), ensemble(generate(careful), program()))",
]


@pytest.mark.parametrize("text", SOME)
def test_the_exact_worth_is_what_execution_gives(text: str) -> None:
    """120 executions of each type: accuracy and money within 4.5 standard errors of the enumerated ones."""
    settings = noisy.Settings(count=3, tests=True)
    step, exact, solver = parse(text), noisy.Exact(settings=settings), scripted.build(scripted.Settings())

    async def all_of_them(problem: Problem) -> list[Outcome]:
        return [await execute(step, Operators(problem, solver.generate, seed)) for seed in range(120)]

    for problem in noisy.problems(settings, 0):
        outcomes = asyncio.run(all_of_them(problem))
        worth = exact.worth(step, problem.type)
        assert math.fsum(worth.chances) == pytest.approx(1)
        for value, values in (
            (worth.accuracy, [one.right for one in outcomes]),
            (worth.money, [one.usage.money for one in outcomes]),
        ):
            mean = math.fsum(values) / len(values)
            variance = max(math.fsum((v - mean) ** 2 for v in values) / len(values), 0.25 / len(values))
            assert abs(mean - value) <= 4.5 * (variance / len(values)) ** 0.5 + 1e-9, (problem.type, value, mean)


def test_votes_are_counted_as_by_hand() -> None:
    two = (0.6, 0.4, 0.0, 0.0)
    assert noisy.vote([two]) == pytest.approx(two)
    assert noisy.vote([two, two])[0] == pytest.approx(0.36 + 0.48 / 2)
    assert noisy.vote([two] * 3)[0] == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4)


def test_the_best_workflow_is_the_best_of_all_and_depends_on_the_type() -> None:
    space = Space(operators=("generate", "program", "ensemble", "revise", "verify"), max_size=5)
    exact = noisy.Exact()
    everything = list(noisy.everything(space))
    assert len(everything) == len(set(everything)) == 226
    best = {kind: exact.best(space, 0.02, (kind,)) for kind in ("sum", "story", "riddle")}
    for kind, (step, score) in best.items():
        assert score == max(exact.score(other, 0.02, (kind,)) for other in everything)
        assert exact.score(step, 0.02, (kind,)) == score
    assert len({step.text for step, _ in best.values()}) == 3
    assert best["sum"][0].text == "program()"


def test_edits_lead_everywhere_and_their_probabilities_add_up() -> None:
    """From one leaf every workflow of the space is reached, and from nowhere one outside of it."""
    space = Space(operators=("generate", "program", "ensemble", "revise", "verify"), max_size=5)
    everything, reached, waiting = set(noisy.everything(space)), set[Step](), [parse("generate()")]
    while waiting:
        step = waiting.pop()
        if step in reached:
            continue
        reached.add(step)
        children = neighbours(step, space)
        assert math.fsum(edit.probability for edit in children.values()) == pytest.approx(1)
        assert step not in children
        waiting += children
    assert reached == everything


# ---------------------------------------------------------------------- files, and AFlow's

GRAPH = '''
from typing import Literal
import workspace.GSM8K.workflows.template.operator as operator
import workspace.GSM8K.workflows.round_3.prompt as prompt_custom

raise SystemExit("this file must never be executed")


class Workflow:
    def __init__(self, name, llm_config, dataset):
        self.name = name
        self.llm = create_llm_instance(llm_config)
        self.custom = operator.Custom(self.llm)
        self.programmer = operator.Programmer(self.llm)
        self.vote = operator.ScEnsemble(self.llm)

    async def __call__(self, problem: str):
        """A docstring."""
        solutions = []
        for _ in range(3):
            solution = await self.custom(input=problem, instruction=prompt_custom.SOLVE)
            solutions.append(solution["response"])
        checked = await self.programmer(problem=problem, analysis=f"check {solutions_text}")
        solutions.append(checked["output"])
        best = await self.vote(solutions=solutions, problem=problem)
        final = await self.custom(input=problem + f" {best['response']}", instruction=prompt_custom.SHORT)
        return final["response"], self.llm.get_usage_summary()["total_cost"]
'''.replace('f"check {solutions_text}"', '"None"')


def test_a_round_of_aflow_is_read_and_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "workflows" / "round_3"
    folder.mkdir(parents=True)
    (folder / "graph.py").write_text(GRAPH)
    (folder / "prompt.py").write_text('SOLVE = """\nSolve it.\n"""\nSHORT = "Be short."\n')
    step = aflow.read_round(folder)
    assert step.text == "format(ensemble(3 * generate('Solve it.'), program()), 'Be short.')"
    out = tmp_path / "start.json"
    assert relgrad("workflow", "import", folder, "--out", out).strip() == str(out)
    assert file.read(out)[0] == step
    assert relgrad("workflow", "import", folder).strip() == step.text
    with pytest.raises(RelgradError, match=r"holds no graph.py: give the folder of a round, .*round_3"):
        aflow.read_round(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("for _ in range(3):", "while True:", "line 20: cannot be brought into a workflow"),
        ("range(3)", "range(n)", r"loops are over range\(n\)"),
        ("self.vote(solutions=solutions, problem=problem)", "self.vote(problem=problem)", "the operator 'ScEnsemble'"),
        ("operator.Programmer", "operator.Mystery", "the operator 'Mystery' with these arguments"),
        ("class Workflow", "class Flow", "has no class Workflow"),
        ('return final["response"]', 'return "42"', "returns no solution"),
        ("async def __call__(", "async def __call__((", "is no Python"),
        ("solution = await self.custom", "solution = len", "cannot be brought"),
    ],
)
def test_what_cannot_be_brought_in_is_refused_by_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GRAPH
    (tmp_path / "graph.py").write_text(GRAPH.replace(before, after))
    (tmp_path / "prompt.py").write_text('SOLVE = "Solve it."\nSHORT = "Be short."\n')
    with pytest.raises(RelgradError, match=message):
        aflow.read_round(tmp_path)


def test_a_workflow_is_shown_and_executed_from_the_command_line(tmp_path: Path) -> None:
    shown = relgrad("workflow", "show", "ensemble(program(), 2*generate(careful))")
    assert shown.startswith("ensemble(2 * generate(careful), program())\n# ")
    assert "await operators.ensemble([solution_0_0, solution_0_1, solution_0_2], '0')" in shown
    path = tmp_path / "w.json"
    section = {"kind": "scripted"}
    file.write(path, parse("ensemble(3 * program())"), {"backend": section, "problems": {"kind": "noisy"}, "seed": 3})
    printed = relgrad("workflow", "run", path, "--problem", "sum-0")
    answer = noisy.problems(noisy.Settings(), 3)[0].answer
    assert f"answer   {answer}" in printed
    assert "cost     3 calls" in printed
    for content, message in (
        ("{", "cannot be read"),
        ('{"a": 1}', "has no `workflow`"),
        ("solve()", "unknown operator"),
    ):
        path.write_text(content)
        with pytest.raises(RelgradError, match=message):
            file.read(path)


def test_nobody_knows_whether_the_answer_to_a_new_text_is_right(tmp_path: Path) -> None:
    """Of a problem of the file it is known; and the file may be gone where a text is new."""
    problems, path = tmp_path / "p.jsonl", tmp_path / "w.json"
    problems.write_text('{"question": "What is 1 + 1?", "answer": "2", "id": "one"}\n')
    with serving(lambda number, body: says("answer: 2")) as server:
        backend = {"kind": "endpoint", "url": server.url, "model": "m"}
        facts = {"backend": backend, "problems": {"kind": "file", "path": str(problems)}}
        file.write(path, parse("generate()"), facts)

        def right(text: str) -> float | None:
            return json.loads(relgrad("workflow", "run", path, "--problem", text, "--json"))["right"]

        assert right("one") == 1.0
        assert right("What is 17 * 23?") is None
        problems.unlink()
        assert right("What is 17 * 23?") is None
        problems.write_text("{")
        assert right("What is\n17 * 23?") is None


class FixedRunner:
    """Runs every program to one output."""

    async def run(self, program: str) -> str | None:
        return "391"


def test_a_workflow_is_executed_with_the_settings_of_its_file_or_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.json"
    monkeypatch.setattr(sandboxed, "Sandboxed", FixedRunner)
    with serving(lambda number, body: says("x = 391\nprint(x)")) as server:
        backend = {"kind": "endpoint", "url": server.url, "model": "m"}
        settings = {"temperature": 0.25, "max_tokens": 77, "programs": "sandbox"}
        file.write(path, parse("program()"), {"backend": backend, **settings})
        assert "answer   391\n" in relgrad("workflow", "run", path, "-p", "A text.")
        others = ("temperature=0.5", "max_tokens=9", "programs=arithmetic")
        ended = CliRunner().invoke(app, ["workflow", "run", str(path), "-p", "A text.", *others])
        assert ended.exit_code == 2
        assert "answer   none: the workflow's last call wrote none" in ended.stdout
        assert "1 of 1 problems have no answer" in ended.stderr
        with pytest.raises(RelgradError, match="temperature"):
            list(workflows.execute_on(str(path), ["A text."], ["temperature=-1"], 0))
    assert [(body["temperature"], body["max_tokens"]) for body, _ in server.asked] == [(0.25, 77), (0.5, 9)]


def test_solutions_compare_by_what_they_say() -> None:
    assert Solution("a\nanswer: 4").answer == "4"
