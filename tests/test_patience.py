"""A stage with patience: ends when validation scores stop improving, with the weights of the best, and is scored with these.

The policy writes one number, its only weight, and the stage sets it after a script: so every score is known beforehand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir
from relgrad.runs import course
from relgrad.runs.evaluations import Evaluations, best_of, choices, finished
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.use import evaluate_run
from relgrad.training import checkpoint

SCORES = (0.1, 0.3, 0.7, 0.5, 0.6, 0.9, 0.9, 0.9)
"""After 0, 1, 2 … steps. With patience 2 the stage ends after step 4, with the weights of step 2."""
END, BEST = 4, 2

POLICY = """
import torch
from safetensors.torch import load_file, save_file

from relgrad.core.settings import Strict
from relgrad.core.types import Output, Rollouts


class Settings(Strict):
    pass


def build(settings, seed, start=None, reference=False):
    policy = Number()
    if start is not None:
        policy.load(start)
    return policy


class Number:
    law, version, max_decisions = "surrogate", 0, 1

    def __init__(self):
        self.number = torch.nn.Parameter(torch.tensor([0.1]))

    def sample(self, prompts, group_size, randomness):
        rows = len(prompts) * group_size
        return Rollouts(
            tuple(prompts), torch.arange(len(prompts)).repeat_interleave(group_size), torch.zeros(rows, 1),
            torch.ones(rows, 1, dtype=torch.bool), torch.ones(rows, 1, dtype=torch.int64),
            (Output(f"{self.number.item():.2f}"),) * rows, ("eos",) * rows, self.version, {},
        )

    def parameters(self):
        yield "number", self.number

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"number": self.number.detach()}, folder / "number.safetensors")

    def load(self, folder):
        self.number.data.copy_(load_file(folder / "number.safetensors")["number"])
"""
STAGE = f"""
from relgrad.core.types import StepRecord
from relgrad.stages.kind import Kind, StageParts, build_policy
from relgrad.stages.settings import RewardedStage
from relgrad.training.optimizer import Optimizer, OptimizerSettings

SCORES = {SCORES}


class Script(OptimizerSettings):
    steps: int = 7


class Settings(RewardedStage):
    script: Script = Script()


class Loop:
    def __init__(self, policy, settings):
        self.policy, self.settings, self.step = policy, settings, 0
        self.optimizer = Optimizer(dict(policy.parameters()), settings, settings.steps)

    def update(self):
        self.step += 1
        self.policy.number.data.fill_(SCORES[self.step])
        return StepRecord(self.step, {{"loss": 0.0}})

    def counters(self):
        return {{"step": self.step}}

    def go_on_from(self, counters):
        self.step = counters["step"]


def build(stage, materials):
    policy = build_policy(stage, materials.start)
    return StageParts(loop=Loop(policy, stage.script), trained=policy, policy=policy,
                      judged_by=materials.rewards(stage.judged_by, 60.0))


KIND = Kind(loop="script", build=build, describe=lambda stage: "a script")
"""
REWARD = """
def number(completions, easy, **columns):
    return [float(text) + bonus for text, bonus in zip(completions, easy)]
"""
TASK = """
from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.tasks import Task

class Settings(Strict):
    parts: int = 3
    size: int = 4

def load(settings, seed):
    prompts = [Prompt("p", {"easy": 0.01 * (i % 3)}, id=i) for i in range(3 * settings.size + 1)]
    size = settings.size
    rest = prompts[1 : size + 1], prompts[size + 1 : 3 * size + 1]
    return Task("numbers", prompts[:1], rest[0], rest[1] if settings.parts == 3 else None)
"""


def recipe(folder: Path, parts: int, size: int = 4, steps: int = 7, **evaluation: object) -> Any:
    for name, text in {"policy": POLICY, "stage": STAGE, "reward": REWARD, "task": TASK}.items():
        if not (folder / f"{name}_of_numbers.py").exists():
            (folder / f"{name}_of_numbers.py").write_text(text)
    return parse_recipe(
        {
            "name": "patient",
            "out": str(folder / "runs"),
            "stage": str(folder / "stage_of_numbers.py"),
            "policy": {"kind": str(folder / "policy_of_numbers.py")},
            "task": {"kind": str(folder / "task_of_numbers.py"), "parts": parts, "size": size},
            "rewards": [{"kind": "function", "function": f"{folder / 'reward_of_numbers.py'}:number"}],
            "script": {"steps": steps},
            "evaluation": {"num_generations": 1, **evaluation},
        }
    )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def number(folder: Path, step: int) -> float:
    file = checkpoint.folder_of(folder / "checkpoints", step) / "number.safetensors"
    return round(float(load_file(file)["number"]), 6)


def assert_ended_with_the_best(folder: Path) -> None:
    """The last checkpoint is that of the step at which patience was at its end, and holds the best one's weights."""
    saved = checkpoint.steps(folder / "checkpoints")
    assert saved[-1] == END
    assert BEST in saved
    assert number(folder, END) == number(folder, BEST) == SCORES[BEST]
    assert best_of(RunDir(folder), saved) == BEST
    assert finished(RunDir(folder), 7, 2)
    assert RunDir(folder).lines("metrics.jsonl")[-1]["step"] == END


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


