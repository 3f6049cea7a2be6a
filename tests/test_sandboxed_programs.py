"""Programs that a model wrote, run in the sandbox in a search: what they print is an answer, and what goes wrong is none."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from relgrad.core.errors import RelgradError
from relgrad.environments.sandbox import run
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
        ("print(4)\nraise ValueError('4')", 0.0),
        ("print(4", 0.0),
        ("print(len(open('/etc/passwd').read()) and 4)", 0.0),
    ):
        operators = Operators(SUM, Script(program=f"```python\n{program}\n```"), 0, runner)
        outcome = asyncio.run(execute(parse("program()"), operators))
        assert (outcome.right, outcome.failure) == (right, ""), program
        assert outcome.answer == ("4" if right else "")


def test_without_walls_no_program_of_a_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(run.containment(), level="none", lacks="bubblewrap is not installed")
    monkeypatch.setattr(run, "containment", lambda: bare)
    with pytest.raises(
        RelgradError, match=r"search.programs: generated code is not executed here.*bubblewrap is not installed"
    ):
        Sandboxed()
