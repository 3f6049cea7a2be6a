"""A workflow that is a Python program of the operators, executed in the sandbox: the parent asks the model its questions.

The program defines `async def workflow(operators)`, as compiled.py writes it, and returns a solution. Inside, an operator is a call
over the sandbox's channel; here, it is the same operator that workflows of the language use. So a program has no key, no network
and no way to a model but these operators, whose questions are counted and limited like all others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from relgrad.backends.protocol import CallFailed
from relgrad.core.errors import RelgradError
from relgrad.environments.sandbox.run import Job, Refused, Sandbox
from relgrad.environments.workflows.execute import Outcome
from relgrad.environments.workflows.operators import Operators, Solution
from relgrad.environments.workflows.problem import rightness

INSIDE = """
from collections import namedtuple

Solution = namedtuple("Solution", "text objection", defaults=(None,))

class _Operators:
    def __init__(self, call):
        self._call = call

    def __getattr__(self, name):
        async def operator(*arguments):
            answer = self._call("operator", name=name, arguments=list(arguments))
            return Solution(*answer) if isinstance(answer, tuple) else answer
        return operator

def _workflow(operators=_Operators(call)):
    return workflow(operators)
"""
"""Before the program, in its guest."""

WIDEST = 32
"""Solutions that one ensemble may have."""


def read(path: Path) -> str:
    """The text of a program. Raises RelgradError for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RelgradError(f"workflow {str(path)!r} cannot be read: {error}") from None


async def execute_program(text: str, operators: Operators, sandbox: Sandbox) -> Outcome:
    """Run a program. Raises CallFailed only where every other call would fail too.

    One that breaks off, or returns no solution, has no answer, which is wrong where the right one is known; `failure` says why.
    One for which a call failed is unscored.
    """
    loop = asyncio.get_running_loop()
    failed: list[CallFailed] = []

    def operator(name: Any, arguments: Any) -> Any:
        question = _question(operators, name, arguments)
        try:
            answer = asyncio.run_coroutine_threadsafe(question, loop).result()
        except CallFailed as failure:
            failed.append(failure)
            raise
        return (answer.text, answer.objection) if isinstance(answer, Solution) else answer

    ended = await asyncio.to_thread(sandbox.run, Job(text, {}, {"operator": operator}, INSIDE, "_workflow"))
    if failed and failed[0].fatal:
        raise failed[0]
    calls = tuple(operators.calls)
    if ended.error is not None:
        why = str(failed[0]) if failed else f"{ended.error}: {ended.message}"
        return Outcome("", math.nan if ended.unscored else rightness(operators.problem, ""), calls, why)
    try:
        answer = _solution(ended.value).answer
    except Refused:
        return Outcome("", rightness(operators.problem, ""), calls, "the program returned no solution")
    return Outcome(answer, rightness(operators.problem, answer), calls)


def _question(operators: Operators, name: Any, arguments: Any) -> Any:
    """The coroutine of an operator. Raises Refused for one that is none, and for arguments that it does not take."""
    if not isinstance(name, str):
        raise Refused(f"the name of an operator is a text (received {type(name).__name__})")
    if name not in OPERATORS:
        raise Refused(f"no operator {name[:40]!r}; there are {', '.join(OPERATORS)}")
    if not isinstance(arguments, list):
        raise Refused(f"the arguments of {name} are a list (received {type(arguments).__name__})")
    method, kinds = OPERATORS[name]
    if len(arguments) != len(kinds):
        raise Refused(f"{name} takes {len(kinds)} arguments (received {len(arguments)})")
    return method(operators, *(kind(value) for kind, value in zip(kinds, arguments, strict=True)))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Refused(f"a prompt and a place are texts (received {type(value).__name__})")


def _solution(value: Any) -> Solution:
    match value:
        case (str(text), str() | None as objection):
            return Solution(text, objection)
    raise Refused(f"no solution of an operator (received {type(value).__name__})")


def _solutions(value: Any) -> list[Solution]:
    if isinstance(value, list) and 0 < len(value) <= WIDEST:
        return [_solution(item) for item in value]
    raise Refused(f"an ensemble takes a list of 1 to {WIDEST} solutions")


OPERATORS: dict[str, tuple[Callable[..., Awaitable[Any]], tuple[Callable[[Any], Any], ...]]] = {
    "generate": (Operators.generate, (_text, _text)),
    "program": (Operators.program, (_text, _text)),
    "ensemble": (Operators.ensemble, (_solutions, _text)),
    "review": (Operators.review, (_solution, _text, _text)),
    "revise": (Operators.revise, (_solution, _text, _text)),
    "verify": (Operators.verify, (_solution, _text)),
    "test": (Operators.test, (_solution,)),
    "format": (Operators.format, (_solution, _text, _text)),
    "extract": (Operators.extract, (_solution,)),
}
"""What a program may call, and what each argument must be."""