def test_two_parts_are_evaluated_once_and_the_result_is_of_the_weights_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = run_recipe(recipe(tmp_path, 2, every=1, patience=2))
    assert_ended_with_the_best(folder)
    lines = records(folder)
    assert [(r["name"], r["step"], r["weights"]) for r in lines] == [
        *(("validation", step, step) for step in range(END + 1)),
        ("validation", END, BEST),
    ]
    assert [r["score"] for r in lines] == pytest.approx([s + 0.01 for s in (*SCORES[: END + 1], SCORES[BEST])])
    assert lines[-1]["difference"] == pytest.approx(SCORES[BEST] - SCORES[0])
    shown = capsys.readouterr().out
    assert shown.count("evaluating on") == END + 1
    assert f"step {END}  validation score 0.71" in shown
    assert evaluate_run(str(folder), [])["per_prompt"] == lines[-1]["per_prompt"]
    text = (folder / "report.html").read_text()
    assert "its validation prompts serve for both" in text
    assert f"weights of step {BEST}" in text
    run_recipe(recipe(tmp_path, 2, every=1, patience=2))
    assert "finished before" in capsys.readouterr().out
    assert records(folder) == lines


def test_three_parts_choices_look_at_validation_and_the_result_is_of_test(tmp_path: Path) -> None:
    (folder,) = run_recipe(recipe(tmp_path, 3, every=1, patience=2))
    assert_ended_with_the_best(folder)
    lines = records(folder)
    assert [(r["name"], r["step"], r["weights"]) for r in lines] == [
        ("test", 0, 0),
        *(("validation", step, step) for step in range(END + 1)),
        ("test", END, BEST),
    ]
    before, after = lines[0], lines[-1]
    assert after["difference"] == pytest.approx(SCORES[BEST] - SCORES[0])
    assert after["ids"] == before["ids"] == list(range(5, 13))
    assert all(r["ids"] == list(range(1, 5)) for r in choices(lines))
    assert evaluate_run(str(folder), [])["per_prompt"] == after["per_prompt"]
    on_validation = evaluate_run(str(folder), [], part="validation")
    assert (on_validation["name"], on_validation["ids"]) == ("validation", list(range(1, 5)))
    assert "serve for both" not in (folder / "report.html").read_text()


def test_num_prompts_is_of_either_part(tmp_path: Path) -> None:
    (folder,) = run_recipe(recipe(tmp_path, 3, steps=1, every=1, num_prompts=3))
    assert [(r["name"], r["ids"]) for r in records(folder)] == [
        ("test", [5, 6, 7]), ("validation", [1, 2, 3]), ("test", [5, 6, 7]),
    ]  # fmt: skip


def test_without_a_choice_nothing_is_spent_on_validation(tmp_path: Path) -> None:
    (folder,) = run_recipe(recipe(tmp_path, 3, steps=2))
    assert [(r["name"], r["step"]) for r in records(folder)] == [("test", 0), ("test", 2)]
    assert records(folder)[-1]["score"] == pytest.approx(SCORES[2] + 0.01)


def test_the_best_checkpoint_stays_without_patience_and_the_last_weights_are_the_result(tmp_path: Path) -> None:
    (folder,) = run_recipe(recipe(tmp_path, 3, steps=4, every=1))
    assert checkpoint.steps(folder / "checkpoints") == [2, 3, 4]
    assert number(folder, 4) == SCORES[4]
    assert records(folder)[-1]["weights"] == 4


