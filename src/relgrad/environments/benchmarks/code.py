"""A program against tests, both in the sandbox, and apart: the tests never share a process with what they test.

The program runs in one guest and the tests in another. A test that calls the program's function asks the parent, who passes the
question on and the answer back, as plain data. So the program can neither read the tests nor say that it passed them; nor can an
object that it returns be equal to everything. Exceptions travel by the name of the built-in kind they are; lists, mappings and sets
that the function changed in place come back with the answer.

Tests that use more of the program than one function (its classes, say), or hand it more than plain data (a function, say), cannot
be apart from it: they run `together` in one guest, where a program could say that it passed. The verdict tells which it was. What
a program returns does not bring it together with its tests: where its value is more than plain data, tests that fail are tried
together as well, and where they pass there nobody knows who is right.
"""

from __future__ import annotations

import builtins
import queue
import symtable
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relgrad.environments.benchmarks.completion import Program
from relgrad.environments.sandbox.outcome import Outcome
from relgrad.environments.sandbox.run import Job, Refused, Sandbox, side_by_side

LOST = ("not run", "call failed")

EXACT = """
from relgrad.environments.sandbox.values import pack

PLAIN = {type(None), bool, int, float, complex, str, bytes, range}

def exact(value):
    if type(value) in (list, tuple, set, frozenset):
        return all(map(exact, value))
    if type(value) is dict:
        return all(exact(key) and exact(item) for key, item in value.items())
    return type(value) in PLAIN
"""
"""In both guests: whether a value arrives on the other side as what it is, not as a more general kind of data."""

ANSWERING = """
from copy import deepcopy

def _serve():
    answer = None
    while True:
        try:
            question = call("next", answer=answer)
        except MemoryError:
            raise
        except Exception as error:
            answer = {"blocked": f"{type(error).__name__}: {error}"[:500]}
            continue
        if question is None:
            return
        answer = answered(*question)

def answered(name, arguments, keywords):
    before = deepcopy((arguments, keywords))
    try:
        value = names[name](*arguments, **keywords)
        answer = {"value": value, "exact": exact(value)}
    except Exception as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        answer = {"error": kind.__name__, "message": str(error)[:500]}
    if before != (arguments, keywords):
        answer["left"] = [arguments, keywords]
    return answer
"""
"""Before the program, in its guest: answer questions until there are no more."""

TESTING = """
import builtins

doubts = set()

def asked(name):
    def function(*arguments, **keywords):
        if not exact([arguments, keywords]):
            doubts.add("arguments")
        answer = call("ask", name=name, arguments=list(arguments), keywords=keywords)
        if "blocked" in answer:
            doubts.add("value")
            raise TypeError(answer["blocked"])
        if "left" in answer:
            left, named = answer["left"]
            for held, now in [*zip(arguments, left), *((keywords[key], named.get(key)) for key in keywords)]:
                renew(held, now)
        if "error" in answer:
            raise error_of(answer["error"])(answer["message"])
        if not answer["exact"]:
            doubts.add("value")
        return answer["value"]
    return function

def renew(held, now):
    if type(held) is tuple and type(now) is tuple:
        for pair in zip(held, now):
            renew(*pair)
    elif type(held) is list and type(now) is list:
        held[:] = now
    elif type(held) is type(now) and type(held) in (dict, set):
        held.clear()
        held.update(now)

def error_of(name):
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, faults):
        return kind
    return RuntimeError

faults = (MemoryError, ModuleNotFoundError)

def _test(name, apart, statements):
    if apart:
        names[name] = asked(name)
    passed, message = [], ""
    for statement in statements:
        try:
            exec(statement, names)
        except Exception as error:
            if apart and isinstance(error, faults):
                raise
            passed.append(max(doubts, default=False))
            message = message or f"{type(error).__name__}: {error}"[:500]
        else:
            passed.append(True)
    return passed, message
"""
"""Before the tests, in theirs: the function that asks, and each test by itself.

A test that fails after something crossed that is more than plain data is marked with what it was: "value", or else "arguments".
Failures that are the tests' own end them.
"""


