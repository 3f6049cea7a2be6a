"""Trackers write what they were given, the console speaks plainly off a terminal, and no secret is recorded."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relgrad.core import secrets
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir, read_lines
from relgrad.monitor.console import Console, duration, excerpt, number, printable
from relgrad.runs import environment
from relgrad.runs.tracking import JsonLines, TensorBoard, Trackers, open_trackers

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def figures(step: int) -> dict[str, float]:
    return {"reward": step / 10, "kl": 0.5, "tokens_per_second": 1234.5}


def sample(completion: str, reward: float | None, prompt: str = "2 + 2 =") -> dict[str, object]:
    return {"step": 1, "group": 0, "prompt": prompt, "completion": completion, "reward": reward}


# trackers


def test_json_lines_hold_step_time_and_figures(tmp_path: Path) -> None:
    before = time.time()
    tracker = JsonLines(RunDir(tmp_path))
    tracker.log(1, {"reward": 0.25})
    tracker.log(2, {"reward": math.nan})
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert [(line["step"], line["reward"]) for line in lines] == [(1, 0.25), (2, None)]
    assert all(before <= line["time"] <= time.time() for line in lines)


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_writes_an_event_file_that_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_trackers(["tensorboard"], RunDir(tmp_path), title="t", config={}) as trackers:
        for step in (1, 2, 3):
            trackers.log(step, {"reward": step / 4, "clip_ratio/region_mean": 0.0})
    found = read_events(tmp_path / "tensorboard")
    assert found == {"reward": [(1, 0.25), (2, 0.5), (3, 0.75)], "clip_ratio/region_mean": [(1, 0), (2, 0), (3, 0)]}
    assert len(list(read_lines(tmp_path / "metrics.jsonl"))) == 3


def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed = TensorBoard(RunDir(tmp_path))
    for step in (1, 2, 3):
        killed.log(step, {"reward": 1.0})
    killed.close()
    resumed = TensorBoard(RunDir(tmp_path), first_step=2)
    resumed.log(2, {"reward": 2.0})
    resumed.close()
    assert read_events(tmp_path / "tensorboard")["reward"] == [(1, 1.0), (2, 2.0)]


def test_weights_and_biases_logs_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'relgrad[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for step in (1, 2):
        with open_trackers(["wandb"], RunDir(tmp_path), title="t", config={"judge": {"api_key": "hush"}}) as trackers:
            trackers.log(step, {"reward": 0.5})
        ids.append((tmp_path / "wandb" / "id.txt").read_text())
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert ids[0] == ids[1]
    assert written
    assert not any(b"hush" in path.read_bytes() for path in written)


def test_trackio_writes_its_database(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed (pip install 'relgrad[trackio]')")
    code = (
        "from relgrad.core.run_folder import RunDir; from relgrad.runs.tracking import open_trackers\n"
        f"t = open_trackers(['trackio'], RunDir({str(tmp_path)!r}), title='t', config={{}})\n"
        "t.log(1, {'reward': 0.5}); t.close()"
    )
    variables = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "trackio" / "relgrad.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "extra"), [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "tensorboard")]
)
def test_a_missing_library_gives_its_install_line(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python does for a module that must not be importable
    with pytest.raises(RelgradError, match=re.escape(f"pip install 'relgrad[{name}]'")):
        open_trackers([name], RunDir(tmp_path), title="t", config={})


def test_an_unknown_tracker_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"'mlflow'\. Known: tensorboard, wandb, trackio"):
        open_trackers(["mlflow"], RunDir(tmp_path), title="t", config={})


class Recorder:
    """A tracker that remembers, and fails from `fails_at` on."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.seen: list[int] = []
        self.fails_at = fails_at
        self.closed = False

    def log(self, step: int, metrics: object) -> None:
        if step >= self.fails_at:
            raise ConnectionError("no route")
        self.seen.append(step)

    def close(self) -> None:
        self.closed = True


def test_trackers_drop_a_failing_mirror_with_one_warning_and_go_on(tmp_path: Path) -> None:
    broken, healthy, warnings = Recorder(fails_at=2), Recorder(), list[str]()
    with Trackers([JsonLines(RunDir(tmp_path)), broken, healthy], warnings.append) as trackers:
        for step in (1, 2, 3):
            trackers.log(step, {"reward": 0.0})
    assert (broken.seen, healthy.seen, healthy.closed) == ([1], [1, 2, 3], True)
    assert len(list(read_lines(tmp_path / "metrics.jsonl"))) == 3
    assert len(warnings) == 1
    assert "step 2" in warnings[0]
    assert "no route" in warnings[0]