def test_validation_scores_are_compared_with_the_first_also_after_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without patience the first is that of step 1, which a run that goes on after step 3 reads from its folder."""
    with monkeypatch.context() as patch:
        stop_at("before the last checkpoint", patch)
        with pytest.raises(Killed):
            run_recipe(recipe(tmp_path, 3, every=1))
    (folder,) = run_recipe(recipe(tmp_path, 3, every=1))
    validation = choices(records(folder))
    assert [r["step"] for r in validation] == list(range(1, 8))
    assert "difference" not in validation[0]
    assert [r["difference"] for r in validation[1:]] == pytest.approx([s - SCORES[1] for s in SCORES[2:]])


class Killed(BaseException):
    """Stands for the end of the process, right there."""


def stop(*arguments: object) -> Any:
    raise Killed


def stop_at(moment: str, patch: pytest.MonkeyPatch) -> None:
    saved = checkpoint.save

    def save(root: Path, loop: Any, *rest: Any) -> Path:
        return stop() if loop.step == END else saved(root, loop, *rest)

    if moment == "before the last checkpoint":
        patch.setattr(checkpoint, "save", save)
    else:
        patch.setattr(course.Course, "_end", stop)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("moment", ["before the last checkpoint", "right after the last evaluation"])
def test_killed_between_the_last_evaluation_and_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, moment: str
) -> None:
    """The record that ends the stage is there, the checkpoint with the best weights is not: the stage goes on, and ends so."""
    with monkeypatch.context() as patch:
        stop_at(moment, patch)
        with pytest.raises(Killed):
            run_recipe(recipe(tmp_path, parts, every=1, patience=2))
    folder = tmp_path / "runs" / "patient" / "1-stage_of_numbers"
    assert max(record["step"] for record in records(folder)) == END > checkpoint.steps(folder / "checkpoints")[-1]
    assert not finished(RunDir(folder), 7, 2)
    run_recipe(recipe(tmp_path, parts, every=1, patience=2))
    assert_ended_with_the_best(folder)
    resumed = records(folder)
    run_recipe(recipe(tmp_path, parts, every=1, patience=2), fresh=True)
    assert records(folder) == resumed


@pytest.mark.parametrize(("part", "ends"), [("validation", "total"), ("test", "total"), ("test", "patience")])
def test_an_end_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, ends: str
) -> None:
    """What was learnt is saved as of the last step, which alone says nothing of an end; then the end is that of any other run."""
    total, patience = (END, 7) if ends == "total" else (7, 2)
    made = Evaluations._evaluate

    def evaluate(self: Evaluations, name: str, step: int, weights: int) -> None:
        if (name, step) == (part, END):
            raise RelgradError("no reward answers")
        made(self, name, step, weights)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "_evaluate", evaluate)
        with pytest.raises(RelgradError, match="no reward answers"):
            run_recipe(recipe(tmp_path, 3, steps=total, every=1, patience=patience))
    folder = tmp_path / "runs" / "patient" / "1-stage_of_numbers"
    assert number(folder, END) == SCORES[END]
    assert not finished(RunDir(folder), total, patience)
    run_recipe(recipe(tmp_path, 3, steps=total, every=1, patience=patience))
    assert number(folder, END) == SCORES[BEST]
    resumed = records(folder)
    assert (resumed[-1]["name"], resumed[-1]["step"], resumed[-1]["weights"]) == ("test", END, BEST)
    run_recipe(recipe(tmp_path, 3, steps=total, every=1, patience=patience), fresh=True)
    assert records(folder) == resumed


def test_more_steps_go_on_from_the_last_weights_and_not_from_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer's state is that of the last step, so are the weights beside it; the folder itself holds the best ones."""
    (folder,) = run_recipe(recipe(tmp_path, 2, steps=END, every=1, patience=7))
    assert number(folder, END) == SCORES[BEST]
    restored, restore = [], checkpoint.restore

    def restore_and_look(path: Path, loop: Any, weights: Any, *rest: Any) -> None:
        restore(path, loop, weights, *rest)
        restored.append((loop.step, round(weights.number.item(), 6)))

    monkeypatch.setattr(checkpoint, "restore", restore_and_look)
    run_recipe(recipe(tmp_path, 2, steps=END + 1, every=1, patience=7))
    assert restored == [(END, SCORES[END])]
    assert number(folder, END + 1) == SCORES[END + 1] == max(SCORES)
    assert not (checkpoint.folder_of(folder / "checkpoints", END + 1) / checkpoint.LAST).exists()


def test_best_weights_that_are_damaged_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at("right after the last evaluation", patch)
        with pytest.raises(Killed):
            run_recipe(recipe(tmp_path, 2, every=1, patience=2))
    best = checkpoint.folder_of(tmp_path / "runs" / "patient" / "1-stage_of_numbers" / "checkpoints", BEST)
    (best / "number.safetensors").write_bytes(b"")
    with pytest.raises(RelgradError, match=r"step 2 is damaged: .*number\.safetensors has 0 bytes.* Step 3 is whole"):
        run_recipe(recipe(tmp_path, 2, every=1, patience=2))


def test_patience_needs_something_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"patience=2 .*evaluation\.every"):
        recipe(tmp_path, 3, patience=2)
    with pytest.raises(RelgradError, match="patience=2 looks at validation prompts, and the task has none"):
        run_recipe(recipe(tmp_path, 3, size=0, every=1, patience=2))


def test_of_equal_scores_the_last_counts():
    """A policy that does not score yet has learnt more later."""
    assert checkpoint.best_step(scores(0.0, 0.0, 0.0), [10, 20]) == 20
    assert checkpoint.best_step(scores(0.0, 0.5, 0.5, 0.4), [10, 20, 30]) == 20
    assert checkpoint.best_step(scores(None, None), [10]) is None
