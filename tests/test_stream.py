"""Masked samples on the disk: one producer, several consumers, killed and late ones; and what inspect-batch shows of them."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import forked
from relgrad.commands.cli import app
from relgrad.commands.masked_data import prepare, print_rows, rows_of
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import draw_epochs
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.tasks import masked_stream, masked_text
from relgrad.text import show, stream
from relgrad.text.masking import IGNORE
from relgrad.text.sample_file import read, write_atomic
from relgrad.text.show import Row
from relgrad.text.vocabulary import Vocabulary

EACH = 16
STAGES = "stages=[{type: random}, {type: sticky, bert: true}, {type: span}, {type: line}]"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 8))) for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "my text.txt"
    path.write_text("".join(" ".join(rng.choice(words, rng.integers(3, 9))) + "\n" for _ in range(400)))
    return path


def settings(text: Path) -> list[str]:
    return [f"text={json.dumps(str(text))}", "length=48", STAGES, "held_out_size=20"]


def fill(out: Path, text: Path, **options: Any) -> stream.Plan:
    """A prepared folder, made in this process."""
    chosen = {"files": 3, "ahead": None, "samples_per_file": EACH, "seed": 5, "wrote": lambda *a: None, **options}
    return prepare(out, None, settings(text), **chosen)


@pytest.fixture(scope="module")
def prepared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no test changes."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    fill(folder, text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.glob("*/*.safetensors"))}


def load(folder: Path, **options: Any) -> Any:
    return masked_stream.load(masked_stream.Settings(path=folder, **{"timeout": 20, **options}), seed=0)


def command(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The real `relgrad`, in a process of its own."""
    line = [sys.executable, "-c", "from relgrad.commands.cli import main; main()", *arguments]
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything)


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


# ---------------------------------------------------------------------- what is in a folder


def test_a_stream_is_the_task_it_was_made_of(prepared: Path, text: Path) -> None:
    raw = {"text": str(text), "length": 48, "train_size": 3 * EACH, "held_out_size": 20}
    raw["stages"] = [{"type": "random"}, {"type": "sticky", "bert": True}, {"type": "span"}, {"type": "line"}]
    inside = masked_text.load(masked_text.Settings.model_validate(raw), seed=5)
    task = load(prepared)
    assert [task.train[i] for i in range(len(task.train))] == [inside.train[i] for i in range(3 * EACH)]
    assert list(task.validation) == list(inside.validation)
    assert (len(task.train), len(task.validation)) == (48, 20)
    assert task.train[-1] == task.train[47]
    with pytest.raises(IndexError):
        task.train[48]


def test_a_stream_has_a_test_part_where_its_text_is_long_enough(text: Path, tmp_path: Path) -> None:
    several = [*settings(text), "held_out_fraction=0.4", "test_size=17"]
    options = {"files": 1, "ahead": None, "samples_per_file": EACH, "seed": 5, "wrote": lambda *a: None}
    plan = prepare(tmp_path / "data", None, several, **options)
    assert (plan.held_out, plan.test) == (20, 17)
    task = load(tmp_path / "data")
    raw = {"text": str(text), "length": 48, "held_out_size": 20, "held_out_fraction": 0.4, "test_size": 17}
    raw["stages"] = [{"type": "random"}, {"type": "sticky", "bert": True}, {"type": "span"}, {"type": "line"}]
    inside = masked_text.load(masked_text.Settings.model_validate(raw), seed=5)
    assert list(task.validation) == list(inside.validation)
    assert list(task.test) == list(inside.test)
    truths = [{p.columns["truth"] for p in part} for part in (task.validation, task.test)]
    assert not truths[0] & truths[1]


