"""A program against tests, both in the sandbox, and apart: the tests never share a process with what they test.

The program runs in one guest and the tests in another. A test that calls the program's function asks the parent, who passes the
question on and the answer back, as plain data. So the program can neither read the tests nor say that it passed them; nor can an
object that it returns be equal to everything. Exceptions travel by name. What a function does to its arguments in place stays on
its side of the wall.

Tests that use more of the program than one function (its classes, say) cannot be apart from it: they run `together` in one guest,
where a program could say that it passed. The verdict tells which it was.
"""

from __future__ import annotations

import ast
import builtins
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relgrad.environments.benchmarks.completion import Program
from relgrad.environments.sandbox.outcome import Outcome
from relgrad.environments.sandbox.run import Job, Refused, Sandbox, side_by_side

LOST = ("not run", "call failed")

ANSWERING = """
def _serve(call=call):
    answer = None
    while (question := call("next", answer=answer)) is not None:
        name, arguments, keywords = question
        try:
            answer = {"value": globals()[name](*arguments, **keywords)}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)[:500]}
"""
"""Before the program, in its guest: answer questions until there are no more."""

TESTING = """
def _asked(name, call=call):
    def function(*arguments, **keywords):
        answer = call("ask", name=name, arguments=list(arguments), keywords=keywords)
        if "error" in answer:
            raise _error(answer["error"])(answer["message"])
        return answer["value"]
    return function

def _error(name):
    import builtins
    kind = getattr(builtins, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError

def _test(name, apart, statements):
    names = globals()
    if apart:
        names[name] = _asked(name)
    passed, said = [], ""
    for statement in statements:
        try:
            exec(statement, names)
        except Exception as error:
            passed.append(False)
            said = said or f"{type(error).__name__}: {error}"[:500]
        else:
            passed.append(True)
    return passed, said
"""
"""Before the tests, in theirs: the function that asks, and each test by itself."""


