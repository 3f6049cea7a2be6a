"""SIGTERM and `max_hours` end a run between two steps, with a checkpoint and an exit code; the same command goes on bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import forked
from relgrad.commands.cli import app
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import RunDir
from relgrad.runs.limits import Limits, watched
from relgrad.runs.training_log import FILE, TrainingLog
from test_resume import RECIPE, assert_same_run, lines, write_recipe

STOPPED = 124
SHORT = RECIPE.replace("steps: 5,", "steps: 2,").replace("steps: 22", "steps: 4").replace("every: 10", "every: 3")
SIGNALS = """
import os, pathlib, signal, time

FIRST = signal.getsignal(signal.SIGTERM)

def wait_until_received():
    deadline = time.monotonic() + 60
    while signal.getsignal(signal.SIGTERM) == FIRST and time.monotonic() < deadline:
        time.sleep(0.01)

def score(completions, **columns):
    if os.environ.get("RANK", "1") == "1":
        calls = pathlib.Path(__file__).with_name("calls")
        calls.write_text(calls.read_text() + "." if calls.exists() else ".")
        if len(calls.read_text()) == CALL:
            SEND
    return [float(any(c.isdigit() for c in text)) for text in completions]
"""
"""A reward during whose call of a certain number SIGTERM arrives: in the sampling of a GRPO step."""
ONCE = "os.kill(os.getpid(), signal.SIGTERM)"


def signalling(folder: Path, call: int, send: str) -> Path:
    """The short recipe with such a reward. Its first calls are those of the evaluations, two prompts each."""
    recipe = write_recipe(folder, 50, SHORT)
    (folder / "my_reward.py").write_text(SIGNALS.replace("CALL", str(call)).replace("SEND", send))
    return recipe


def relgrad(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert relgrad("run", write_recipe(folder, 50, SHORT), f"out={folder}").exit_code == 0
    return folder


# ---------------------------------------------------------------------- when


class Others(Ranks):
    """This process and another one, whose numbers are known."""

    def __init__(self, rank: int, *others: float) -> None:
        super().__init__(rank, 2)
        self.others = torch.tensor(others, dtype=torch.float64)

    def sum(self, tensor: Tensor) -> Tensor:
        tensor[1 - self.rank] = self.others
        return tensor


def test_a_limit_is_one_of_any_process_or_of_the_first_ones_clock():
    hours = [0.0]

    def limits(ranks: Ranks) -> Limits:
        made = Limits(ranks, clock=lambda: 3600 * hours[0])
        hours[0] = 2.0
        made.stepped = True
        return made

    assert limits(ALONE).reached(None) is None
    hours[0] = 0.0
    assert limits(ALONE).reached(2.5) is None
    hours[0] = 0.0
    assert limits(ALONE).reached(2.0) == "max_hours=2"
    hours[0] = 0.0
    assert limits(Others(0, False, False)).reached(1.5) == "max_hours=1.5"
    hours[0] = 0.0
    assert limits(Others(1, False, False)).reached(1.5) is None, "the second process's clock counts for nothing"
    assert Limits(Others(0, True, False)).reached(None) == "SIGTERM"
    assert Limits(Others(1, False, True)).reached(1.0) == "max_hours=1"


def test_max_hours_leaves_time_for_a_step():
    limits = Limits(ALONE)
    assert limits.reached(1e-12) is None
    limits.stepped = True
    assert limits.reached(1e-12) == "max_hours=1e-12"


def test_of_several_processes_one_signal_may_arrive_twice():
    """A cluster sends it to all, and the launcher passes it on. Later ones end the process."""
    ended, seconds = list[int](), [0.0]
    outer = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        with watched(Others(0, False, False)) as limits:
            limits.clock = lambda: seconds[0]
            for second in (0.0, 1.0, 4.0):
                seconds[0] = second
                signal.raise_signal(signal.SIGTERM)
            assert limits.signalled
            assert ended == []
            seconds[0] = 6.0
            signal.raise_signal(signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, outer)


@pytest.mark.parametrize("hours", ["0", "-1", "inf", "nan", "soon"])
def test_max_hours_is_a_positive_number(hours: str, tmp_path: Path):
    ended = relgrad("run", write_recipe(tmp_path, 50, SHORT), f"out={tmp_path}", f"max_hours={hours}")
    assert ended.exit_code == 2
    assert "max_hours" in ended.output


# ---------------------------------------------------------------------- and then


def test_a_step_a_command(uninterrupted: Path, tmp_path: Path):
    """Six steps in six commands, then the end: nothing is lost and nothing is different."""
    command = ["run", write_recipe(tmp_path, 50, SHORT), f"out={tmp_path}", "max_hours=1e-9"]
    codes = []
    while not codes or codes[-1] == STOPPED:
        ended = relgrad(*command)
        codes.append(ended.exit_code)
        assert len(codes) < 8
    # the last step of a stage ends the stage, and that of the last stage the run
    assert codes == [STOPPED] * 5 + [0]
    assert_same_run(tmp_path, uninterrupted)
    log = (tmp_path / "r" / "2-grpo" / FILE).read_text()
    assert log.count("loading the task and the policy") == 4
    assert log.count("resumed after step") == 3
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  stopped: max_hours=1e-09, after step 1 of 4 of ", log, re.M)
    assert all(line in log for line in ended.output.splitlines() if "step 4/4" in line or "score" in line)


def test_sigterm_ends_a_process_after_its_step(uninterrupted: Path, tmp_path: Path):
    recipe, out, output = signalling(tmp_path, 8, ONCE), tmp_path / "out", tmp_path / "output"
    process = forked.start(["relgrad", "run", str(recipe), f"out={out}"], output)
    process.join(600)
    assert process.exitcode == STOPPED, output.read_text()
    said = " ".join(output.read_text().split())
    assert "SIGTERM: ending between two steps" in said
    steps = len(lines(out / "r" / "2-grpo" / "metrics.jsonl"))
    assert 0 < steps < 4
    assert f"stopped: SIGTERM, after step {steps} of 4 of" in said
    assert f"continue with `relgrad run {recipe} out={out}`" in said
    assert (out / "r" / "2-grpo" / "report.html").is_file()
    assert relgrad("run", recipe, f"out={out}").exit_code == 0
    assert_same_run(out, uninterrupted)


def test_sigterm_before_the_first_step(uninterrupted: Path, tmp_path: Path):
    """During an evaluation: there is nothing to save, and no time is spent on a step."""
    recipe, out, output = signalling(tmp_path, 1, ONCE), tmp_path / "out", tmp_path / "output"
    process = forked.start(["relgrad", "run", str(recipe), f"out={out}"], output)
    process.join(600)
    assert process.exitcode == STOPPED, output.read_text()
    assert "SIGTERM, after step 0 of 2" in output.read_text()
    assert relgrad("run", recipe, f"out={out}").exit_code == 0
    assert_same_run(out, uninterrupted)


def test_a_second_sigterm_ends_at_once(tmp_path: Path):
    recipe, output = (
        signalling(tmp_path, 8, f"{ONCE}; wait_until_received(); {ONCE}; time.sleep(900)"),
        tmp_path / "output",
    )
    process = forked.start(["relgrad", "run", str(recipe), f"out={tmp_path}"], output)
    process.join(600)
    assert process.exitcode == -signal.SIGTERM, output.read_text()


@pytest.mark.slow
def test_one_of_two_processes_ends_both_after_the_same_step(tmp_path: Path):
    recipe, out = signalling(tmp_path, 6, ONCE), tmp_path / "out"
    ended = forked.ranks(2, "relgrad", "run", recipe, f"out={out}")
    said = "".join(process.stdout + process.stderr for process in ended)
    assert [process.returncode for process in ended] == [STOPPED, STOPPED], said
    assert said.count("stopped: SIGTERM, after step") == 1
    assert "the same command continues" in " ".join(said.split())
    for process in forked.ranks(2, "relgrad", "run", recipe, f"out={out}"):
        assert process.returncode == 0, process.stdout + process.stderr
    assert [record["step"] for record in lines(out / "r" / "2-grpo" / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_launcher_passes_sigterm_on(tmp_path: Path):
    """The second process sends it to the one that started it, and waits until it has come back."""
    recipe = signalling(tmp_path, 6, "os.kill(os.getppid(), signal.SIGTERM); wait_until_received()")
    command = [sys.executable, "-m", "relgrad", "run", str(recipe), f"out={tmp_path}", "--processes", "2"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert ended.returncode == STOPPED, ended.stdout + ended.stderr
    assert ended.stderr.count("stopped: SIGTERM, after step") == 1, ended.stderr
    assert "--processes 2`" in " ".join(ended.stderr.split())
    assert len(lines(tmp_path / "r" / "2-grpo" / "metrics.jsonl")) < 4


# ---------------------------------------------------------------------- the log


def test_a_failure_leaves_its_traceback_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_API_TOKEN", "very-secret-4711")
    recipe = write_recipe(tmp_path, 50, SHORT)
    (tmp_path / "my_reward.py").write_text(
        "import os\ndef score(completions, **columns):\n    raise ValueError(os.environ['MY_API_TOKEN'])\n"
    )
    assert relgrad("run", recipe, f"out={tmp_path}").exit_code == 2
    log = (tmp_path / "r" / "1-sft" / FILE).read_text()
    assert "Traceback (most recent call last)" in log
    assert "ValueError: [redacted]" in log
    assert "very-secret" not in log


def test_what_stands_in_the_logs_place_is_set_aside(tmp_path: Path):
    (tmp_path / FILE).mkdir()
    with TrainingLog(RunDir(tmp_path)) as log:
        log.write("half an emoji: \ud83d")
    assert (tmp_path / f"{FILE}.damaged").is_dir()
    assert "half an emoji: \\ud83d" in (tmp_path / FILE).read_text()


def test_only_the_first_process_writes_it(tmp_path: Path):
    with TrainingLog(RunDir(tmp_path, writes=False)) as log:
        log.write("nothing")
    assert not (tmp_path / FILE).exists()