def test_a_folder_of_two_parts_stays_one(text: Path, tmp_path: Path) -> None:
    """As folders were before there were test parts: their plans say nothing of one."""
    folder, wide = tmp_path / "data", [*settings(text), "held_out_fraction=0.4"]
    options = {"ahead": None, "samples_per_file": EACH, "seed": 5, "wrote": lambda *a: None}
    prepare(folder, None, [*wide, "test_size=0"], files=1, **options)
    plan = json.loads((folder / "stream.json").read_text())
    del plan["test"], plan["task"]["test_size"]
    (folder / "stream.json").write_text(json.dumps(plan))
    before = contents(folder)
    assert load(folder).two_parts
    prepare(folder, None, [], files=2, ahead=None, samples_per_file=None, seed=None, wrote=lambda *a: None)
    prepare(folder, None, wide, files=2, **options)
    assert load(folder).two_parts
    assert {name: whole for name, whole in contents(folder).items() if name in before} == before
    assert len(contents(folder)) == len(before) + 1


def test_the_files_say_what_they_hold(prepared: Path) -> None:
    found = read(prepared / "train" / "000001.safetensors")
    vocabulary = Vocabulary.load(prepared)
    assert {k: found.header[k] for k in ("split", "file", "seed", "vocabulary")} == {
        "split": "train", "file": 1, "seed": 5, "vocabulary": vocabulary.fingerprint,
    }  # fmt: skip
    arrays = load_file(prepared / "train" / "000001.safetensors")
    assert {n: (a.dtype.name, a.shape) for n, a in arrays.items()} == {
        "truth_ids": ("int32", (EACH, 48)), "masked_ids": ("int32", (EACH, 48)), "label_ids": ("int32", (EACH, 48)),
        "lengths": ("int32", (EACH,)), "mask_ratio": ("float32", (EACH,)), "strategy": ("int8", (EACH,)),
    }  # fmt: skip
    for row, length in enumerate(arrays["lengths"]):
        assert (arrays["masked_ids"][row, length:] == vocabulary.pad_id).all()
        assert (arrays["label_ids"][row, length:] == IGNORE).all()
        masks = (arrays["masked_ids"][row] == vocabulary.mask_id).sum()
        assert arrays["mask_ratio"][row] == pytest.approx(masks / length)