@dataclass(frozen=True)
class Checks:
    """What a program is tested by.

    setup       text that is executed before the tests
    statements  each a test by itself: it passes where it raises nothing
    function    the name of the program's function; None: the one name in the tests that nothing else explains
    """

    setup: str
    statements: Sequence[str]
    function: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the tests say.

    passed    one truth value per test; empty where the tests did not come to an end
    said      what was wrong first, for people
    error     how the program ended, where it did before the tests did
    lost      why nobody knows whether the tests pass, "" where somebody does
    together  whether tests and program shared a process
    """

    passed: tuple[bool, ...] = ()
    said: str = ""
    error: str | None = None
    lost: str = ""
    together: bool = False

    @property
    def right(self) -> bool:
        return bool(self.passed) and all(self.passed)


def judge_all(sandbox: Sandbox, pairs: Sequence[tuple[Program, Checks]]) -> list[Verdict]:
    """The verdict of every program, several side by side."""
    return side_by_side(lambda pair: judge(sandbox, *pair), pairs)


def judge(sandbox: Sandbox, program: Program, tests: Checks) -> Verdict:
    """Run the tests. What is wrong with the tests themselves is lost, not failed."""
    try:
        free = _free(tests)
    except (SyntaxError, ValueError) as error:
        return Verdict(lost=f"the tests do not parse: {error}")
    names = [tests.function] if tests.function else sorted(free)
    if not names:
        return Verdict(lost="the tests call no function of the program")
    if len(names) > 1:
        return _together(sandbox, program, tests)
    return _apart(sandbox, program, tests, names[0])


def _free(tests: Checks) -> set[str]:
    """Names that setup and tests read and nothing there defines, which the program is to define."""
    tree = ast.parse("\n".join((tests.setup, *tests.statements)))
    read, made = set[str](), set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                made.add(name)
            case ast.alias(name=name, asname=other):
                made.add(other or name.partition(".")[0])
    return read - made


# ---------------------------------------------------------------------- apart


class _Answerer:
    """The program's guest, which a thread of its own serves while the tests run."""

    def __init__(self, sandbox: Sandbox, program: Program) -> None:
        self._questions: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outcome: Outcome | None = None
        job = Job(program.text, {}, {"next": self._next}, f"{ANSWERING}\n{program.before}", "_serve")
        self._thread = threading.Thread(target=self._run, args=(sandbox, job), daemon=True, name="relgrad-program")
        self._thread.start()

    def ask(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """The function's answer. Raises Refused where the program has ended."""
        if self.outcome is None:
            self._questions.put((name, arguments, keywords))
            answer = self._answers.get()
            if answer is not None:
                return answer
        raise Refused("the program has ended")

    def end(self) -> Outcome:
        """Ask no more, and say how the program ended."""
        self._questions.put(None)
        self._thread.join()
        assert self.outcome is not None
        return self.outcome

    def _next(self, answer: Any) -> tuple[Any, ...] | None:
        if answer is not None:
            if not _is_answer(answer):
                raise Refused("an answer that is none")
            self._answers.put(answer)
        return self._questions.get()

    def _run(self, sandbox: Sandbox, job: Job) -> None:
        try:
            self.outcome = sandbox.run(job)
        except BaseException as error:
            self.outcome = Outcome(error="not run", message=f"{type(error).__name__}: {error}")
        finally:
            self._answers.put(None)


def _is_answer(answer: Any) -> bool:
    match answer:
        case {"value": _, **rest} if not rest:
            return True
        case {"error": str(), "message": str(), **rest} if not rest:
            return True
    return False


def _apart(sandbox: Sandbox, program: Program, tests: Checks, name: str) -> Verdict:
    inputs = {"name": name, "apart": True, "statements": list(tests.statements)}
    answerer = _Answerer(sandbox, program)
    try:
        tested = sandbox.run(Job(tests.setup, inputs, {"ask": answerer.ask}, TESTING, "_test"))
    finally:
        ended = answerer.end()
    if ended.error in LOST or tested.error in LOST:
        return Verdict(lost=ended.message if ended.error in LOST else tested.message)
    if ended.error is not None:
        return Verdict(said=ended.message, error=ended.error)
    return _verdict(tested, len(tests.statements), together=False)


# ---------------------------------------------------------------------- together


def _together(sandbox: Sandbox, program: Program, tests: Checks) -> Verdict:
    inputs = {"name": "", "apart": False, "statements": [tests.setup, *tests.statements]}
    tested = sandbox.run(Job(program.text, inputs, {}, f"{TESTING}\n{program.before}", "_test"))
    if tested.error in LOST:
        return Verdict(lost=tested.message, together=True)
    if tested.error is not None:
        return Verdict(said=tested.message, error=tested.error, together=True)
    verdict = _verdict(tested, 1 + len(tests.statements), together=True)
    setup, *passed = verdict.passed or (False,)
    return Verdict(tuple(setup and one for one in passed), verdict.said, verdict.error, verdict.lost, True)


def _verdict(tested: Outcome, count: int, together: bool) -> Verdict:
    """Of tests that came to an end, or did not. Whoever wrote the message, it is `count` truth values and a text, or nothing."""
    if tested.error in ("syntax", "exception"):
        return Verdict(lost=f"the tests cannot be executed: {tested.message}", together=together)
    if tested.error is not None:
        return Verdict(said=f"the tests: {tested.message}", error=tested.error, together=together)
    match tested.value:
        case (list(passed), str(said)) if len(passed) == count and all(isinstance(one, bool) for one in passed):
            return Verdict(tuple(passed), said, together=together)
    return Verdict(said="the tests were tampered with", error="forged", together=together)


def checks_of(columns: Mapping[str, Any], function: str | None) -> Checks | None:
    """The tests in a row: `tests` is a list of statements, or a text that defines `check(function)` as HumanEval's do.

    None where it is neither.
    """
    setup = columns.get("setup") or ""
    match columns.get("tests"):
        case str(text) if text.strip() and function:
            return Checks(f"{setup}\n{text}", [f"check({function})"], function)
        case [*statements] if statements and all(isinstance(one, str) for one in statements):
            return Checks(setup, statements, function)
    return None
