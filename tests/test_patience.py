"""A stage with patience: ends when held-out evaluations stop improving, and with the weights of the best of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from relgrad.core.errors import RelgradError
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
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


def recipe(out: Path, **evaluation: object) -> object:
    """A task that is learned at once, then spoilt by a learning rate far too high: some evaluation in between is the best."""
    return parse_recipe(
        {
            "name": "patient",
            "out": str(out),
            "stage": "sft",
            "policy": {"kind": "autoregressive", "model": "tiny", "max_completion_length": 6},
            "task": {"kind": "digits", "length": 4},
            "rewards": [{"kind": "exact", "per_character": True}],
            "sft": {"steps": 200, "learning_rate": 0.03},
            "evaluation": {"num_prompts": 32, "num_generations": 1, **evaluation},
        }
    )


def test_ends_early_with_the_best_weights_and_stays_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = run_recipe(recipe(tmp_path, every=10, patience=2))
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert checkpoint.settled(lines, 2)
    assert not checkpoint.settled(lines[:-1], 2)
    saved = checkpoint.steps(folder / "checkpoints")
    assert saved[-1] == lines[-1]["step"] < 200
    best = checkpoint.best_step(lines[:-1], saved)
    assert best in saved[:-1]
    first, last = (
        load_file(next(checkpoint.folder_of(folder / "checkpoints", s).glob("*.safetensors")))
        for s in (best, saved[-1])
    )
    assert all((first[name] == last[name]).all() for name in first)
    run_recipe(recipe(tmp_path, every=10, patience=2))
    assert "finished before" in capsys.readouterr().out
    assert len((folder / "evaluations.jsonl").read_text().splitlines()) == len(lines)


def test_patience_needs_something_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"patience=2 .*evaluation\.every"):
        recipe(tmp_path, patience=2)
