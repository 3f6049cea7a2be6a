"""`relgrad run --processes 2`: the figures of one process, one message when a process is lost, and the run goes on exactly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import forked
from test_resume import FILL_RECIPE, RECIPE, assert_same_run, write_recipe

SAME = 1e-4
"""Figures of one and of two processes in the first steps: float32 sums in another order, carried on by AdamW."""
UNEQUAL = re.compile(r"time(/.*)?|step_time|tokens_per_second")


def command(recipe: Path, out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "relgrad", "run", str(recipe), f"out={out}", *arguments]


def done(recipe: Path, out: Path, processes: int, *arguments: str) -> str:
    """Everything that the processes of a run printed, once they have succeeded."""
    ended = forked.ranks(processes, "relgrad", "run", recipe, f"out={out}", *arguments)
    for process in ended:
        assert process.returncode == 0, process.stdout + process.stderr
    return "".join(process.stdout + process.stderr for process in ended)


def figures(stage: Path, steps: int) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()][:steps]
    return [{k: v for k, v in record.items() if not UNEQUAL.fullmatch(k)} for record in records]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recipes without dropout, whose masks depend on what lies beside an example; one with replay, one with a judge."""
    folder = tmp_path_factory.mktemp("recipes")
    replayed = RECIPE.replace("dropout: 0.2", "dropout: 0.0").replace("max_resamples: 1", "replay: {share: 0.5}")
    filled = FILL_RECIPE.replace("dropout: 0.2", "dropout: 0.0")
    return {
        "replay": write_recipe(folder / "replay", 4, replayed),
        "judge": write_recipe(folder / "judge", 4, filled),
    }


SLOWER = pytest.param("judge", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["replay", SLOWER])
def test_two_processes_follow_one(name: str, recipes: dict[str, Path], tmp_path: Path):
    """Stage by stage from the same start: what earlier stages differ by, in the last bits, a judge's ranking may magnify."""
    one, two = tmp_path / "one", tmp_path / "two"
    done(recipes[name], one, 1)
    stages = sorted(p.name for p in (one / "r").glob("*-*"))
    for number, stage in enumerate(stages):
        shutil.rmtree(two, ignore_errors=True)
        for before in stages[:number]:
            shutil.copytree(one / "r" / before, two / "r" / before)
        printed = done(recipes[name], two, 2)
        assert printed.count(f"{stage}  step 2/") == 1, "the second process speaks too"
        alike(figures(one / "r" / stage, 10), figures(two / "r" / stage, 10))
        for record, same in zip(first_evaluation(one / "r" / stage), first_evaluation(two / "r" / stage), strict=True):
            assert record["ids"] == same["ids"]
            assert same["score"] == pytest.approx(record["score"], abs=SAME)


def first_evaluation(stage: Path) -> list[dict[str, Any]]:
    """The stage's evaluation before its first step, where it has one: later ones are of weights that differ in the last bits."""
    file = stage / "evaluations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()][:1] if file.exists() else []


def alike(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    assert len(one) == len(two) > 0
    for record, same in zip(one, two, strict=True):
        assert record.keys() == same.keys()
        for key, value in record.items():
            assert same[key] == pytest.approx(value, rel=SAME, abs=SAME), f"step {record['step']}: {key}"


def wait_for(file: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(file.read_text().splitlines()) >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{file} never had {lines} lines; exit code {process.poll()}")


def children(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The run's processes by rank."""
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            ranks[int(rank)] = child
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank", "stage"), [("replay", 1, "2-grpo"), ("judge", 0, "2-judge"), ("judge", 1, "3-grpo")]
)
def test_one_process_killed_is_one_error_and_the_command_goes_on(
    name: str, rank: int, stage: str, recipes: dict[str, Path], tmp_path: Path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done(recipes[name], whole, 2)
    started = subprocess.Popen(
        command(recipes[name], killed, "--processes", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(killed / "r" / stage / "metrics.jsonl", 6, started)
    os.kill(children(started)[rank].pid, signal.SIGKILL)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 75, errors
    assert re.search(rf"error: process {rank + 1} of 2 \(pid \d+\) was killed by SIGKILL", " ".join(errors.split())), (
        errors
    )
    assert errors.count("error") == 1, errors
    assert "Traceback" not in errors
    done(recipes[name], killed, 2)
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(recipes: dict[str, Path], tmp_path: Path):
    """From a checkpoint of two processes inside a generation batch, replayed groups included, one goes on, and the other way."""
    recipe = recipes["replay"]
    constant = "stages.1.grpo.lr_scheduler_type=constant"
    for first, then, out in ((2, 1, tmp_path / "a"), (1, 2, tmp_path / "b")):
        done(recipe, out, first, constant, "stages.1.grpo.steps=9")
        done(recipe, out, then, constant, "stages.1.grpo.steps=12")
    alike(figures(tmp_path / "a" / "r" / "2-grpo", 12), figures(tmp_path / "b" / "r" / "2-grpo", 12))


def test_an_error_of_all_is_told_once(tmp_path: Path):
    recipe = write_recipe(tmp_path, 4, RECIPE.replace("- stage: sft", "- stage: grpo", 1))
    (tmp_path / "my_reward.py").write_text(
        "def score(completions, **columns):\n    return [1 / 0 for _ in completions]\n"
    )
    ran = subprocess.run(command(recipe, tmp_path, "--processes", "2"), capture_output=True, text=True)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert ran.stderr.count("completions could be scored; the first: ") == 1, ran.stderr
    assert "return [1 / 0 for _ in completions]" in ran.stderr


def test_a_job_that_has_processes_already_starts_no_more(recipes: dict[str, Path], tmp_path: Path):
    ran = forked.run("relgrad", "run", recipes["replay"], "--processes", 2, environment={"WORLD_SIZE": "2"})
    assert ran.returncode == 2
    assert "--processes 2 in a job of WORLD_SIZE=2 processes" in " ".join(ran.stderr.split())
