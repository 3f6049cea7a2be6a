"""A stage with patience: ends when validation scores stop improving, with the weights of the best, and is scored with these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir
from relgrad.runs import course
from relgrad.runs.evaluations import best_of, choices, finished
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.use import evaluate_run
from relgrad.training import checkpoint


def scores(*values: float | None) -> list[dict[str, float | None]]:
    return [{"step": 10 * i, "score": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ((0.1, 0.2, 0.2, 0.1), 2, True),
        ((0.1, 0.2, 0.1, 0.3), 2, False),
        ((0.1, 0.2), 2, False),
        ((0.5, 0.5, None, 0.4), 2, True),
        ((0.5, 0.4, 0.3, 0.2), None, False),
    ],
)
def test_settled(values: tuple[float | None, ...], patience: int | None, ended: bool) -> None:
    assert checkpoint.settled(scores(*values), patience) is ended


THREE_PARTS = """
from relgrad.core.types import Prompt
from relgrad.tasks import Task, digits

Settings = digits.Settings

def load(settings, seed):
    task = digits.load(settings, seed)
    rest = list(task.validation)
    return Task(task.name, task.train, rest[:30], rest[30:60], task.ask)
"""


def recipe(out: Path, task: dict[str, Any] | None = None, **evaluation: object) -> Any:
    """A task that is learned at once, then spoilt by a learning rate far too high: some evaluation in between is the best."""
    return parse_recipe(
        {
            "name": "patient",
            "out": str(out),
            "stage": "sft",
            "policy": {"kind": "autoregressive", "model": "tiny", "max_completion_length": 6},
            "task": task or two_parts(out),
            "rewards": [{"kind": "exact", "per_character": True}],
            "sft": {"steps": 60, "learning_rate": 0.03},
            "evaluation": {"num_prompts": 30, "num_generations": 1, **evaluation},
        }
    )


def two_parts(folder: Path) -> dict[str, Any]:
    file = folder / "two_parts.py"
    file.write_text(THREE_PARTS.replace("rest[30:60], task.ask", "None, task.ask"))
    return {"kind": str(file), "length": 4}


def three_parts(folder: Path) -> dict[str, Any]:
    file = folder / "three_parts.py"
    file.write_text(THREE_PARTS)
    return {"kind": str(file), "length": 4}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, Any]:
    (file,) = checkpoint.folder_of(folder / "checkpoints", step).glob("*.safetensors")
    return load_file(file)


def assert_ended_with_the_best(folder: Path) -> int:
    """The last checkpoint is the first at which patience was at its end, and holds the best one's weights; its step."""
    lines, saved = records(folder), checkpoint.steps(folder / "checkpoints")
    end = saved[-1]
    validation = choices(lines)
    assert end == max(record["step"] for record in validation) < 60
    assert checkpoint.settled(validation, 2)
    assert not checkpoint.settled(validation[:-1], 2)
    best = best_of(RunDir(folder), saved)
    assert best is not None
    assert best < end
    first, last = weights(folder, best), weights(folder, end)
    assert all((first[name] == last[name]).all() for name in first)
    return best


def test_ends_early_with_the_best_weights_and_stays_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two parts: the score after training is that of the weights that are kept, and is not evaluated a second time."""
    (folder,) = run_recipe(recipe(tmp_path, every=10, patience=2))
    best = assert_ended_with_the_best(folder)
    lines = records(folder)
    assert {record["name"] for record in lines} == {"validation"}
    *evaluated, after = lines
    assert [record["step"] for record in evaluated] == list(range(0, after["step"] + 1, 10)), "each once"
    assert after["weights"] == best
    of_best = next(record for record in evaluated if record["step"] == best)
    assert after["per_prompt"] == of_best["per_prompt"]
    assert evaluate_run(str(folder), None, [])["per_prompt"] == after["per_prompt"]
    assert "serve for both" in (folder / "report.html").read_text()
    capsys.readouterr()
    run_recipe(recipe(tmp_path, every=10, patience=2))
    assert "finished before" in capsys.readouterr().out
    assert records(folder) == lines


def test_choices_look_at_validation_and_the_result_is_of_test(tmp_path: Path) -> None:
    (folder,) = run_recipe(recipe(tmp_path, three_parts(tmp_path), every=10, patience=2))
    best = assert_ended_with_the_best(folder)
    lines = records(folder)
    before, after = (record for record in lines if record["name"] == "test")
    assert (before["step"], before["weights"]) == (0, 0)
    assert after["weights"] == best
    assert after["step"] == checkpoint.steps(folder / "checkpoints")[-1]
    assert after["score"] - before["score"] == pytest.approx(after["difference"])
    validation = {i for record in choices(lines) for i in record["ids"]}
    assert validation.isdisjoint(after["ids"])
    assert evaluate_run(str(folder), None, [])["per_prompt"] == after["per_prompt"]
    on_validation = evaluate_run(str(folder), None, [], part="validation")
    assert on_validation["per_prompt"] == next(r for r in choices(lines) if r["step"] == best)["per_prompt"]
    text = (folder / "report.html").read_text()
    assert "serve for both" not in text
    assert f"weights of step {best}" in text


def test_without_choices_nothing_is_spent_on_validation(tmp_path: Path) -> None:
    changed = recipe(tmp_path, three_parts(tmp_path)).stages[0]
    short = changed.model_copy(update={"sft": changed.sft.model_copy(update={"steps": 2})})
    (folder,) = run_recipe(recipe(tmp_path).model_copy(update={"stages": (short,)}))
    assert [(record["step"], record["name"]) for record in records(folder)] == [(0, "test"), (2, "test")]


class Killed(BaseException):
    """Stands for the end of the process, right there."""


def stop(*arguments: object) -> None:
    raise Killed


@pytest.mark.parametrize("parts", [two_parts, three_parts])
@pytest.mark.parametrize("moment", ["save", "_end"])
def test_killed_between_the_last_evaluation_and_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Callable[[Path], dict[str, Any]], moment: str
) -> None:
    """The record that ends the stage is there, the checkpoint with the best weights is not: the stage goes on, and ends so again."""
    task = parts(tmp_path)
    (folder,) = run_recipe(recipe(tmp_path, task, every=10, patience=2))
    expected, end = records(folder), checkpoint.steps(folder / "checkpoints")[-1]
    expected_weights = weights(folder, end)

    saved = checkpoint.save

    def save(root: Path, loop: Any, *rest: Any) -> Path:
        return stop() if loop.step == end else saved(root, loop, *rest)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        if moment == "save":
            patch.setattr(checkpoint, "save", save)
        else:
            patch.setattr(course.Course, "_end", stop)
        with pytest.raises(Killed):
            run_recipe(recipe(tmp_path, task, every=10, patience=2), fresh=True)
    assert max(record["step"] for record in records(folder)) == end > checkpoint.steps(folder / "checkpoints")[-1]
    assert not finished(RunDir(folder), 60, 2)
    run_recipe(recipe(tmp_path, task, every=10, patience=2))
    assert finished(RunDir(folder), 60, 2)
    assert_ended_with_the_best(folder)
    assert records(folder) == expected
    assert all((tensor == expected_weights[name]).all() for name, tensor in weights(folder, end).items())


def test_patience_needs_something_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"patience=2 .*evaluation\.every"):
        recipe(tmp_path, patience=2)
    empty = recipe(tmp_path, {"kind": "digits", "length": 4, "held_out_size": 0}, every=10, patience=2)
    with pytest.raises(RelgradError, match="patience=2 looks at validation prompts, and the task has none"):
        run_recipe(empty)