def test_trackers_do_not_go_on_without_the_record(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()  # a folder in the file's place: nothing can be appended
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        Trackers([JsonLines(RunDir(tmp_path))]).log(1, {})


# console


def test_off_a_terminal_the_console_prints_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with Console("quick/grpo", 40, file=out) as console:
        for step in range(1, 41):
            console.samples(step, [sample("\x1b[31mfour\x1b[0m", 1.0)])
            console.log(step, figures(step))
        console.warn("KL explodes: \x1b[2J 9.1 nats")
        console.warn("solved", "note")
        console.evaluation({"step": 40, "name": "held-out", "score": 0.5, "low": 0.4, "high": None, "n": 100})
    text = out.getvalue()
    lines = text.splitlines()
    assert CONTROL.search(text) is None
    assert len(lines) == 1 + 20 + 3
    assert lines[0].startswith("quick/grpo  step 1/40  reward 0.1  KL 0.5  tokens/s 1,234  left ")
    assert [int(line.split()[2].split("/")[0]) for line in lines[1:21]] == list(range(2, 41, 2))
    assert "warning: KL explodes: \N{REPLACEMENT CHARACTER}[2J 9.1 nats" in lines
    assert "note: solved" in lines
    assert lines[-1] == "quick/grpo  step 40  held-out score 0.5 no interval, 100 prompts"


def test_off_a_terminal_a_resumed_run_reports_its_first_step() -> None:
    out = io.StringIO()
    with Console("t", 100, first_step=62, every=50, file=out) as console:
        for step in range(63, 101):
            console.log(step, {"loss": 1.0})
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["63/100", "100/100"]


def test_a_policy_may_say_which_figures_to_show() -> None:
    out = io.StringIO()
    with Console("t", 10, figures=("pg_loss", "mean_kl", "absent"), file=out) as console:
        console.log(1, {"reward": 0.5, "mean_kl": 0.25, "pg_loss": -0.125})
    assert "pg_loss -0.125  mean_kl 0.25  left" in out.getvalue()
    assert "reward" not in out.getvalue()
    assert "absent" not in out.getvalue()


def test_on_a_terminal_the_display_shows_progress_figures_and_samples() -> None:
    """A real pseudo-terminal, wide enough for one line per row."""
    code = (
        "from relgrad.monitor.console import Console\n"
        "with Console('quick/grpo', 10) as console:\n"
        "    rewards = [0.5, None, 1.0, 0.0]\n"
        "    records = [dict(prompt='2 + 2 =', completion=f'[b]c{i}[/b] \\x1b[2Jx', reward=r)"
        " for i, r in enumerate(rewards)]\n"
        "    console.samples(7, records)\n"
        "    console.log(7, {'reward': 0.375, 'kl': 0.02, 'clip_ratio/region_mean': 0.1})\n"
        "    console.warn('reward flat')\n"
    )
    controller, terminal = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal, env=variables)
    os.close(terminal)
    chunks = []
    try:
        while chunk := os.read(controller, 65536):
            chunks.append(chunk)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(controller)
    text = b"".join(chunks).decode()
    assert process.wait(timeout=60) == 0, text
    assert "\x1b[" in text
    assert "\x1b[2J" not in text, "a completion's escape sequence must not reach the terminal"
    for shown in ("quick/grpo", "7/10", "0.375", "0.02", "clipped", "2 + 2 =", "[b]c2[/b]", "unscored", "reward flat"):
        assert shown in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (42.4, "42s"), (59.6, "1m00s"), (90, "1m30s"), (7260, "2h01m"), (90000, "25h00m")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.01235"), (1234.5, "1,234"), (0.0, "0"), (-2.5, "-2.5"), (None, "unscored"), (math.nan, "unscored")],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_excerpt_keeps_the_end_on_one_line() -> None:
    assert excerpt("a\n\n b").plain == "a b"
    assert excerpt("x" * 30 + "end", length=10).plain == "…" + "x" * 6 + "end"


def test_printable_keeps_ordinary_text_of_any_script() -> None:
    assert printable("né 漢字 🙂 [red]") == "né 漢字 🙂 [red]"
    assert printable("a\x1bb\x07\r", keep="\n") == "a\ufffdb\ufffd\ufffd"


# environment


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["judge.api_key=abc"], ["judge.api_key=[redacted]"]),
        (["--password=pw", "x"], ["--password=[redacted]", "x"]),
        (["--hfToken", "xyz", "quick"], ["--hfToken", "[redacted]", "quick"]),
        (["url=https://me:pw@host/path"], ["url=https://[redacted]@host/path"]),
        (["x=hf_abcdefghijklmnop"], ["x=[redacted]"]),
        (["micro_batch_tokens=8192", "monkey=1"], ["micro_batch_tokens=8192", "monkey=1"]),
        (["relgrad", "run", "quick", "grpo.beta=0.04"], ["relgrad", "run", "quick", "grpo.beta=0.04"]),
        (["--fresh", "quick"], ["--fresh", "quick"]),
    ],
)
def test_redaction_hides_secrets_and_nothing_else(arguments: list[str], shown: list[str]) -> None:
    assert secrets.command_line(arguments) == shown


def test_without_secrets_reaches_into_nested_settings() -> None:
    settings = {"rewards": [{"kind": "judge", "api_key": "abc", "top_p": 0.9}], "steps": 3, "token": None}
    expected = {"rewards": [{"kind": "judge", "api_key": "[redacted]", "top_p": 0.9}], "steps": 3, "token": None}
    assert secrets.without_secrets(settings) == expected


def test_capture_records_versions_and_allowed_variables_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_tell_anyone")
    monkeypatch.setenv("MY_PASSWORD", "do_not_tell_anyone")
    monkeypatch.setattr(sys, "argv", ["relgrad", "run", "quick", "api_key=do_not_tell_anyone"])
    found = environment.capture()
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert set(found["variables"]) <= set(environment.VARIABLES)
    assert "do_not_tell_anyone" not in json.dumps(found)


def test_git_state_tells_clean_from_dirty_from_none(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "--no-verify", "-m", "m"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new").touch()
    assert environment.git_state(tmp_path) == {"commit": commit, "dirty": True}
