"""Generated code in the sandbox: what comes of it, what it may call, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from relgrad.commands import doctor
from relgrad.core.errors import RelgradError
from relgrad.environments.sandbox import machine
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.outcome import Outcome
from relgrad.environments.sandbox.run import Job, Refused, Sandbox
from relgrad.environments.sandbox.values import pack, unpack
from sandboxes import gone, guests, needs_walls


def program(text: str) -> str:
    return textwrap.dedent(text)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(SandboxSettings(seconds=30, cpu_seconds=5, printed_kb=1, calls=3, message_kb=4, depth=6))


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**63), 2**64 + 1, 10**5000, 1.5, float("inf"), "a\u2028\ud800", b"\0\xff", [], [[1], "x"], (1, (2,)),
        {"a": {"$": 1}}, {1: "x", (2, 3): [4]}, {1, 2}, frozenset({"a"}), 1 + 2j, range(1, 9, 3), {"$": 2},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    again = unpack(pack(value))
    assert again == value
    assert type(again) is type(value)


def test_what_is_no_plain_data_is_refused_at_both_ends() -> None:
    assert list(unpack(pack(iter([1, 2])))) == [1, 2]
    assert unpack(pack({1: 2}.keys())) == (1,)
    for value in (object(), [print], type("Own", (), {})()):
        with pytest.raises(TypeError, match="no plain data"):
            pack(value)
    for data in (
        {"$": "tuple"},
        {"$": "type", "v": []},
        {"$": "set", "v": [[]]},
        {"$": "int", "v": "zz"},
        {"$": "bytes", "v": 3},
        {"$": "range", "v": 3},
        {"$": ["tuple"], "v": []},
        {"$": "dict", "v": [1]},
        {"$": "set", "v": list(range(20_000))},
    ):
        with pytest.raises(ValueError, match=r"."):
            unpack(data)


# ---------------------------------------------------------------------- outcomes

ENDS: dict[str, tuple[str, str, str]] = {
    "does not parse": ("def main(:", "syntax", r"SyntaxError: invalid syntax"),
    "raises": ("def main():\n    return 1 / 0", "exception", r"ZeroDivisionError: division by zero \(line 2\)"),
    "raises while it is loaded": ("import no_such_module", "exception", r"No module named 'no_such_module' \(line 1\)"),
    "compiles something wrong": ("def main():\n    eval('(')", "exception", r"'\(' was never closed"),
    "raises half a character": ("def main(): raise ValueError('\\ud800')", "exception", r"ValueError: \\ud800"),
    "leaves": ("import sys\ndef main(): sys.exit(0)", "exception", r"SystemExit: 0"),
    "has no function": ("x = 1", "exception", r"defines no function 'main'"),
    "returns an object": ("def main(): return object()", "no data", r"a value of type object is no plain data"),
    "returns itself": ("def main():\n    x = []\n    x.append(x)\n    return x", "no data", r"RecursionError"),
    "returns too deep": ("def main(): return [[[[[[[[]]]]]]]]", "no data", r"more than 6 deep"),
    "returns too much": ("def main(): return 'x' * 5000", "no data", r"5002 bytes, more than 4096"),
    "wants too much": ("def main(): return len(bytearray(10**9))", "memory", r"more memory than it may have"),
    "ends its process": ("import os\ndef main(): os._exit(0)", "crash", r"exit code 0 and without a value"),
    "is killed": ("import os\ndef main(): os.kill(os.getpid(), 9)", "crash", r"killed by SIGKILL"),
    "reads a wild address": ("import ctypes\ndef main(): ctypes.string_at(0)", "crash", r"killed by SIGSEGV"),
}


@pytest.fixture(scope="module")
def ends(sandbox: Sandbox) -> dict[str, Outcome]:
    return dict(zip(ENDS, sandbox.run_all([Job(text) for text, _, _ in ENDS.values()], parallel=4), strict=True))


@needs_walls
@pytest.mark.parametrize("name", ENDS)
def test_an_end_without_a_value_has_a_name_and_says_why(ends: dict[str, Outcome], name: str) -> None:
    outcome = ends[name]
    _, error, message = ENDS[name]
    assert outcome.error == error, outcome.message
    assert outcome.value is None, "what went wrong is never an answer"
    assert not outcome.unscored
    assert re.search(message, outcome.message), outcome.message


@needs_walls
def test_a_value_and_what_was_printed(sandbox: Sandbox) -> None:
    text = """
        import sys

        def main(x, more):
            print("é" * 3000)
            print("to standard error", file=sys.stderr)
            return {x: (more, {1.5})}
    """
    outcome = sandbox.run(Job(program(text), {"x": 7, "more": b"\0"}))
    assert outcome.error is None, outcome.message
    assert outcome.value == {7: (b"\0", {1.5})}
    assert outcome.printed == "é" * 512, "1 kB is kept"
    assert outcome.level == "full"
    awaited = sandbox.run(Job("import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    return 5"))
    assert awaited.value == 5


@needs_walls
def test_what_comes_before_the_program_and_which_function_is_called(sandbox: Sandbox) -> None:
    before = "def ask(x):\n    return call('double', x=x)\n"
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Point:\n    x: int\n\n"
    job = Job(text + "def solve():\n    return ask(Point(4).x)", {}, {"double": lambda x: 2 * x}, before, "solve")
    assert sandbox.run(job).value == 8


# ---------------------------------------------------------------------- calls


@needs_walls
def test_calls_are_answered_counted_and_recorded(sandbox: Sandbox) -> None:
    threads = []

    def double(x: int, times: int = 1) -> tuple[int, ...]:
        threads.append(threading.current_thread())
        return (2 * x,) * times

    text = "def main():\n    return [call('double', x=n, times=n) for n in range(1, 4)]"
    outcome = sandbox.run(Job(text, calls={"double": double}))
    assert outcome.value == [(2,), (4, 4), (6, 6, 6)]
    assert [(call.name, call.arguments, call.value) for call in outcome.calls] == [
        ("double", {"x": n, "times": n}, (2 * n,) * n) for n in (1, 2, 3)
    ]
    assert set(threads) == {threading.current_thread()}


def _refuse() -> None:
    raise Refused("the budget is spent")


def _fail() -> None:
    raise ConnectionError("endpoint down")


REFUSALS: dict[str, tuple[str, str, str]] = {
    "not in the table": ("call('other')", "refused call", r"no call 'other'; allowed: ok, refuse, fail, object"),
    "wrong arguments": (
        "call('ok', x=1)",
        "refused call",
        r"ok: .*unexpected keyword argument 'x'|ok: got an unexpected",
    ),
    "too many": ("[call('ok') for _ in range(10**9)]", "refused call", r"more than 3 calls"),
    "too large": ("call('ok', x='x' * 10**6)", "refused call", r"more than 5,120 \(message_kb\)"),
    "too deep": ("call('ok', x=[[[[[[[[]]]]]]]])", "refused call", r"more than 6 deep"),
    "beyond a budget": ("call('refuse')", "refused call", r"the budget is spent"),
    "caught by the program": ("[call('refuse') for _ in iter(int, 1)]", "refused call", r"the budget is spent"),
    "failing": ("call('fail')", "call failed", r"fail: ConnectionError: endpoint down"),
    "answered with no data": ("call('object')", "call failed", r"no plain data"),
}


@needs_walls
def test_calls_that_end_a_program(sandbox: Sandbox) -> None:
    table: dict[str, Callable[..., Any]] = {"ok": lambda: 1, "refuse": _refuse, "fail": _fail, "object": object}
    body = "def main():\n    try:\n        {}\n    except BaseException:\n        return 1"
    jobs = [Job(body.format(text), {}, table) for text, _, _ in REFUSALS.values()]
    for (name, (_, error, message)), outcome in zip(REFUSALS.items(), sandbox.run_all(jobs, 4), strict=True):
        assert (outcome.error, outcome.value) == (error, None), (name, outcome.message)
        assert re.search(message, outcome.message), (name, outcome.message)
        assert outcome.unscored == (error == "call failed")


@needs_walls
def test_the_clock_stands_while_the_parent_answers() -> None:
    """The wait for an event of this process takes longer than the program may."""
    patient, quick = Sandbox(SandboxSettings(seconds=2)), Sandbox(SandboxSettings(seconds=0.2))
    event = threading.Event()
    outcome = patient.run(Job("def main():\n    return call('slow')", {}, {"slow": lambda: event.wait(3)}))
    assert (outcome.error, outcome.value) == (None, False)
    late = quick.run(Job("import time\ndef main():\n    time.sleep(600)"))
    assert (late.error, late.message) == ("timeout", "no value within 0.2 s")


# ---------------------------------------------------------------------- nothing is left


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _left(count: int, sandbox: Sandbox, folder: Path) -> None:
    """Evaluations of all kinds leave no process, thread, file or descriptor."""
    kinds = [Job(text) for text in ("def main(): return 1", "def main(): 1/0", "def main(): return call('x')", "x = (")]
    kinds.append(Job("import os\ndef main():\n    open('/tmp/x', 'w').write('x')\n    os.abort()"))
    sandbox.run_all(kinds, 2)  # what is imported once is there
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    children = set(psutil.Process().children(recursive=True))
    outcomes = sandbox.run_all([kinds[number % len(kinds)] for number in range(count)], 2)
    assert [one.error for one in outcomes[:5]] == [None, "exception", "refused call", "syntax", "crash"]
    assert {one.error for one in outcomes} == {None, "exception", "refused call", "syntax", "crash"}
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads
    assert list(folder.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= children


@needs_walls
def test_evaluations_leave_nothing_behind(sandbox: Sandbox, temporary: Path) -> None:
    _left(25, sandbox, temporary)


@needs_walls
@pytest.mark.slow
def test_a_thousand_evaluations_leave_nothing_behind(sandbox: Sandbox, temporary: Path) -> None:
    _left(1000, sandbox, temporary)


@needs_walls
def test_programs_die_with_the_parent() -> None:
    text = """
        import sys
        from relgrad.environments.sandbox.limits import SandboxSettings
        from relgrad.environments.sandbox.run import Job, Sandbox

        program = '''
        import os, time
        def main():
            os.fork()
            os.setsid()
            call("started")
            time.sleep(600)
        '''
        Sandbox(SandboxSettings(seconds=600, processes=4)).run(Job(program, {}, {"started": lambda: print("started", flush=True)}))
    """
    with subprocess.Popen([sys.executable, "-c", program(text)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        started = [one for one in guests() if parent.pid in (ancestor.pid for ancestor in one.parents())]
        assert len(started) >= 3, "bubblewrap, its first process, and the program"
        parent.send_signal(signal.SIGKILL)
    assert gone(started)


# ---------------------------------------------------------------------- machines


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Looks at the machine again, with another PATH."""

    def look(path: str) -> None:
        monkeypatch.setenv("PATH", path)
        machine.containment.cache_clear()

    yield look
    monkeypatch.undo()
    machine.containment.cache_clear()