@pytest.mark.slow
def test_every_process_writes_the_same_bytes(prepared: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["--files", "3", "--samples-per-file", str(EACH), "--seed", "5", *settings(text)[1:]]
    process = command("prepare", "--text", str(text), "--out", str(tmp_path / "a"), *arguments, PYTHONHASHSEED="77")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out == f"{tmp_path / 'a'}: 3 files of {EACH} samples, 20 held-out samples\n"
    assert contents(tmp_path / "a") == contents(prepared)
    assert (tmp_path / "a" / "stream.json").read_bytes() == (prepared / "stream.json").read_bytes()


def test_a_killed_producer_goes_on_where_it_was(text: Path, tmp_path: Path) -> None:
    fill(tmp_path / "whole", text, files=40)
    arguments = ["--files", "40", "--samples-per-file", str(EACH), "--seed", "5", *settings(text)]
    killed = tmp_path / "killed"
    for least in (1, 12):
        process = command("prepare", "--out", str(killed), *arguments)
        until(lambda least=least: len(list(killed.glob("train/*.safetensors"))) > least, "a file")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    before = contents(killed)
    ages = {name: (killed / name).stat().st_mtime_ns for name in before}
    fill(killed, text, files=40)
    assert contents(killed) == contents(tmp_path / "whole")
    assert all((killed / name).stat().st_mtime_ns == age for name, age in ages.items()), (
        "what was there is not written again"
    )


def test_a_folder_is_filled_further_without_saying_how_it_was_begun(prepared: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    told: list[tuple[str, int, int | None]] = []
    prepare(
        tmp_path / "data",
        None,
        [],
        files=5,
        ahead=None,
        samples_per_file=None,
        seed=None,
        wrote=lambda *a: told.append(a),
    )
    assert told == [("held_out", 0, 2), ("held_out", 1, 2), *(("train", i, 5) for i in range(5))]
    fill(tmp_path / "whole", text, files=5)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_another_plan_for_the_same_folder_is_refused(prepared: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    before = contents(folder)
    with pytest.raises(RelgradError, match=r"begun with other settings \(seed: 5 there, 6 asked for\)"):
        fill(folder, text, seed=6)
    with pytest.raises(RelgradError, match="samples_per_file: 16 there, 32 asked for"):
        fill(folder, text, samples_per_file=32)
    with pytest.raises(RelgradError, match="has 3 files, more than --files 2"):
        fill(folder, text, files=2)
    changed = tmp_path / "changed.txt"
    changed.write_text(text.read_text() + "abc\n")
    plan = json.loads((folder / "stream.json").read_text())
    plan["task"]["text"] = str(changed)
    (folder / "stream.json").write_text(json.dumps(plan))
    with pytest.raises(RelgradError, match="text_sha256"):
        prepare(folder, None, [], files=4, ahead=None, samples_per_file=None, seed=None, wrote=lambda *a: None)
    assert contents(folder) == before


def test_a_folder_that_cannot_be_written(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RelgradError, match=r"file/data cannot be written"):
        fill(tmp_path / "file" / "data", text)
    written: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_atomic(path, content)

    monkeypatch.setattr(stream, "write_atomic", full)
    with pytest.raises(RelgradError, match=r"No space left.*the same command goes on with the rest"):
        fill(tmp_path / "data", text)
    monkeypatch.undo()
    there = len(contents(tmp_path / "data"))
    assert 0 < there < 5
    fill(tmp_path / "data", text)
    assert len(contents(tmp_path / "data")) == 5


# ---------------------------------------------------------------------- reading while it is written


class Producer:
    """An endless producer in a thread, which ends when the block is left."""

    def __init__(self, folder: Path, ahead: int, task: Any) -> None:
        self.folder, self.ending = folder, False
        windows = task.train.windows
        endless = masked_text.MaskedPrompts(windows, task.train.stages, sys.maxsize, task.train.key)
        plan = stream.Plan(
            task={}, text_sha256="", vocabulary=windows.vocabulary.fingerprint, seed=5, length=48, samples_per_file=EACH,
            ahead=ahead, held_out=0,
        )  # fmt: skip
        stream.begin(folder, plan, windows.vocabulary)
        arguments = (
            folder,
            plan,
            {"train": endless, "held_out": [], "test": []},
            windows.vocabulary.pad_id,
            self.wrote,
        )
        self.thread = threading.Thread(target=self.run, args=arguments)

    def run(self, *arguments: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            stream.produce(*arguments, poll=0.01)

    def wrote(self, split: str, number: int) -> None:
        if self.ending:
            raise KeyboardInterrupt

    def __enter__(self) -> Producer:
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ending = True
        shutil.rmtree(self.folder / "consumers", ignore_errors=True)
        farthest = json.dumps({"host": "nowhere", "pid": 1, "file": 10**6})
        (self.folder / "consumers").mkdir()
        unfinished = self.folder / "consumers" / "end.tmp"  # the producer may be reading: a whole file or none
        unfinished.write_text(farthest)
        unfinished.rename(self.folder / "consumers" / "end.json")
        self.thread.join(30)
        assert not self.thread.is_alive()

    def files(self) -> list[int]:
        """Numbers of the files that are there once the producer waits."""

        def waiting() -> bool:
            path = self.folder / "producer.json"
            state = json.loads(path.read_text())["state"] if path.is_file() else ""
            if not state.startswith("waiting before file"):
                return False
            slowest, _ = stream.slowest(self.folder)
            return int(state.split()[3]) > slowest + stream.read_plan(self.folder).ahead

        until(waiting, "a waiting producer")
        return sorted(int(p.stem) for p in self.folder.glob("train/*.safetensors"))


@pytest.fixture
def inside(text: Path) -> Any:
    return masked_text.load(masked_text.Settings(text=str(text), length=48, held_out_size=0), seed=5)


def test_the_producer_stays_ahead_of_the_slowest_consumer_and_deletes_nothing(tmp_path: Path, inside: Any) -> None:
    with Producer(tmp_path / "s", 2, inside) as producer:
        assert producer.files() == [0, 1], "no consumer yet: two files"
        fast, slow = load(tmp_path / "s", consumer="fast"), load(tmp_path / "s", consumer="slow")
        assert len(fast.train) == sys.maxsize
        assert fast.train[0] == inside.train[0]
        assert producer.files() == [0, 1, 2]
        assert [fast.train[i] for i in range(9 * EACH)] == [inside.train[i] for i in range(9 * EACH)]
        assert producer.files() == list(range(11)), "file 8 and two more"
        assert slow.train[EACH] == inside.train[EACH]
        assert stream.slowest(tmp_path / "s") == (1, "consumer slow")
        with pytest.raises(RelgradError, match=r"000011\.safetensors, which.*for consumer slow.*consumers/slow\.json"):
            load(tmp_path / "s", consumer="fast", timeout=0.2).train[11 * EACH]
        assert slow.train[5 * EACH] == inside.train[5 * EACH]
        assert fast.train[0] == inside.train[0], "nothing that was read is gone"
        assert producer.files() == list(range(11))


def test_a_consumer_that_ended_holds_nobody_up(tmp_path: Path, inside: Any) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with Producer(tmp_path / "s", 1, inside) as producer:
        (tmp_path / "s" / "consumers").mkdir()
        here = {"host": stream._who()["host"], "pid": ended.pid, "file": 0}
        (tmp_path / "s" / "consumers" / "gone.json").write_text(json.dumps(here))
        assert producer.files() == [0, 1], "all have ended: from where they were"
        task = load(tmp_path / "s", consumer="alive")
        assert task.train[4 * EACH] == inside.train[4 * EACH]
        assert producer.files() == list(range(6))
        elsewhere = tmp_path / "s" / "consumers" / "elsewhere.json"
        elsewhere.write_text(json.dumps({"host": "another", "pid": 1, "file": 2}))
        assert stream.slowest(tmp_path / "s") == (2, "consumer elsewhere"), (
            "on another machine, and not silent for long"
        )
        long_ago = time.time() - stream.SILENT - 1
        os.utime(elsewhere, (long_ago, long_ago))
        assert stream.slowest(tmp_path / "s") == (4, "consumer alive")
        elsewhere.write_text("{")
        with pytest.raises(RelgradError, match=r"elsewhere\.json: not the position of a consumer"):
            stream.slowest(tmp_path / "s")


CONSUMER = """
import sys, hashlib
from pathlib import Path
from relgrad.tasks import masked_stream
path, name, count = sys.argv[1:]
task = masked_stream.load(masked_stream.Settings(path=Path(path), consumer=name, timeout=60), seed=0)
digest = hashlib.sha256()
for i in range(int(count)):
    prompt = task.train[i]
    digest.update(repr((prompt.id, prompt.content, sorted(prompt.columns.items()))).encode())
print(digest.hexdigest())
"""


def test_two_processes_read_all_while_a_third_writes(text: Path, tmp_path: Path) -> None:
    """The consumers start before there is a folder; each is told of every sample, in order."""
    folder, count, script = tmp_path / "s", 25 * EACH, tmp_path / "consumer.py"
    script.write_text(CONSUMER)
    arguments = ["--files", "25", "--ahead", "2", "--samples-per-file", str(EACH), "--seed", "5", *settings(text)]
    commands = [("python", script, folder, name, count) for name in ("a", "b")]
    with ThreadPoolExecutor(3) as pool:
        ended = pool.map(
            lambda words: forked.run(*words), [*commands, ("relgrad", "prepare", "--out", folder, *arguments)]
        )
    *consumers, producer = ended
    assert (producer.returncode, producer.stderr) == (0, "")
    assert consumers[0].stdout == consumers[1].stdout != "", consumers
    assert len(contents(folder)) == 25 + 2
    assert json.loads((folder / "producer.json").read_text())["state"] == "done"
    again = forked.run("python", script, folder, "c", count)
    assert again.stdout == consumers[0].stdout, "a run that comes later reads the same"


def test_shards_share_the_files(prepared: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    fill(folder, text, files=7)
    whole, parts = load(folder), [load(folder, shard=i, shards=3) for i in range(3)]
    read_by = [[p.train[i].id for i in range(len(p.train))] for p in parts]
    assert [len(ids) for ids in read_by] == [3 * EACH, 2 * EACH, 2 * EACH]
    assert sorted(i for ids in read_by for i in ids) == list(range(7 * EACH))
    assert parts[1].train[EACH] == whole.train[4 * EACH]
    with pytest.raises(RelgradError, match="has 7 files, so shard 7 of 8 has none"):
        load(folder, shard=7, shards=8)
    with pytest.raises(ValueError, match="shards are counted from 0"):
        masked_stream.Settings(path=folder, shard=2, shards=2)


# ---------------------------------------------------------------------- what does not come


def test_waiting_for_a_folder_that_nobody_makes(tmp_path: Path) -> None:
    with pytest.raises(
        RelgradError, match=r"waited .* s for .*stream\.json.*relgrad prepare --out .*nowhere --text my\.txt"
    ):
        load(tmp_path / "nowhere", timeout=0.2)


def test_waiting_says_what_became_of_the_producer(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    (folder / "train" / "000001.safetensors").unlink()
    task = load(folder, timeout=0.2)
    assert task.train[EACH - 1].id == EACH - 1

    def message() -> str:
        with pytest.raises(RelgradError) as error:
            task.train[EACH]
        text = str(error.value)
        assert f"for {folder / 'train' / '000001.safetensors'}, which did not come" in text
        return text

    assert re.search(r"'done' \d+ s ago\) is not running\. Start one, it goes on where that one ended", message())
    assert message().endswith(f"`relgrad prepare --out {folder}`")
    (folder / "producer.json").write_text(json.dumps({**stream._who(), "state": "writing train/000001.safetensors"}))
    assert "seems to be alive: give it more time with a higher task.timeout" in message()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / "producer.json").write_text(json.dumps({**stream._who(), "pid": ended.pid, "state": "writing"}))
    assert f"(process {ended.pid} on " in message()
    assert "is not running" in message()
    (folder / "producer.json").write_text(json.dumps({"host": "another", "pid": 1, "state": "writing"}))
    assert "seems to be alive" in message()
    long_ago = time.time() - 900
    os.utime(folder / "producer.json", (long_ago, long_ago))
    assert "900 s ago) is not running" in message()
    (folder / "producer.json").unlink()
    assert "No producer has left a sign of life" in message()
    prepare(folder, None, [], files=None, ahead=None, samples_per_file=None, seed=None, wrote=lambda *a: None)
    assert task.train[EACH].id == EACH, "the command of the message helps"


def spoiled(folder: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> None:
    """Rewrite the first training file with its columns and header changed."""
    path = folder / "train" / "000000.safetensors"
    arrays, header = load_file(path), dict(read(path).header)
    change(arrays, header)
    save_file(arrays, path, {"relgrad": json.dumps(header)})


def too_long(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    arrays["lengths"][0] = 999


def foreign_ids(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    arrays["masked_ids"][0, 0] = 500


def other_columns(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    arrays["more"] = arrays["lengths"]


def other_shape(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    arrays["label_ids"] = arrays["label_ids"][:, :5].copy()


def fewer(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    for name in list(arrays):
        arrays[name] = arrays[name][:3].copy()


def other_strategy(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    header["strategies"] = ["stripes"] * 4


def no_names(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    header["strategies"] = []


def other_vocabulary(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    header["vocabulary"] = "0123"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_long, "a length is outside 1 to 48"),
        (foreign_ids, "masked_ids has ids outside 0 to"),
        (other_columns, "it has the columns .*more"),
        (other_shape, r"label_ids is int32 \(16, 5\), not int32 \(16, 48\)"),
        (fewer, "has 3 samples, its plan says 16"),
        (other_strategy, "masked by 'stripes'; known are random, sticky, span, line"),
        (no_names, "a strategy is outside"),
        (other_vocabulary, "made with another vocabulary"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_of_another_kind_is_refused(prepared: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    spoiled(tmp_path / "data", change)
    with pytest.raises(RelgradError, match=message):
        load(tmp_path / "data").train[0]


def test_a_file_that_is_cut_off_or_no_safetensors_is_refused(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data" / "train" / "000000.safetensors"
    whole = path.read_bytes()
    save_file({"a": np.zeros(3)}, tmp_path / "bare.safetensors")
    for content in (whole[:-100], whole[:5], b"", b"hello", (tmp_path / "bare.safetensors").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            RelgradError, match=r"000000\.safetensors: not a file of masked samples.*Delete it and run `relgrad prepare"
        ):
            load(tmp_path / "data").train[0]
    path.unlink()
    prepare(
        tmp_path / "data", None, [], files=None, ahead=None, samples_per_file=None, seed=None, wrote=lambda *a: None
    )
    assert path.read_bytes() == whole, "what the message says helps"


def test_a_plan_or_vocabulary_of_something_else_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    Vocabulary("byte").save(folder)
    with pytest.raises(RelgradError, match=r"stream\.json was made with another vocabulary"):
        load(folder)
    (folder / "stream.json").write_text('{"version": 2}')
    with pytest.raises(RelgradError, match="not the plan of a folder of masked samples"):
        load(folder)


def test_a_consumer_that_cannot_leave_its_position_says_so(tmp_path: Path, inside: Any) -> None:
    with Producer(tmp_path / "s", 2, inside) as producer:
        producer.files()
        task = load(tmp_path / "s", consumer="a")
        (tmp_path / "s" / "consumers").write_text("in the way")
        with pytest.raises(
            RelgradError, match=r"cannot be written.*consumers, so they must be able to leave their position"
        ):
            task.train[0]
        (tmp_path / "s" / "consumers").unlink()


# ---------------------------------------------------------------------- training on it


def test_a_stream_is_read_in_order_each_file_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(stream, "read", counting)
    task = load(prepared)
    opened.clear()
    drawn = [p.id for first in range(0, 96, 12) for p in draw_epochs(task.train, first, 12, seed=3)]
    assert drawn == [*range(48), *range(48)]
    assert opened == [f"{i:06d}.safetensors" for i in (0, 1, 2, 0, 1, 2)]
    shuffled = [p.id for p in draw_epochs(list(task.train), 0, 48, seed=3)]
    assert sorted(shuffled) == list(range(48)) != shuffled


def test_a_run_trains_on_a_stream(prepared: Path, text: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "streamed", "stage": "sft", "out": str(tmp_path), "task": {"kind": "masked_stream", "path": str(prepared)},
        "policy": {"kind": "fill_in", "text": str(text), "block_size": 48, "n_layer": 1, "n_head": 2, "n_embd": 16},
        "sft": {"steps": 4, "batch_size": 8, "completion_column": "truth", "learning_rate": 1e-2},
    }  # fmt: skip
    (folder,) = run_recipe(parse_recipe(recipe))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert records[-1]["loss"] < records[0]["loss"]


# ---------------------------------------------------------------------- what masks look like

ABC = Vocabulary.of_text("abcd\n")
M = ABC.mask_id
A, B, C, D, END = (ABC.encode(c)[0] for c in "abcd\n")
ROW = Row((A, M, M, D, END, M, B, C), (IGNORE, B, C, IGNORE, IGNORE, END, A, C), 10, "sticky")


def test_pieces_of_a_sample() -> None:
    """In order: text, two masks, text, a mask over a line end, a swapped symbol (a shown as b), one left as it is."""
    assert show.pieces(ROW, ABC, truth=False) == [
        ("a", ""), ("██", "mask"), ("d\n", ""), ("█", "mask"), ("b", "swapped"), ("c", "kept"),
    ]  # fmt: skip
    found = show.pieces(ROW, ABC, truth=True)
    assert found == [("a", ""), ("bc", "truth"), ("d\n", ""), ("\n", "truth"), ("b", "swapped"), ("c", "kept")]
    assert show.plain(found) == "a⟦bc⟧d\n⟦\n⟧bc"
    bare = show.pieces(Row((7, 8), (IGNORE, 9), None), None, truth=True)
    assert bare == [("7 ", ""), ("9 ", "truth")]


def test_figures_of_samples() -> None:
    other = Row((M, M, M, M, A), (A, A, A, A, IGNORE), 10, "span")
    found = show.figures([ROW, other], ABC)
    assert list(found) == ["all", "span", "sticky"]
    every = found["all"]
    assert every.samples == 2
    assert every.ratio == pytest.approx((0.5875, 0.375 + 0.1 * 0.425, 0.5875, 0.375 + 0.9 * 0.425, 0.8))
    assert (every.masked, every.labelled, every.padding) == pytest.approx((7 / 20, 9 / 20, 7 / 20))
    assert (found["span"].samples, found["span"].padding) == (1, pytest.approx(0.5))
    assert every.target is None
    unknown = show.figures([Row((7, 8), (IGNORE, 9), None)], None)["all"]
    assert (unknown.ratio, unknown.masked, unknown.labelled, unknown.padding) == (None, None, 0.5, None)
    judged = show.figures([Row((A, B), None, 4, "line", 0.25, 0.5), Row((A, B), None, 4, "line", 0.75, None)], ABC)[
        "all"
    ]
    assert judged.target == pytest.approx((0.5, 0.3, 0.5, 0.7, 0.75))
    assert (judged.ratio, judged.labelled, judged.padding) == ((0.5,) * 5, None, 0.5)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


def test_inspecting_a_prepared_folder_and_its_files(prepared: Path) -> None:
    arrays = [load_file(prepared / "train" / f"00000{i}.safetensors") for i in range(3)]
    ratio = np.concatenate([a["mask_ratio"] for a in arrays])
    asked = np.concatenate([a["label_ids"] for a in arrays]) != IGNORE
    output = invoke("inspect-batch", str(prepared), "-n", "2")
    cells = next(line.split() for line in output.splitlines() if line.startswith("all"))
    quantiles = [ratio.mean(), *np.quantile(ratio, (0.1, 0.5, 0.9, 1.0))]
    assert [float(c) for c in cells[2:7]] == pytest.approx(quantiles, abs=6e-4)
    assert cells[1] == "48"
    assert cells[8] == f"{asked.mean():.1%}"
    assert [line.split()[0] for line in output.splitlines()[-5:]] == ["all", "line", "random", "span", "sticky"]
    first = load(prepared).train[0]
    assert str(first.content) in output
    assert "\x1b" not in output, "not a terminal: no colours"
    shown = invoke("inspect-batch", str(prepared / "train" / "000000.safetensors"), "-n", "1", "--truth")
    assert f"sample 0  {first.columns['strategy']}" in shown
    assert first.columns["truth"].replace("\n", "") == "".join(
        c for c in shown.partition("\n")[2].partition("\n\nstrategy")[0] if c not in "⟦⟧\n"
    )
    held_out = invoke("inspect-batch", str(prepared), "-n", "1", "--held-out")
    assert str(load(prepared).validation[0].content) in held_out
    assert "1,000" not in held_out
    assert next(line.split()[1] for line in held_out.splitlines() if line.startswith("all")) == "20"


def test_inspecting_a_recipe(text: Path, prepared: Path, tmp_path: Path) -> None:
    head = "policy: {kind: fill_in}\nstage: sft\n"
    (tmp_path / "in.yaml").write_text(
        head + f"task: {{kind: masked_text, text: {json.dumps(str(text))}, length: 32}}\n"
    )
    output = invoke("inspect-batch", str(tmp_path / "in.yaml"), "-n", "1", "--limit", "70", "stages=[{type: span}]")
    assert "sample 0  span" in output
    assert next(line.split()[1] for line in output.splitlines() if line.startswith("all")) == "70"
    (tmp_path / "on.yaml").write_text(head + f"task: {{kind: masked_stream, path: {json.dumps(str(prepared))}}}\n")
    assert str(load(prepared).train[0].content) in invoke("inspect-batch", str(tmp_path / "on.yaml"), "-n", "1")
    invoke(
        "prepare",
        str(tmp_path / "in.yaml"),
        "--out",
        str(tmp_path / "x"),
        "--files",
        "1",
        "--samples-per-file",
        "4",
        "length=24",
    )
    task = json.loads((tmp_path / "x" / "stream.json").read_text())["task"]
    assert (task["length"], task["text"]) == (24, str(text))
    (tmp_path / "other.yaml").write_text(head + "task: {kind: digits}\n")
    with pytest.raises(RelgradError, match="no stage has a task of kind masked_text; there are digits"):
        prepare(
            tmp_path / "y",
            str(tmp_path / "other.yaml"),
            [],
            files=1,
            ahead=None,
            samples_per_file=4,
            seed=0,
            wrote=lambda *a: None,
        )


def test_inspecting_an_original_batch_file(tmp_path: Path) -> None:
    itos = dict(enumerate("abcd\n")) | {5: "[MASK]", 6: "[CLS]", 8: "[PAD]"}
    meta = {"itos": itos, "mask_token_id": 5, "cls_token_id": 6, "pad_token_id": 8}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    x = torch.tensor([[0, 5, 5, 3, 8, 8], [0, 1, 2, 5, 4, 8]])
    y = torch.tensor([[-100, 1, 2, -100, -100, -100], [-100, -100, 3, 3, -100, -100]])
    torch.save({"tensors": {"x": x, "y": y}, "metadata": {"stage_info": [{"type": "span"}] * 2}}, tmp_path / "a.pt")
    rows, vocabulary = rows_of(str(tmp_path / "a.pt"), [], meta=tmp_path / "meta.pkl", held_out=False, limit=10)
    assert vocabulary is not None
    assert [show.plain(show.pieces(r, vocabulary, truth=True)) for r in rows] == ["a⟦bc⟧d", "abc⟦d⟧\n"]
    figures = show.figures(rows, vocabulary)["all"]
    assert (figures.masked, figures.labelled, figures.padding) == pytest.approx((3 / 12, 4 / 12, 3 / 12))
    assert "0 ⟦1 2 ⟧3 8 8" in invoke("inspect-batch", str(tmp_path / "a.pt"), "--truth")
    assert "give --meta FILE" in invoke("inspect-batch", str(tmp_path / "a.pt"))
    judged = {"input_ids": torch.tensor([[6, 0, 1, 8], [6, 2, 2, 2]]), "targets": torch.tensor([0.25, 0.5])}
    ratios = {"masking_strategy": ["line", "original"], "masking_ratio": [0.5, 0.0]}
    torch.save({"tensors": judged, "metadata": ratios}, tmp_path / "judge.pt")
    output = invoke("inspect-batch", str(tmp_path / "judge.pt"), "--meta", str(tmp_path / "meta.pkl"))
    assert "sample 0  line  target 0.250\nab\n" in output
    assert [line.split()[2] for line in output.splitlines() if line.startswith("all")] == ["0.250", "0.375"]


def test_control_characters_of_a_text_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = Vocabulary.of_text("a\x1b\n")
    print_rows([Row((0, 1, 2), (IGNORE, IGNORE, 2), 3, "span")], vocabulary, 1, truth=True)
    assert "\x1b" not in capsys.readouterr().out


def test_sources_that_are_none(tmp_path: Path, prepared: Path) -> None:
    def refused(source: Path | str, message: str) -> None:
        with pytest.raises(RelgradError, match=message):
            rows_of(str(source), [], meta=None, held_out=False, limit=5)

    refused(tmp_path, r"no stream\.json, so this is no folder of masked samples")
    refused(tmp_path / "nowhere", "no recipe")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "is a text file")
    shutil.copytree(prepared, tmp_path / "data")
    for path in (tmp_path / "data" / "train").iterdir():
        path.unlink()
    refused(tmp_path / "data", r"no samples in it \(train\)")


@pytest.mark.parametrize("name", ["prepare", "inspect-batch"])
def test_the_commands_show_an_example_that_works(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "my.txt")
    invoke("prepare", "--text", "my.txt", "--out", "data/my", "--files", "1", "--samples-per-file", "4")
    shutil.rmtree("data") if name == "prepare" else None
    output = " ".join(invoke(name, "--help").split())
    example = output.partition("Example: relgrad ")[2].partition(" ╭")[0].split()
    assert example[0] == name
    small = ["--samples-per-file", "4"] if name == "prepare" else []
    assert invoke(*example, *small)
