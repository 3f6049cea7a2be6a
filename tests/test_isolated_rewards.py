"""Rewards in a process of their own: what they answer, how they are ended, and that no process is left over."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from relgrad.core.errors import RelgradError
from relgrad.core.settings import RewardComponent
from relgrad.core.types import Output, Prompt, RewardTable, Score
from relgrad.rewards import _child
from relgrad.rewards._answers import Group, Unanswered
from relgrad.rewards._calling import Caller
from relgrad.rewards._process import Order, Ready, _Life
from relgrad.rewards.combine import Isolated, RewardSet
from relgrad.runs.build import build_rewards
from test_rewards import rollouts

MINE = '''
import os, subprocess, threading, time
from pathlib import Path

with open("executed", "a") as log:
    log.write("x")

def act(completions, what, log_metric, **columns):
    """Answers with its process."""
    if what[0] == "fails":
        raise ValueError("quotes " + os.environ["NAMED_BY_A_RECIPE"])
    if what[0] == "dies":
        os._exit(3)
    if what[0] == "hangs":
        started = subprocess.Popen(["sleep", "600"])
        Path("hanging").write_text(f"{os.getpid()} {started.pid}")
        time.sleep(600)
    log_metric("main_thread", float(threading.current_thread() is threading.main_thread()))
    return [float(os.getpid())] * len(completions)

def keyed(secret):
    return act
'''


def component(function: str, **options: object) -> RewardComponent:
    return RewardComponent.model_validate({"kind": "function", "function": function, "isolate": "process", **options})


def answers(rewards: RewardSet, *what: str) -> RewardTable:
    return rewards(rollouts(*((Prompt("x", {"what": w}), ["a"]) for w in what)))


def gone(*processes: int) -> bool:
    """Whether they have ended, or do within a minute."""
    until = time.monotonic() + 60
    while alive := [p for p in processes if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return not alive


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAMED_BY_A_RECIPE", "not-to-be-told")
    return tmp_path


def test_a_reward_in_a_process_of_its_own(folder: Path) -> None:
    rewards = build_rewards([component("mine.py:keyed", arguments={"secret": "env:NAMED_BY_A_RECIPE"})], 2.0)
    assert rewards.names == ("keyed",)
    first = answers(rewards, "", "fails", "")
    process = int(first.value_BR[0, 0])
    assert process != os.getpid()
    assert first.value_BR[2, 0] == process
    assert first.parts[0] == {"keyed/main_thread": 1}
    assert first.why[1].startswith("keyed: ValueError: quotes [redacted] (mine.py:"), "its own line, and no secret"
    assert 'raise ValueError("quotes' in first.trace

    hung = answers(rewards, "hangs", "")
    assert hung.why[0] == "keyed: no answer within 2 s"
    assert gone(*map(int, (folder / "hanging").read_text().split())), "what it had started is ended with it"
    fresh = int(hung.value_BR[1, 0])
    assert fresh not in (process, os.getpid()), "the next call gets a fresh one"
    assert (folder / "executed").read_text() == "xx", "the file is executed once in every process, and not in this one"

    with pytest.raises(
        RelgradError, match=r"reward 'keyed': isolate: process sends prompts .* a column cannot be sent"
    ):
        rewards(rollouts((Prompt("x", {"what": "", "more": lambda: None}), ["a"])))
    died = answers(rewards, "dies")
    assert died.why == ("keyed: its process ended with exit code 3",)
    rewards.close()
    assert gone(process, fresh)


def test_coroutines_in_a_process_run_together_and_are_cancelled_one_by_one() -> None:
    running: list[str] = []

    async def together(completions: list[str], what: list[str]) -> list[float]:
        running.append(what[0])
        while len(running) < 2:
            await asyncio.sleep(0.001)
        if what[0] == "hangs":
            await asyncio.sleep(600)
        return [1.0 for _ in completions]

    here, there = multiprocessing.Pipe()
    process = threading.Thread(target=_child._answer_all, args=(there, Caller("together", together), 0.3))
    process.start()
    here.send((0, [Group(Prompt("x", {"what": what}), [Output("a")]) for what in ("hangs", "")]))
    answer = here.recv()
    assert answer == [Unanswered("no answer within 0.3 s", hung=True), [Score(1.0)]]
    here.send((0, [Group(Prompt("x"), [Output("a")])]))
    assert "the dataset has no column 'what'" in here.recv().message
    here.close()
    process.join()


HELD = """
import os, re, subprocess, sys
from relgrad.core.lifeline import end_with
end_with(int(sys.argv[3]))
started = subprocess.Popen(["sleep", "600"])
open("writing", "w").write(f"{os.getpid()} {started.pid}")
os.rename("writing", "hanging")
re.match(r"(a+)+$", "a" * 64 + "b")  # holds the interpreter, which no handler can interrupt
"""


def test_no_process_outlives_the_one_that_started_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while what it started holds its interpreter, so that only the kernel can end it."""
    monkeypatch.setattr("relgrad.rewards._process.START", HELD)

    def work() -> None:
        held = _Life(built("mine.py:act"))
        held.process.wait()

    run = multiprocessing.get_context("fork").Process(target=work)
    run.start()
    while not (folder / "hanging").is_file():
        assert run.is_alive()
        time.sleep(0.02)
    os.kill(run.pid or 0, signal.SIGKILL)
    run.join()
    assert gone(*map(int, (folder / "hanging").read_text().split()))


def built(function: str, **options: object) -> Order:
    return Order("mine", Isolated("function", {"function": function, **options}, "rewards.0"), 1.0)


def test_what_goes_wrong_in_building_is_told(folder: Path) -> None:
    (folder / "broken.py").write_text("import no_such_library")
    for order, message in [
        (built("mine.py:acct"), r"mine.py has no 'acct'. Did you mean 'act'\?"),
        (built("broken.py:f"), "cannot import 'broken.py' .ModuleNotFoundError: No module named 'no_such_library'"),
        (
            built("mine.py:keyed", arguments={"secret": "env:NOT_THERE"}),
            "rewards.0.arguments.secret: env:NOT_THERE names",
        ),
    ]:
        with pytest.raises(RelgradError, match=message):
            _child.build(order)


ANSWERS_ONCE = """
import sys
from multiprocessing.connection import Connection
asked = Connection(int(sys.argv[2]))
for answer in ANSWERS:
    asked.recv_bytes()
    asked.send_bytes(answer)
asked.recv_bytes()
sys.exit(3)
"""


def test_a_process_that_cannot_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time it is an error, later it may be bad luck: the completions are unscored."""

    def start(code: str) -> None:
        monkeypatch.setattr("relgrad.rewards._process.START", code)

    start("import sys; sys.exit(4)")
    with pytest.raises(RelgradError, match="reward 'act': its process ended with exit code 4 while it was starting"):
        build_rewards([component("mine.py:act")], 60.0)
    replies = [pickle.dumps(Ready(is_async=False)), pickle.dumps([[Score(0.5)]])]
    start(ANSWERS_ONCE.replace("ANSWERS", repr(replies), 1))
    rewards = build_rewards([component("mine.py:act")], 60.0)
    assert answers(rewards, "").value_BR.tolist() == [[0.5]]
    assert answers(rewards, "").why == ("act: its process ended with exit code 3",)
    start("import sys; sys.exit(4)")
    again = "reward 'act': its process ended with exit code 4 while it was starting"
    assert answers(rewards, "").why == (f"act: could not be started again: {again}",)
    rewards.close()