def test_without_walls_generated_code_is_refused_unless_the_recipe_allows_it(
    bare: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare(str(tmp_path))
    with pytest.raises(
        RelgradError, match=r"(?s)not executed here.*bubblewrap is not installed.*apt-get install bubblewrap"
    ):
        Sandbox(SandboxSettings())
    allowed = Sandbox(SandboxSettings(allow_unsafe=True, cpu_seconds=1))
    outcome = allowed.run(Job("def main(x): return x + 1", {"x": 1}))
    assert (outcome.value, outcome.level) == (2, "none"), outcome.message
    assert "generated code is executed at level 'none', which does not contain it: bubblewrap is not" in caplog.text
    assert allowed.run(Job("while True: pass")).error == "timeout"
    check = doctor.sandbox()
    assert (check.state, check.fix) == ("note", machine.INSTALL)
    assert "level none" in check.detail
    assert "bubblewrap is not installed" in check.detail


def test_walls_that_cannot_be_made_are_no_walls(bare: Callable[[str], None], tmp_path: Path) -> None:
    for name in ("bwrap", "setpriv"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    bare(str(tmp_path))
    found = machine.containment()
    assert found.level == "none"
    assert found.lacks == "bubblewrap cannot make its walls here (No permissions to create new namespace)"


@needs_walls
def test_without_the_filter_the_level_is_lower(bare: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bare(os.environ["PATH"])
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    machine.system_calls.program.cache_clear()
    found = machine.containment()
    machine.system_calls.program.cache_clear()
    assert found.level == "namespaces"
    assert found.lacks.startswith("system calls cannot be filtered (ModuleNotFoundError")
    with pytest.raises(RelgradError, match="system calls cannot be filtered"):
        Sandbox(SandboxSettings())
    assert Sandbox(SandboxSettings(allow_unsafe=True)).run(Job("def main(): return 3")).level == "namespaces"


@needs_walls
def test_the_doctor_shows_the_level() -> None:
    check = doctor.sandbox()
    assert check.state == "ok"
    assert check.detail.startswith("level full (bubblewrap: ")


@needs_walls
def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    (text,) = re.findall(r'^```python title="sandboxed.py"\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    exec(text.replace("cpu_seconds=2", "cpu_seconds=1"), {})
    assert capsys.readouterr().out.splitlines()[1] == r"[2, 2] None 'thinking\n' 2 full"
