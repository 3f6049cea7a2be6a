"""Run folders: one writer at a time, damage is noticed and named, and files that a recipe names are those it began with."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fill_text
from relgrad.commands.cli import app
from relgrad.core import checksums
from relgrad.core.errors import RelgradError
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import RunDir, stages_in
from relgrad.monitor.report import write_report
from relgrad.runs import lock, named_files
from relgrad.runs.build import RECIPES, resolve
from relgrad.runs.contenders import open_one
from relgrad.runs.decision_search import load_decision_search
from relgrad.runs.lock import Lock, held, machine
from relgrad.runs.plan import plan
from relgrad.runs.recipe import Recipe, load_recipe, parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.search import load_search
from relgrad.runs.use import evaluate_run, sample
from relgrad.training import checkpoint

RUN = Path("runs", "r")
STAGE = RUN / "1-grpo"
REWARD = """
def vowels(completions, **columns):
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]
"""


def recipe(steps: int = 2, **changes: Any) -> Recipe:
    """A fill-in policy, with its text and a reward in files beside the run, named from the working directory."""
    return parse_recipe(
        {
            "name": "r",
            "policy": {"kind": "fill_in", "text": "text.txt", "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16},
            "task": {
                "kind": "masked_text", "text": "text.txt", "length": 16, "aligned": "window", "held_out_size": 4,
                "held_out_fraction": 0.3,
            },
            "rewards": [{"kind": "hidden"}, {"kind": "function", "function": "my_reward.py:vowels"}],
            "grpo": {
                "steps": steps, "num_prompts": 2, "num_generations": 2, "num_iterations": 2, "learning_rate": 0.01,
                "lr_scheduler_type": "constant",
            },
            "evaluation": {"num_prompts": 2, "num_generations": 1, "every": 1},
            "checkpoint": {"every": 1},
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one step, whose generation batch is good for another one, and the files that it names."""
    folder = tmp_path_factory.mktemp("finished")
    fill_text.write(folder / "text.txt", lines=60)
    (folder / "my_reward.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_recipe(recipe())
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of that folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------- one writer


def record(**changes: Any) -> str:
    """A lock of a process that runs: this one."""
    own = {"host": "here", "machine": machine(), "pid": os.getpid(), "started": lock._started(os.getpid())}
    return json.dumps({**own, "since": "2026-01-01 12:00:00 UTC", **changes})


def test_a_second_run_is_refused_and_told_who_writes(copied: Path) -> None:
    with Lock(RUN):
        for refused in (
            lambda: run_recipe(recipe(3)),
            lambda: plan(recipe(3)),
            lambda: run_recipe(recipe(), fresh=True),
        ):
            with pytest.raises(
                RelgradError, match=rf"runs/r is written by another run: process {os.getpid()} on .*since 20"
            ):
                refused()
        assert checkpoint.steps(STAGE / "checkpoints") == [1, 2]
        evaluate_run(str(STAGE), [])
        assert write_report(RUN).is_file()
    assert not (RUN / lock.FILE).exists()
    run_recipe(recipe(3))
    assert not (RUN / lock.FILE).exists()


def test_of_many_that_start_at_once_one_holds_the_folder(tmp_path: Path) -> None:
    locks, holding = [Lock(tmp_path / "run") for _ in range(8)], []
    together = threading.Barrier(len(locks))

    def start(one: Lock) -> None:
        together.wait()
        try:
            one.__enter__()
        except RelgradError:
            return
        holding.append(one)

    threads = [threading.Thread(target=start, args=(one,)) for one in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (holder,) = holding
    holder.__exit__(None, None, None)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    """Also where another process has its number by now, and where nobody has fetched its remains."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = record(pid=child.pid, started=lock._started(child.pid))
    (tmp_path / lock.FILE).write_text(left)
    with pytest.raises(RelgradError, match=f"process {child.pid} on here, since 2026-01-01"):
        lock.require_free(tmp_path)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    for gone in (left, record(started=12345.0)):
        (tmp_path / lock.FILE).write_text(gone)
        lock.require_free(tmp_path)
        with Lock(tmp_path) as taken:
            assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
            taken.touch()
            taken.require_held()
    child.wait()
    lock.require_free(tmp_path)


@pytest.mark.parametrize("content", [record(machine="another", host="there"), "", "noise"])
def test_of_another_machine_only_the_last_sign_of_life_is_known(tmp_path: Path, content: str) -> None:
    file = tmp_path / lock.FILE
    file.write_text(content)
    with pytest.raises(
        RelgradError, match=r"last sign of life \d+ s ago.*counts as gone after 120 s.*or delete .*lock\.json"
    ):
        Lock(tmp_path).__enter__()
    assert file.read_text() == content
    os.utime(file, (time.time() - 2 * lock.SILENT,) * 2)
    with Lock(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_writer_whose_lock_was_taken_ends_before_it_writes_on(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lock(RUN) as own:
        (RUN / lock.FILE).write_text(record(pid=1))
        own.touch()
        with pytest.raises(RelgradError, match="not this process's any more"):
            own.require_held()
    assert json.loads((RUN / lock.FILE).read_text())["pid"] == 1, "the other one's lock was removed"
    (RUN / lock.FILE).unlink()
    monkeypatch.setattr(Lock, "_take", lambda self: setattr(self, "lost", True))
    with pytest.raises(RelgradError, match="not this process's any more"):
        run_recipe(recipe(3))
    assert checkpoint.steps(STAGE / "checkpoints") == [1, 2]


class Second(Ranks):
    """The second process of a job, as far as it goes without the first."""

    def __init__(self) -> None:
        super().__init__(1, 2)

    def together(self, work: Callable[[], Any]) -> Any:
        return work()


def test_the_processes_of_a_job_are_one_writer(tmp_path: Path) -> None:
    with held([tmp_path, tmp_path], ALONE) as require_first, held([tmp_path], Second()) as require_second:
        require_first()
        require_second()


# ---------------------------------------------------------------------- folders that cannot be written


@pytest.mark.parametrize("place", ["file", "file/inside", "long"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fill_text.write(tmp_path / "text.txt", lines=60)
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    wrong = recipe(out="x" * 300 if place == "long" else place)
    for refused in (lambda: run_recipe(wrong), lambda: plan(wrong)):
        with pytest.raises(RelgradError, match=r"cannot be written: .*Give it another place"):
            refused()
    (tmp_path / "runs").mkdir()
    (tmp_path / RUN).write_text("")
    with pytest.raises(RelgradError, match=r"runs/r cannot be written"):
        run_recipe(recipe())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "my_reward.py", "runs", "text.txt"]


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "runs/r", "--generator", "runs/r", "--out", "text.txt/judge"),
        ("compare", "runs/r", "--json", "text.txt/table.json"),
        ("compare", "runs/r", "--html", "runs"),
        ("export", "runs/r", "text.txt/ckpt.pt"),
        ("prepare", "--text", "text.txt", "--out", "text.txt/data", "length=16"),
    ],
)
def test_a_file_that_cannot_be_made_is_refused_before_the_work(copied: Path, command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(command), env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 2, f"{result.output} {result.exception!r}"
    assert "cannot be written: " in result.stderr


@pytest.mark.parametrize("name", [".", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_refused(copied: Path, name: str) -> None:
    place = STAGE / name
    shutil.rmtree(place)
    place.write_text("")
    with pytest.raises(RelgradError, match=r"1-grpo.*(is a file|[Nn]ot a directory|File exists)"):
        run_recipe(recipe(3))


# ---------------------------------------------------------------------- damage


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(bytes(content))


def replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (halve, empty, overwrite, flip, replace_by_a_folder)
COMMANDS: dict[str, Callable[[], object]] = {
    "resume": lambda: run_recipe(recipe(3)),
    "dry run": lambda: plan(recipe(3)),
    "report": lambda: write_report(RUN),
    "sample": lambda: list(sample(str(RUN), [], 1, [])),
}
FILES = (
    "recipe.yaml", "environment.json", "fingerprints.json", "metrics.jsonl", "evaluations.jsonl", "films.jsonl", "warnings.jsonl",
    "samples/step_000001.jsonl", "report.html", "checkpoints/step_000001/model.safetensors",
    "checkpoints/step_000002/model.safetensors", "checkpoints/step_000002/config.json",
    "checkpoints/step_000002/vocabulary.json", "checkpoints/step_000002/trainer/checksums.json",
    "checkpoints/step_000002/trainer/state.json", "checkpoints/step_000002/trainer/optimizer.safetensors",
    "checkpoints/step_000002/trainer/batch/batch.json", "checkpoints/step_000002/trainer/batch/batch.safetensors",
    "checkpoints/step_000002/trainer/batch/part_000/experience.json",
    "checkpoints/step_000002/trainer/batch/part_000/rollouts.safetensors", "training.log",
)  # fmt: skip
FOR_PEOPLE = (
    "environment.json", "films.jsonl", "warnings.jsonl", "samples/step_000001.jsonl", "report.html", "training.log",
)  # fmt: skip


def refusals(name: str) -> list[str]:
    """What the commands say that refuse a run in which this file is damaged. Whatever else they raise fails the test."""
    named = (Path(name).name, str(STAGE / name).partition("/trainer")[0], f"{STAGE} holds a run of another recipe")
    shutil.copytree("runs", "kept")
    messages = []
    for command, work in COMMANDS.items():
        try:
            work()
        except RelgradError as error:
            messages.append(f"{command}: {error}")
        if command == "resume":
            shutil.rmtree("runs")
            Path("kept").rename("runs")
    assert all(any(part in message for part in named) for message in messages), messages
    return messages


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_or_does_no_harm(copied: Path, name: str) -> None:
    """One damage for each file, and each damage for several files; all pairs are in a slow test."""
    DAMAGES[FILES.index(name) % len(DAMAGES)](STAGE / name)
    messages = refusals(name)
    assert not (name in FOR_PEOPLE and messages), messages
    if name == named_files.FILE:
        assert all(message.startswith(("resume", "dry run")) for message in messages), messages
    if "step_000002" in name:
        assert any(message.startswith("resume") for message in messages), messages


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file(copied: Path, damage: Callable[[Path], None]) -> None:
    files = sorted(str(path.relative_to(STAGE)) for path in STAGE.rglob("*") if path.is_file())
    assert set(FILES) <= set(files)
    shutil.copytree("runs", "whole")
    for name in files:
        damage(STAGE / name)
        messages = refusals(name)
        assert not (name in FOR_PEOPLE and messages), messages
        shutil.rmtree("runs")
        shutil.copytree("whole", "runs")


def test_a_flipped_byte_in_a_checkpoint_is_noticed_and_the_older_one_named(copied: Path) -> None:
    newest = STAGE / "checkpoints" / "step_000002"
    flip(newest / "trainer" / "optimizer.safetensors")
    for refused in (COMMANDS["resume"], COMMANDS["dry run"]):
        with pytest.raises(
            RelgradError,
            match=r"step 2 is damaged: .*step_000002/trainer/optimizer\.safetensors does not hold what was saved.*"
            r"Step 1 is whole: .* move runs/r/1-grpo/checkpoints/step_000002 to another place",
        ):
            refused()
    COMMANDS["sample"]()  # writes with the weights alone
    flip(newest / "model.safetensors")
    with pytest.raises(RelgradError, match=r"step_000002/model\.safetensors does not hold what was saved"):
        COMMANDS["sample"]()
    with pytest.raises(RelgradError, match=r"step_000002/model\.safetensors does not hold what was saved"):
        open_one(str(newest), [])
    open_one(str(STAGE / "checkpoints" / "step_000001"), [])
    newest.rename("elsewhere")
    COMMANDS["resume"]()
    saved = checkpoint.steps(STAGE / "checkpoints")
    assert saved[-2:] == [2, 3]
    for step in saved:
        empty(checkpoint.folder_of(STAGE / "checkpoints", step) / "trainer" / "state.json")
    with pytest.raises(RelgradError, match=r"state\.json has 0 bytes.*No other one is whole: .*--fresh"):
        run_recipe(recipe(4))


def test_a_damaged_checkpoint_of_another_run_is_not_used(copied: Path) -> None:
    """The policy begins with it: a run, its dry run, and whoever uses the recipe."""
    other = recipe(1, name="other", policy={"kind": "fill_in", "checkpoint": str(STAGE)})
    Path("other.yaml").write_text(yaml.safe_dump(other.stages[0].used))
    sample("other.yaml", ["a█"], 1, [])
    flip(STAGE / "checkpoints" / "step_000002" / "model.safetensors")
    for refused in (lambda: run_recipe(other), lambda: plan(other), lambda: list(sample("other.yaml", ["a█"], 1, []))):
        with pytest.raises(
            RelgradError, match=r"step 2 is damaged: .*step_000002/model\.safetensors does not hold what was"
        ):
            refused()


def test_a_checkpoint_without_checksums_is_read_as_it_is(copied: Path) -> None:
    """Those of earlier versions. What cannot be read is still one error."""
    for sums in STAGE.rglob("checksums.json"):
        sums.unlink()
    COMMANDS["sample"]()
    halve(STAGE / "checkpoints" / "step_000002" / "trainer" / "optimizer.safetensors")
    with pytest.raises(RelgradError, match=r"step_000002 cannot be read: SafetensorError"):
        COMMANDS["resume"]()
    shutil.rmtree(STAGE / "checkpoints" / "step_000002")
    COMMANDS["resume"]()


def test_what_only_people_read_ends_no_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8 in samples: the training ends well, and the report names the file."""
    file = STAGE / "samples" / "step_000001.jsonl"
    file.write_bytes(b'{"step": 1, "completion": "\xff\xfe"}\n')
    (STAGE / "films.jsonl").write_bytes(b"\xff\n")
    replace_by_a_folder(STAGE / "report.html")
    run_recipe(recipe(3))
    shown = capsys.readouterr().out
    assert "films.jsonl, line 1 cannot be read" in shown
    assert "films.jsonl was damaged and is kept as films.jsonl.damaged" in shown
    assert "report.html was damaged and is kept as report.html.damaged" in shown
    page = (STAGE / "report.html").read_text()
    assert "samples/step_000001.jsonl cannot be read" in page
    assert checkpoint.steps(STAGE / "checkpoints")[-1] == 3


def test_a_report_that_fails_is_said_and_ends_no_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> Path:
        raise ZeroDivisionError("odd figures")

    monkeypatch.setattr("relgrad.runs.run.write_report", fail)
    run_recipe(recipe(3))
    assert "no report could be written (ZeroDivisionError: odd figures)" in capsys.readouterr().out


def test_an_audited_judge_in_a_stage_is_whole(tmp_path: Path) -> None:
    """Its audit is written into the checkpoint, whose checksums follow."""
    folder = checkpoint.folder_of(tmp_path, 1)
    (folder / "trainer").mkdir(parents=True)
    (folder / "judge.json").write_text("{}")
    checkpoint.seal(folder)
    (folder / "judge.json").write_text('{"audit": 1}')
    assert "judge.json has 12 bytes, and 2 were saved" in str(checkpoint.damage(folder))
    checkpoint.seal(folder)
    assert checkpoint.damage(folder) is None


# ---------------------------------------------------------------------- files that changed since


def edit(file: str) -> None:
    path = Path(file)
    path.write_text(path.read_text().replace("cat", "act").replace("float", "int"))


@pytest.mark.parametrize("file", ["text.txt", "my_reward.py"])
def test_going_on_with_a_file_that_changed_is_refused(
    copied: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = Path(file).read_text()
    edit(file)
    change = rf"{file} has changed \((as long as before|\d+ bytes then, \d+ now)\)"
    for refused in (COMMANDS["resume"], COMMANDS["dry run"], lambda: run_recipe(recipe())):
        with pytest.raises(RelgradError, match=rf"since this run began, {change}.*Bring back .*--accept-changes"):
            refused()
    with caplog.at_level(logging.WARNING):
        evaluate_run(str(RUN), [])
        COMMANDS["sample"]()
    assert sum(f"since this run began, {file} has changed" in r.getMessage() for r in caplog.records) == 2
    plan(recipe(3), accept_changes=True)
    run_recipe(recipe(3), accept_changes=True)
    kept = json.loads((STAGE / named_files.FILE).read_text())
    assert [change["file"] for change in kept["accepted"]] == [file]
    run_recipe(recipe(4))
    Path(file).write_text(before)
    with pytest.raises(RelgradError, match=f"{file} has changed"):
        run_recipe(recipe(5))
    run_recipe(recipe(2), fresh=True)
    assert json.loads((STAGE / named_files.FILE).read_text())["accepted"] == []


def test_files_that_come_and_go_in_a_folder_are_changes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a model's folder that is gone: its name may be one on the hub."""
    files = [
        named_files.Named("task.path", Path("data")),
        named_files.Named("policy.model", Path("org/model"), needed=False),
    ]
    monkeypatch.setattr(named_files, "named_files", lambda stage: files)
    for name in ("data/a", "data/b", "org/model/weights"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    stage = recipe().stages[0]
    named_files.write(RunDir(STAGE), stage)
    assert named_files.changes(STAGE, stage) == {}
    shutil.rmtree("org")
    Path("data/a").rename("data/c")
    assert named_files.changes(STAGE, stage) == {
        "data/a": "is gone",
        "data/c": "is new",
        "org/model/weights": "is gone",
    }


def test_another_file_in_an_override_is_no_change(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy("text.txt", "other.txt")
    with caplog.at_level(logging.WARNING):
        evaluate_run(str(RUN), ["task.text=other.txt"])
    assert caplog.records == []


def test_a_run_without_fingerprints_gets_them_when_it_goes_on(copied: Path) -> None:
    """Those of earlier versions have none."""
    (STAGE / named_files.FILE).unlink()
    edit("my_reward.py")
    run_recipe(recipe(3))
    assert named_files.FILE in {path.name for path in STAGE.iterdir()}
    assert named_files.changes(STAGE, resolve(recipe(3)).stages[0]) == {}


def test_which_files_a_recipe_names(copied: Path) -> None:
    """Parts of every room, folders with what is in them, modules of the user's; no hub names, no installed packages."""
    for name in ("rows.jsonl", "test.jsonl"):
        Path(name).write_text('{"prompt": "1=", "answer": "1"}\n')
    Path("own_reward.py").write_text(REWARD)
    Path("model").mkdir()
    for name in ("config.json", ".cache"):
        Path("model", name).write_text("{}")
    judge = Path("judged", "checkpoints", "step_000003")
    shutil.copytree(STAGE / "checkpoints" / "step_000002", judge)
    written = {
        "name": "n",
        "policy": {"kind": "autoregressive", "model": "model", "tokenizer": "org/tokenizer"},
        "task": {"kind": "file", "path": "rows.jsonl", "test_path": "test.jsonl"},
        "rewards": [
            {"kind": "function", "function": "own_reward:vowels", "name": "a"},
            {"kind": "function", "function": "math:sqrt", "name": "b"},
            {"kind": "judge", "judges": ["judged"]},
        ],
        "grpo": {"loss": "my_reward.py"},
        "evaluation": {
            "suite": {"passing": {"kind": "words", "lexicon": "pass.txt", "threshold": 0.5}, "encoder": "encoder"}
        },
    }
    Path("encoder").mkdir()
    Path("pass.txt").write_text("word\n")
    Path("encoder", "config.json").write_text("{}")
    prints = named_files.fingerprints(resolve(parse_recipe(written)).stages[0])
    by_setting: dict[str, set[str]] = {}
    for name, each in prints.items():
        by_setting.setdefault(each["setting"], set()).add(str(Path(name).resolve().relative_to(copied)))
    assert by_setting == {
        "policy.model": {"model/config.json"},
        "task.path": {"rows.jsonl"},
        "task.test_path": {"test.jsonl"},
        "rewards.0.function": {"own_reward.py"},
        "rewards.2.judges": {str(judge / name) for name in ("config.json", "model.safetensors", "vocabulary.json")},
        "grpo.loss": {"my_reward.py"},
        "evaluation.suite.encoder": {"encoder/config.json"},
        "evaluation.suite.passing.lexicon": {"pass.txt"},
    }
    written = {
        "name": "n",
        "policy": {"kind": "autoregressive", "model": "model"},
        "task": {"kind": "file", "path": "rows.jsonl"},
        "stages": [{"stage": "polychromic", "polychromic": {"distance": "embedding", "encoder": "encoder"}}],
    }
    prints = named_files.fingerprints(resolve(parse_recipe(written)).stages[0])
    assert prints["encoder/config.json"]["setting"] == "polychromic.encoder"
    written |= {"task": {"kind": "site", "cases": "*.jsonl", "folder": "encoder"}, "stages": [{"stage": "sft"}]}
    prints = named_files.fingerprints(resolve(parse_recipe(written)).stages[0])
    assert {name for name, each in prints.items() if each["setting"] == "task.cases"} == {"rows.jsonl", "test.jsonl"}


def test_large_files_are_known_by_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "LARGE", 1000)
    monkeypatch.setattr(checksums, "PIECE", 10)
    file = tmp_path / "weights"
    file.write_bytes(bytes(2000))
    whole, parts = checksums.of_file(file), checksums.of_file(file, pieces=True)
    assert (whole["size"], parts["size"], parts["pieces"]) == (2000, 2000, checksums.PIECES)
    for position, noticed in ((0, True), (1999, True), (15, False)):
        changed = bytearray(2000)
        changed[position] = 1
        file.write_bytes(bytes(changed))
        assert (checksums.of_file(file, pieces=True) != parts) is noticed
        assert checksums.of_file(file) != whole


# ---------------------------------------------------------------------- before a run, and folders of runs


def test_a_dry_run_says_from_where_it_goes_on(copied: Path) -> None:
    assert plan(recipe(3)) == [f"{STAGE}: 3 GRPO steps, 2 prompts x 2 completions per batch; continuing after step 2"]
    assert plan(recipe(2))[0].endswith("finished before, after step 2")
    assert plan(recipe(2), fresh=True)[0].endswith("deleting what is there")
    assert plan(recipe(2, name="new"))[0].endswith("from the beginning")
    with pytest.raises(RelgradError, match=r"holds a run of another recipe \(seed: 0 there, 5 now\)"):
        plan(recipe(3, seed=5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": {"kind": "file", "path": "no.jsonl"}},
            r"task\.path: no file or folder 'no\.jsonl' \(working directory",
        ),
        ({"task": {"kind": "masked_text", "text": "no.txt"}}, r"task\.text: no file or folder 'no\.txt'"),
        (
            {"policy": {"kind": "flow", "model": "DFM_checkpoint.pth"}},
            r"policy\.model: no file or folder 'DFM_checkpoint\.pth'",
        ),
        ({"policy": {"kind": "autoregressive", "model": "./nowhere"}}, r"policy\.model: no file or folder 'nowhere'"),
        (
            {"rewards": [{"kind": "function", "function": "no.py:score"}]},
            r"rewards\.0\.function: no file or folder 'no\.py'",
        ),
        ({"rewards": [{"kind": "judge", "judges": ["runs/no"]}]}, r"rewards\.0\.judges: no file or folder 'runs/no'"),
    ],
)
def test_a_dry_run_misses_files_that_are_not_there(copied: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        plan(recipe(name="new", **changes))


def test_built_in_recipes_need_no_file_but_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = {
        "fsdfm-1.3b": "DFM_checkpoint.pth",
        "fill-baseline": "runs/fill/1-sft",
        "forms-flow-baseline": "runs/forms-flow/1-sft",
    }
    for path in RECIPES.glob("*.yaml"):
        if "\nsearch:" in path.read_text(encoding="utf-8"):
            assert load_decision_search(str(path)) or load_search(str(path))
            continue
        whole = resolve(load_recipe(path))
        if path.stem in missing:
            with pytest.raises(RelgradError, match=rf"no file or folder '{missing[path.stem]}'"):
                plan(whole)
        else:
            assert len(plan(whole)) == len(whole.stages)


@pytest.mark.parametrize("command", [("report",), ("evaluate",), ("sample",), ("audit", "--generator", "quick")])
def test_a_folder_of_runs_is_no_run(copied: Path, command: tuple[str, ...]) -> None:
    shutil.copytree(RUN, "runs/s")
    result = CliRunner().invoke(app, [command[0], "runs", *command[1:]], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 2, result.output
    assert "runs is a folder of runs, not a run: give one of those in it, runs/r, runs/s" in result.stderr
    assert not Path("runs", "report.html").exists()


def test_stages_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10-grpo", "2-grpo", "1-sft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    assert [folder.name for folder in stages_in(tmp_path)] == ["1-sft", "2-grpo", "10-grpo"]
