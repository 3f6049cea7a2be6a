"""Programs that a model wrote, run in the sandbox in a search: what they print is an answer, and what goes wrong is none."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from relgrad.core.errors import RelgradError
from relgrad.environments.sandbox import bubblewrap, run
from relgrad.environments.workflows.execute import execute
from relgrad.environments.workflows.language import parse
from relgrad.environments.workflows.operators import Operators
from relgrad.environments.workflows.sandboxed import Sandboxed
from sandboxes import needs_walls
from test_workflows import SUM, Script


@needs_walls
def test_a_program_runs_as_python_and_its_failures_are_no_answers() -> None:
    runner = Sandboxed()
    for program, right in (
        ("total = sum(range(3))\nprint(total + 1)", 1.0),
        ("import math\nprint(math.isqrt(16))", 1.0),
        ("def main(): print(4)\nif __name__ == '__main__':\n    main()", 1.0),
        ("import sys\nprint(4)\nsys.exit(0)", 1.0),
        ("print(4)\nexit()", 1.0),
        ("import sys\nprint(4)\nsys.exit('no')", 0.0),
        ("print(4)\nraise ValueError('4')", 0.0),
        ("print(4", 0.0),
        ("print(len(open('/etc/passwd').read()) and 4)", 0.0),
    ):
        operators = Operators(SUM, Script(program=f"```python\n{program}\n```"), 0, runner)
        outcome = asyncio.run(execute(parse("program()"), operators))
        assert (outcome.right, outcome.failure) == (right, ""), program
        assert outcome.answer == ("4" if right else "")


@needs_walls
def test_where_the_sandbox_breaks_a_problem_is_unscored() -> None:
    runner = Sandboxed()
    tools = bubblewrap.Tools("/no/such/bwrap", None)
    runner.sandbox.containment = replace(runner.sandbox.containment, tools=tools)
    operators = Operators(SUM, Script(program="print(4)"), 0, runner)
    outcome = asyncio.run(execute(parse("program()"), operators))
    assert math.isnan(outcome.right)
    assert "not run" in outcome.failure


def test_without_walls_no_program_of_a_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(run.containment(), level="none", lacks="bubblewrap is not installed")
    monkeypatch.setattr(run, "containment", lambda: bare)
    with pytest.raises(
        RelgradError, match=r"search.programs: generated code is not executed here.*bubblewrap is not installed"
    ):
        Sandboxed()
