"""Runs that a Python script starts: `relgrad.train`, what it returns, and what its run folder says to others."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import forked
import relgrad
from relgrad.core import live
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.python.sections import Sections
from relgrad.runs.recipe import parse_recipe
from relgrad.tasks import Task
from test_docs import ROOT, attribute, blocks

ROWS = [{"prompt": f"{n}:", "letter": "a"} for n in range(20)]
TINY = {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 4}
GRPO = {"steps": 2, "num_prompts": 2, "num_generations": 4, "learning_rate": 1e-3}


def share(completions: Sequence[str], letter: Sequence[str], **columns: Any) -> list[float]:
    """A reward at the top of a module."""
    return [text.count(wanted) / max(len(text), 1) for text, wanted in zip(completions, letter, strict=True)]


def weighted(weight: float) -> Callable[..., list[float]]:
    """A reward inside of another function."""

    def length(completions: Sequence[str], **columns: Any) -> list[float]:
        return [weight * len(text) for text in completions]

    return length


class Lengths:
    """A reward that is an object."""

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]


def train(folder: Path, rewards: Any = share, rows: Any = ROWS, **more: Any) -> relgrad.Run:
    return relgrad.train(
        TINY, rows, rewards, name="r", **{"out": str(folder), "grpo": GRPO, "evaluation": {"num_prompts": 2}, **more}
    )


def sections(folder: Path, writes: bool = True) -> Sections:
    return Sections(folder / "r", writes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> relgrad.Run:
    """A run with a reward that has a place, and one that has none."""
    return train(tmp_path_factory.mktemp("runs"), [share, {"function": weighted(0.5), "weight": 0.1}])


# ---------------------------------------------------------------------- values and sections


def test_a_name_is_an_autoregressive_model(tmp_path: Path) -> None:
    of = sections(tmp_path)
    assert of.policy("Qwen/Qwen3-0.6B") == {"kind": "autoregressive", "model": "Qwen/Qwen3-0.6B"}
    assert of.policy(TINY) == TINY


def test_a_function_is_named_by_its_place_where_it_has_one(tmp_path: Path) -> None:
    of, run = sections(tmp_path), str(tmp_path / "r")
    assert of.rewards(share) == [{"kind": "function", "function": f"{__name__}:share"}]
    (kept,) = of.rewards([weighted(1.0)])
    assert kept == {"kind": "python", "function": f"{__name__}:weighted.<locals>.length", "run": run}
    assert live.find(run, kept["function"])(["abc"]) == [3.0]
    assert of.rewards([Lengths()]) == [{"kind": "python", "function": f"{__name__}:Lengths", "run": run}]


def test_functions_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    """Two of one run by a number; those of two runs by the run; and the same script, started again, names them as before."""
    first, second = sections(tmp_path).rewards([weighted(2.0), weighted(3.0)])
    (other,) = sections(tmp_path / "other").rewards(weighted(5.0))
    functions = [live.find(r["run"], r["function"]) for r in (first, second, other)]
    assert [function(["ab"]) for function in functions] == [[4.0], [6.0], [10.0]]
    assert sections(tmp_path).rewards([weighted(7.0), weighted(8.0)]) == [first, second]
    assert live.find(first["run"], first["function"])(["a"]) == [7.0]


def test_sections_stay_as_they_are_and_functions_in_them_are_named(tmp_path: Path) -> None:
    exact, named = {"kind": "exact", "weight": 0.5}, {"weight": 0.25, "name": "letters"}
    place = {"kind": "function", "function": f"{__name__}:share"}
    assert sections(tmp_path).rewards([exact, {"function": share, **named}]) == [exact, {**named, **place}]


def test_values_inside_of_stages_are_sections_too(tmp_path: Path) -> None:
    stages = [{"stage": "grpo", "rewards": share, "evaluation": {"every": 1, "rewards": [share]}}]
    named = [{"kind": "function", "function": f"{__name__}:share"}]
    recipe = sections(tmp_path).recipe({"policy": "m", "stages": stages})
    assert recipe["stages"] == [{"stage": "grpo", "rewards": named, "evaluation": {"every": 1, "rewards": named}}]


def test_rows_are_a_file_called_after_what_is_in_it(tmp_path: Path) -> None:
    from datasets import Dataset

    of = sections(tmp_path)
    one = of.task(ROWS)
    assert one == of.task(Dataset.from_list(ROWS))
    assert [json.loads(line) for line in Path(one["path"]).read_text().splitlines()] == ROWS
    other = of.task({"train": ROWS[:5], "test": ROWS[5:], "template": "{letter}"})
    assert other.keys() == {"kind", "path", "test_path", "template"}
    assert other["path"] != one["path"]
    assert not Path(sections(tmp_path / "second process", writes=False).task(ROWS)["path"]).exists()


def test_a_task_is_kept(tmp_path: Path) -> None:
    task = Task("mine", [Prompt("a")], [Prompt("b")])
    section = sections(tmp_path).task(task)
    assert section["kind"] == "python"
    assert live.find(section["run"], section["task"]) is task


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("questions", "train is str; give a list of rows"),
        (3, "train is int; give a list of rows"),
        (["a", "b"], "row 1 to train is str; a row is a mapping"),
        ([{"prompt": "a"}, {"prompt": "b", "picture": object()}], "row 2 to train: column 'picture' is object"),
        ({"tests": ROWS}, "received a mapping with 'tests'; it has a `kind` of task, or `train` rows"),
        ({"train": ROWS, "tests": ROWS}, "tests"),
        ([], "the dataset is empty"),
        ([{"question": "a"}], "no column 'prompt'; the columns are 'question'"),
    ],
)
def test_what_is_no_task_is_refused(task: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=says):
        train(tmp_path, rows=task)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rewards": [3]}, r"rewards: received 3 \(int\); give functions, or sections"),
        ({"grpo": {**GRPO, "epsilom": 0.1}}, "epsilom"),
        ({"grpo": {**GRPO, "num_generations": 1}}, "a group needs at least 2 completions"),
        ({"steps": 4}, "steps"),
    ],
)
def test_wrong_settings_have_the_messages_of_a_recipe(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=says):
        train(tmp_path, **more)


@pytest.mark.parametrize("name", ["../esc/x y", "a/b", "a\\b", "..", ".", "", "  ", "/tmp/x"])
def test_a_name_that_is_a_path_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    with pytest.raises(RelgradError, match="the run's folder in `out`"):
        relgrad.train(TINY, ROWS, share, name=name, out=str(out), grpo=GRPO)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]
    recipe = {"policy": TINY, "task": {"kind": "file", "path": "rows.jsonl"}, "rewards": [{"kind": "exact"}]}
    with pytest.raises(RelgradError, match=r"name: .*the run's folder in `out`"):
        parse_recipe({"name": name, **recipe})
    assert parse_recipe({"name": "two words..", **recipe}).name == "two words.."


# ---------------------------------------------------------------------- what comes of it


def test_what_a_run_offers(run: relgrad.Run) -> None:
    from transformers import PreTrainedModel

    assert run.report == run.folder / "1-grpo" / "report.html"
    assert run.report.is_file()
    frame = run.metrics
    assert frame["step"].tolist() == [1, 2]
    assert set(frame["stage"]) == {"1-grpo"}
    score = run.evaluate("validation", **{"evaluation.num_generations": 4})
    assert score["score"] == pytest.approx(run.evaluations[-1]["score"])
    samples = run.sample("7:", n=3)
    assert len(samples) == 3
    assert all(math.isfinite(sample["logp"]) for sample in samples)
    assert {"share", "length"} <= run.sample(n=1)[0].keys()
    assert isinstance(run.model, PreTrainedModel)
    with pytest.raises(RelgradError, match="part='vali': it is test or validation"):
        run.evaluate("vali")  # type: ignore[arg-type]
    with pytest.raises(RelgradError, match="n=0: at least one"):
        run.sample("7:", n=0)
    assert run.compare(run.stages[-1], on=run)["measured_as"] == str(run.folder)
    record = run.compare(run.stages[-1])
    assert record["figures"][0]["differences"][1]["value"] == pytest.approx(0.0)


def test_any_run_folder_can_be_opened(run: relgrad.Run, tmp_path: Path) -> None:
    assert relgrad.Run(str(run.folder)).metrics.equals(run.metrics)
    assert relgrad.Run(run.folder / "1-grpo").stages == run.stages
    with pytest.raises(RelgradError, match="no run folder"):
        relgrad.Run(tmp_path)


def test_a_renamed_run_is_read_with_its_rows(run: relgrad.Run, tmp_path: Path) -> None:
    score = run.evaluate("validation")["score"]
    moved = run.folder.rename(tmp_path / "moved")
    try:
        assert relgrad.Run(moved).evaluate("validation")["score"] == score
    finally:
        moved.rename(run.folder)


def test_the_same_script_again_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = {**GRPO, "lr_scheduler_type": "constant"}
    first = train(tmp_path, grpo={**constant, "steps": 1}).metrics
    again = train(tmp_path, grpo=constant).metrics
    assert "resumed after step 1" in capsys.readouterr().out
    assert again["reward"][0] == first["reward"][0]
    whole = train(tmp_path / "whole", grpo=constant).metrics
    assert again["reward"].tolist() == whole["reward"].tolist()
    with pytest.raises(RelgradError, match="path"):
        train(tmp_path, rows=ROWS[1:], grpo=constant)
    assert train(tmp_path, rows=ROWS[1:], grpo=constant, fresh=True).metrics["step"].tolist() == [1, 2]


def test_the_recipe_says_what_cannot_be_written_down(run: relgrad.Run, tmp_path: Path) -> None:
    """The command line, another process, says which function it cannot have."""
    recipe = yaml.safe_load((run.folder / "1-grpo" / "recipe.yaml").read_text())
    assert [reward["kind"] for reward in recipe["rewards"]] == ["function", "python"]
    assert Path(recipe["task"]["path"]).parent == run.folder / "data"
    ended = forked.run("relgrad", "evaluate", run.folder, cwd=tmp_path)
    assert ended.returncode == 2
    said = " ".join(ended.stderr.split())
    assert "weighted.<locals>.length' is an object of the Python script that started the run" in said
    assert "Traceback" not in ended.stderr


SCRIPT = """
import relgrad