def _before(text: str, entry: str) -> str:
    """A prelude that executes `text` among names of its own, so that nothing in the program or the tests takes their place."""
    return f"_own = {{'call': call, 'names': globals()}}\nexec({EXACT + text!r}, _own)\n{entry} = _own.pop({entry!r})\ndel _own\n"


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
    message   what was wrong first, for people
    error     how the program ended, where it did before the tests did
    lost      why nobody knows whether the tests pass, "" where somebody does
    together  whether tests and program shared a process
    """

    passed: tuple[bool, ...] = ()
    message: str = ""
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
    read, made = set[str](), set(dir(builtins))
    tables = [symtable.symtable("\n".join((tests.setup, *tests.statements)), "<tests>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if not (symbol.is_global() or table.get_type() == "module"):
                continue
            if symbol.is_referenced():
                read.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported():
                made.add(symbol.get_name())
    return read - made


# ---------------------------------------------------------------------- apart


class _Answerer:
    """The program's guest, which a thread of its own serves while the tests run."""

    def __init__(self, sandbox: Sandbox, program: Program) -> None:
        self._questions: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outcome: Outcome | None = None
        job = Job(program.text, {}, {"next": self._next}, _before(ANSWERING, "_serve") + program.before, "_serve")
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
        case {"value": _, "exact": bool(), **rest} | {"error": str(), "message": str(), **rest}:
            return not rest or _is_left(rest)
        case {"blocked": str(), **rest}:
            return not rest
    return False


def _is_left(rest: Mapping[Any, Any]) -> bool:
    match rest:
        case {"left": [list(), dict()], **others}:
            return not others
    return False


def _apart(sandbox: Sandbox, program: Program, tests: Checks, name: str) -> Verdict:
    inputs = {"name": name, "apart": True, "statements": list(tests.statements)}
    answerer = _Answerer(sandbox, program)
    try:
        tested = sandbox.run(Job(tests.setup, inputs, {"ask": answerer.ask}, _before(TESTING, "_test"), "_test"))
    finally:
        ended = answerer.end()
    if ended.error in LOST or tested.error in LOST:
        return Verdict(lost=ended.message if ended.error in LOST else tested.message)
    if tested.error == "refused call" and len(tested.calls) + 1 >= sandbox.settings.calls:
        return Verdict(lost=f"the tests ask more than the {sandbox.settings.calls} questions that `calls` allows")
    if ended.error is not None:
        return Verdict(message=ended.message, error=ended.error)
    if tested.error is not None:
        return Verdict(lost=f"the tests cannot be executed: {tested.message}")
    passed, message = _marks(tested.value, len(tests.statements), MARKS)
    if "value" in passed or "arguments" in passed:
        return _decided(passed, _together(sandbox, program, tests))
    return Verdict(passed, message)


def _decided(marks: tuple[Any, ...], whole: Verdict) -> Verdict:
    """The verdict where some tests failed apart and something had crossed that is more than plain data.

    marks  what they came to apart
    whole  what they came to together with the program, which counts where it is due to the tests' arguments. Where it is due to
           the program's value, only failures count
    """
    if whole.lost or whole.error is not None:
        return whole
    pairs = list(zip(marks, whole.passed, strict=True))
    if ("value", True) in pairs:
        return Verdict(
            lost="what the program returns is more than plain data, and only together with it the tests pass"
        )
    passed = tuple(mark if isinstance(mark, bool) else one for mark, one in pairs)
    return Verdict(passed, whole.message, together=True)


# ---------------------------------------------------------------------- together


def _together(sandbox: Sandbox, program: Program, tests: Checks) -> Verdict:
    inputs = {"name": "", "apart": False, "statements": [tests.setup, *tests.statements]}
    tested = sandbox.run(Job(program.text, inputs, {}, _before(TESTING, "_test") + program.before, "_test"))
    if tested.error in LOST:
        return Verdict(lost=tested.message, together=True)
    if tested.error is not None:
        return Verdict(message=tested.message, error=tested.error, together=True)
    passed, message = _marks(tested.value, 1 + len(tests.statements), (True, False))
    if not passed:
        return Verdict(message="the tests were tampered with", error="forged", together=True)
    setup, *rest = passed
    return Verdict(tuple(setup and one for one in rest), message, together=True)


MARKS = (True, False, "arguments", "value")


def _marks(value: Any, count: int, allowed: tuple[Any, ...]) -> tuple[tuple[Any, ...], str]:
    """Of tests that came to an end: `count` marks and a text. Whoever wrote the message, no marks where it is anything else."""
    match value:
        case (list(passed), str(message)) if len(passed) == count and all(
            isinstance(one, (bool, str)) and one in allowed for one in passed
        ):
            return tuple(passed), message
    return (), ""


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
