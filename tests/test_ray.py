"""Ray for real: jobs on a local cluster, one of them killed, and rewards on its workers. Without Ray these tests skip."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.core.settings import RewardComponent
from relgrad.core.types import Prompt, RewardTable
from relgrad.rewards.combine import RewardSet
from relgrad.runs.build import build_rewards
from test_rewards import rollouts

pytestmark = pytest.mark.slow
SMALL = {
    "quick": ["stages.0.sft.steps=30", "stages.1.grpo.steps=8", "stages.1.checkpoint.every=2"],
    "fill-quick": [
        *(f"stages.{stage}.sft.steps=40" for stage in range(3)),
        *("task.held_out_size=64", "stages.1.judge.audit_prompts=32", "stages.2.judge.audit_prompts=32"),
        *("stages.3.rewards.0.require_audit=false", "stages.3.grpo.steps=4", "stages.3.checkpoint.every=1"),
        "checkpoint.every=10",
    ],
}
FEW = ["evaluation.num_prompts=16", "evaluation.num_generations=2"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a head on this machine: of its job server, and of itself."""
    pytest.importorskip("ray")
    dashboard, port = free_port(), free_port()
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    folder = f"/tmp/ray-{os.getpid()}"  # sockets below it have at most 107 characters
    log = tmp_path_factory.mktemp("head") / "log"
    command = [str(bin_folder / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += ["--num-cpus=4", f"--temp-dir={folder}", "--object-store-memory=100000000", "--disable-usage-stats"]
    with open(log, "w") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while "--block" not in log.read_text() and time.monotonic() < deadline and head.poll() is None:
            time.sleep(0.5)
        assert head.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    finally:
        started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        for process in psutil.wait_procs(started, 20)[1]:
            process.kill()


def relgrad(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "relgrad", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def trainers(recipe: str, folder: Path) -> list[psutil.Process]:
    """The processes that train, not the shells that started them."""
    every = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
    return [
        p
        for p in every
        if p.info["cmdline"][1:5] == ["-m", "relgrad", "run", recipe] and f"out={folder}" in p.info["cmdline"]
    ]


def steps(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line)["step"] for line in lines]


def watched(folder: Path, name: str, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """A submitted job that is waited for, and where its last stage writes."""
    job = relgrad(folder, "submit", name, *SMALL[name], *FEW, "--to", "ray", "--retries", "2", "--wait", *arguments)
    return job, folder / "runs" / name / {"quick": "2-grpo", "fill-quick": "4-grpo"}[name]


def test_a_job_that_is_killed_continues_and_is_evaluated(cluster: tuple[str, str], tmp_path: Path):
    job, training = watched(tmp_path, "quick", "--address", cluster[0], "--evaluate")
    deadline = time.monotonic() + 900
    while len(steps(training)) < 4:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    (trainer,) = trainers("quick", tmp_path / "runs")
    trainer.kill()
    output, _ = job.communicate(timeout=1800)
    print(output)
    assert job.returncode == 0, output
    assert "exit code 137: the run goes on from its newest checkpoint (retry 1 of 2)" in output
    assert "95 % interval" in output
    assert steps(training) == list(range(1, 9))
    assert "resumed after step" in (training / "training.log").read_text()


def test_a_job_of_four_stages(cluster: tuple[str, str], tmp_path: Path):
    job, training = watched(tmp_path, "fill-quick", "--address", cluster[0])
    output, _ = job.communicate(timeout=1800)
    print(output)
    assert job.returncode == 0, output
    assert "(retry 1 of 2)" not in output
    assert steps(training) == [1, 2, 3, 4]


def test_stop_saves_a_checkpoint_and_start_continues(cluster: tuple[str, str], tmp_path: Path):
    address, _ = cluster
    settings = [*SMALL["quick"], *FEW, "stages.1.grpo.steps=400"]
    submitted = relgrad(tmp_path, "submit", "quick", *settings, "--to", "ray", "--address", address)
    output, _ = submitted.communicate(timeout=300)
    assert submitted.returncode == 0, output
    training = tmp_path / "runs" / "quick" / "2-grpo"
    deadline = time.monotonic() + 900
    while len(steps(training)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert relgrad(tmp_path, "jobs", "stop", "quick-1").wait(120) == 0
    followed = relgrad(tmp_path, "jobs", "logs", "quick-1")
    output, _ = followed.communicate(timeout=900)
    print(output)
    assert followed.returncode == 124, output
    assert "stopped: SIGTERM, after step" in output
    assert not trainers("quick", tmp_path / "runs")
    before = len(steps(training))
    assert 2 <= before < 400
    assert relgrad(tmp_path, "jobs", "start", "quick-1").wait(120) == 0
    while len(steps(training)) <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(steps(training)) > before
    assert relgrad(tmp_path, "jobs", "stop", "quick-1").wait(120) == 0


# ---------------------------------------------------------------------- rewards

REWARD = """
import asyncio, os, time

def score(completions, **columns):
    return [len(text) / 8 for text in completions]

async def slowly(completions, **columns):
    await asyncio.sleep(0.01)
    return [len(text) / 8 for text in completions]

def hangs(completions, **columns):
    if "hang" in columns["prompts"][0]:
        time.sleep(600)
    return [os.getpid() for _ in completions]

def dies(completions, **columns):
    if "hang" in columns["prompts"][0]:
        os._exit(3)
    return [os.getpid() for _ in completions]

def wrong(completions, **columns):
    return [1.0]

class Keyed:
    def __init__(self, key):
        self.key = key
    def __call__(self, completions, **columns):
        return [float(len(self.key)) for _ in completions]
"""


@pytest.fixture
def connected(cluster: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster[1])
    (tmp_path / "mine.py").write_text(REWARD)
    yield tmp_path / "mine.py"
    ray.shutdown()


def rewards(file: Path, name: str, timeout: float = 60.0, **options: object) -> RewardSet:
    section = {"kind": "function", "function": f"{file}:{name}", **options}
    return build_rewards([RewardComponent.model_validate(section)], timeout)


def scored(made: RewardSet, prompts: list[str]) -> RewardTable:
    """Three completions of different lengths for every prompt."""
    try:
        return made(rollouts(*((Prompt(text), [text[:1], text[:2] + "!", text]) for text in prompts)))
    finally:
        made.close()


PROMPTS = [f"prompt {number}" for number in range(7)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["score", "slowly"])
def test_the_same_results_as_beside_the_trainer(name: str, workers: int, connected: Path):
    here = scored(rewards(connected, name), PROMPTS)
    there = scored(rewards(connected, name, isolate="ray", ray_workers=workers), PROMPTS)
    torch.testing.assert_close(there.value_BR, here.value_BR, rtol=0, atol=0)
    assert there.why == here.why


@pytest.mark.parametrize(("name", "why"), [("hangs", "no answer within 2 s"), ("dies", "its Ray worker was lost")])
def test_deadlines_and_lost_workers_leave_one_group_unscored(name: str, why: str, connected: Path):
    table = scored(rewards(connected, name, 2.0, isolate="ray"), ["a", "please hang", "b", "c"])
    assert table.value_BR[:, 0].isnan().tolist() == [False] * 3 + [True] * 3 + [False] * 6
    assert all(why in reason for reason in table.why[3:6])
    assert len(set(table.value_BR[:3, 0].tolist())) == 1
    assert table.value_BR[0, 0] != table.value_BR[6, 0], "another process went on"


def test_mistakes_are_told_as_they_are_here(connected: Path):
    with pytest.raises(RelgradError, match="reward 'wrong'"):
        scored(rewards(connected, "wrong", isolate="ray"), PROMPTS)
    with pytest.raises(RelgradError, match="has no 'absent'"):
        rewards(connected, "absent", isolate="ray")


def test_a_secret_reaches_the_worker(connected: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "seven-7")
    table = scored(rewards(connected, "Keyed", isolate="ray", arguments={"key": "env:MY_KEY"}), PROMPTS[:2])
    assert table.value_BR.unique().tolist() == [7.0]


def test_sigterm_stays_the_runs(connected: Path):
    def mine(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        rewards(connected, "score", isolate="ray").close()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    (tmp_path / "mine.py").write_text(REWARD)
    with pytest.raises(RelgradError, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9"):
        rewards(tmp_path / "mine.py", "score", isolate="ray")