def length(completions, **columns):
    return [float(len(text)) for text in completions]

GUARD
relgrad.train(TINY, ROWS, length, name="r", grpo=GRPO, evaluation={"num_prompts": 2})
"""


def script(folder: Path, guard: str) -> Path:
    lines = SCRIPT.replace("relgrad.train", f"{'    ' if guard else ''}relgrad.train").replace("GUARD", guard)
    for name, value in (("TINY", TINY), ("ROWS", ROWS[:8]), ("GRPO", GRPO)):
        lines = lines.replace(name, repr(value))
    file = folder / "script.py"
    file.write_text(lines)
    return file


def test_two_processes_share_a_script(tmp_path: Path) -> None:
    """Each of them is the script; one run comes of it, which the command line can use by the script's own function."""
    file = script(tmp_path, 'if __name__ == "__main__":')
    ended = forked.ranks(2, "python", file, cwd=tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended
    assert json.loads((tmp_path / "runs/r/1-grpo/environment.json").read_text())["processes"] == 2
    used = forked.run("relgrad", "evaluate", "runs/r", cwd=tmp_path)
    assert used.returncode == 0, used.stderr


def test_a_script_without_a_guard_is_not_run_for_its_function(tmp_path: Path) -> None:
    file = script(tmp_path, "")
    assert forked.run("python", file, cwd=tmp_path).returncode == 0
    before = (tmp_path / "runs/r/1-grpo/metrics.jsonl").read_bytes()
    ended = forked.run("relgrad", "evaluate", "runs/r", cwd=tmp_path)
    assert ended.returncode == 2
    assert "script.py is imported for one of its functions; put the call under" in " ".join(ended.stderr.split())
    assert (tmp_path / "runs/r/1-grpo/metrics.jsonl").read_bytes() == before


# ---------------------------------------------------------------------- beside TRL


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that both libraries read."""
    from relgrad.networks.causal import load

    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(load.resolve("tiny:32x1"), folder)
    return folder


@pytest.mark.parametrize("title", ["after.py", pytest.param("before.py", marks=pytest.mark.slow)])
def test_the_scripts_of_the_page_run(title: str, small_model: Path, tmp_path: Path) -> None:
    """As they stand, but for the model's name and the number of steps."""
    page = ROOT / "docs" / "python.md"
    (text,) = [content for _, info, content in blocks(page) if attribute(info, "title") == title]
    assert "Qwen/Qwen3-0.6B" in text
    text = re.sub(r"steps(\W+)100", r"steps\g<1>2", text.replace("Qwen/Qwen3-0.6B", str(small_model)))
    (tmp_path / title).write_text(text)
    ended = forked.run("python", title, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [3]}, r"rewards: received 3 \(int\); give functions, or sections"),
        ({"rewards": 3}, r"rewards: received 3 \(int\); give a function, a section such as"),
        ({"rewards": None}, r"rewards: received None \(NoneType\); give a function"),
        ({"rewards": "exact"}, r"rewards: received 'exact' \(str\); give a function"),
        ({"policy": None}, r"policy: received None \(NoneType\); give the name or folder of a language model"),
        ({"policy": 3}, r"policy: received 3 \(int\)"),
        ({"name": None}, r"name: received None; say how the run's folder is called"),
        ({"name": 3}, "name: received 3"),
        ({"out": 3}, "out: received 3"),
        ({"task": None}, "task: train is NoneType; give a list of rows"),
        ({"stages": 3}, "stages"),
        ({"evaluation": 3}, "evaluation"),
        ({"grpo": 3}, "grpo"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"policy": TINY, "task": ROWS, "rewards": share, "name": "r", **changes}
    with pytest.raises(RelgradError, match=message):
        relgrad.train(values.pop("policy"), values.pop("task"), values.pop("rewards"), **values)


def test_a_missing_name_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RelgradError, match="name='first'"):
        relgrad.train(TINY, ROWS, share)
    assert not list(tmp_path.iterdir())
