"""Workflows that are Python programs, in the sandbox: what the interpreter does, they do, and nothing else."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chat_server import says, serving
from commands import relgrad
from relgrad.backends.protocol import CallFailed
from relgrad.commands.cli import app
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Sandbox
from relgrad.environments.workflows.compiled import python
from relgrad.environments.workflows.execute import Outcome, execute
from relgrad.environments.workflows.language import parse
from relgrad.environments.workflows.operators import Operators
from relgrad.environments.workflows.programs import execute_program
from sandboxes import needs_walls
from test_workflows import SUM, Script

pytestmark = needs_walls

TEXTS: dict[str, Any] = {
    "generate": ("answer: 5", "answer: 4", "answer: 4"),
    "program": "```python\nprint(2 + 2)\n```",
    "review": "wrong: too much",
    "revise": "answer: 4",
    "verify": "wrong",
    "format": "so\nanswer: 4",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(SandboxSettings(seconds=30, calls=20))


def executed(text: str, sandbox: Sandbox, **texts: Any) -> tuple[Outcome, Script]:
    script = Script(**{**TEXTS, **texts})
    return asyncio.run(execute_program(text, Operators(SUM, script, 0), sandbox)), script


@pytest.mark.parametrize(
    "workflow",
    [
        "ensemble(3 * generate(careful))",
        "verify(generate(), revise(review(generate(brief)), 'Do it better.'))",
        "format(test(generate(), program()))",
        "extract(program())",
    ],
)
def test_a_compiled_workflow_does_in_the_sandbox_what_the_interpreter_does(workflow: str, sandbox: Sandbox) -> None:
    inside, asked = executed(python(parse(workflow)), sandbox)
    script = Script(**TEXTS)
    outside = asyncio.run(execute(parse(workflow), Operators(SUM, script, 0)))
    assert inside == outside
    assert [(r.key, r.messages) for r in asked.asked] == [(r.key, r.messages) for r in script.asked]


PROGRAM = "async def workflow(operators):\n    {}"


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("return 4", "the program returned no solution"),
        ("return ('answer: 4', 7)", "the program returned no solution"),
        ("raise ValueError('answer: 4')", "exception: ValueError: answer: 4 (line 2)"),
        ("return await operators.solve('x')", "refused call: no operator 'solve'; there are generate, program"),
        ("return await operators.__class__('x')", "exception: "),
        ("return await operators.generate('x')", "refused call: generate takes 2 arguments (received 1)"),
        ("return await operators.generate('x', 0)", "refused call: a prompt and a place are texts (received int)"),
        ("return await operators.verify('x', '0')", "refused call: no solution of an operator (received str)"),
        ("return await operators.ensemble([], '0')", "refused call: an ensemble takes a list of 1 to 32 solutions"),
        ("call('operator', name=[1], arguments=[])", "refused call: the name of an operator is a text (received list)"),
        (
            "call('operator', name=10 ** 5000, arguments=[])",
            "refused call: the name of an operator is a text (received",
        ),
        ("call('operator', name='test', arguments=5)", "refused call: the arguments of test are a list (received int)"),
        ("while True: await operators.generate('', '0')", "refused call: more than 20 calls"),
        ("return open('/etc/passwd').read()", "exception: FileNotFoundError"),
    ],
)
def test_what_a_program_may_not_do_leaves_it_without_an_answer(body: str, failure: str, sandbox: Sandbox) -> None:
    outcome, _ = executed(PROGRAM.format(body), sandbox)
    assert (outcome.answer, outcome.right) == ("", 0.0)
    assert outcome.failure.startswith(failure)


def test_a_call_that_failed_leaves_the_problem_unscored_or_ends_everything(sandbox: Sandbox) -> None:
    ask = PROGRAM.format("return await operators.generate('', '0')")
    outcome, _ = executed(ask, sandbox, generate=CallFailed("rate limited"))
    assert math.isnan(outcome.right)
    assert outcome.failure == "rate limited"
    with pytest.raises(CallFailed, match="wrong key"):
        executed(ask, sandbox, generate=CallFailed("wrong key", fatal=True))


def test_a_file_asks_a_real_endpoint_from_inside_the_sandbox(tmp_path: Path) -> None:
    """The program has no network; its two questions reach the server all the same."""
    path = tmp_path / "vote.py"
    path.write_text(python(parse("ensemble(2 * generate())")))
    with serving(lambda number, body: says("17 times 23.\nanswer: 391")) as server:
        backend = ("kind=endpoint", f"url={server.url}", "model=m")
        printed = relgrad("workflow", "run", path, "-p", "What is 17 * 23?", *backend, "sandbox.seconds=60")
    assert "answer   391" in printed
    assert "cost     2 calls, 20 tokens" in printed
    assert len(server.asked) == 2
    result = CliRunner().invoke(app, ["workflow", "run", str(path), "-p", "?", *backend, "sandbox.second=60"])
    assert "Did you mean 'seconds'" in result.output
