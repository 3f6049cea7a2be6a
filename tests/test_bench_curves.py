"""The bench of learning curves: what a run leaves, that it is not repeated, and a table of known curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from benchmarks import estimator_curves as curves

from relgrad.core.errors import RelgradError

TINY = replace(curves.BENCHES["countdown"], teaching=2, passes=2_000, train_size=40, held_out=8, rates=(1e-3, 2e-3))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BENCHES", {"countdown": TINY})


def test_a_run_spends_its_passes_and_is_not_repeated(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text costs 5 passes to write and 3 for each of its 5 steps: 128 texts an update, 2,560 passes."""
    record = curves.run_once(TINY, "trajectory", 3, 1e-3, tmp_path)
    assert record["curve"][0][:2] == [0, 0]
    assert record["curve"][-1][:2] == [2_560, 1]
    assert record["parameters"] == pytest.approx(100_000, rel=0.05)
    assert capsys.readouterr().out.count("trajectory seed 3") == 1
    assert curves.run_once(TINY, "trajectory", 3, 1e-3, tmp_path) == record
    assert not capsys.readouterr().out
    with pytest.raises(RelgradError, match="fewer passes than 9,000"):
        curves.run_once(replace(TINY, passes=9_000), "trajectory", 3, 1e-3, tmp_path)


@pytest.mark.parametrize(
    ("estimator", "passes"), [("trajectory", 5 + 3 * 5), ("mean_field", 5 + 4), ("coupled", 5 + 4 * 3)]
)
def test_a_surrogate_pays_for_its_scoring_of_what_was_written(estimator: str, passes: int) -> None:
    policy = curves.policy_of(TINY, **curves.ESTIMATORS[estimator].policy)
    assert curves.passes_of_a_text(TINY, policy) == passes


def written(out: Path, name: str, seed: int, rate: float, points: list[float]) -> None:
    curve = [[1000 * q, 10 * q, value] for q, value in enumerate(points)]
    others = {"greedy": 0.5, "random order": 0.25}
    record = {
        "puzzle": "countdown",
        "estimator": name,
        "seed": seed,
        "rate": rate,
        "curve": curve,
        "other_samplers": others,
    }
    (out / f"countdown-{name}-{seed}-{rate:g}.json").write_text(json.dumps(record))


def test_the_rate_is_chosen_on_a_seed_of_its_own_and_differences_are_paired(tmp_path: Path, tiny: None) -> None:
    """Gains over the mean field of .1 and .3: Student's interval of two values is 12.706 standard errors of .1 wide."""
    for name in ("trajectory", "mean_field"):
        written(tmp_path, name, curves.TUNING_SEED, 1e-3, [0, 0.3, 0.3, 0.3, 0.3])
        written(tmp_path, name, curves.TUNING_SEED, 2e-3, [0, 0.1, 0.1, 0.1, 0.9])
    for seed, gained in ((0, 0.1), (1, 0.3)):
        written(tmp_path, "mean_field", seed, 1e-3, [0, 0.1, 0.1, 0.1, 0.2])
        written(tmp_path, "trajectory", seed, 1e-3, [0, 0.2, 0.2, 0.2, 0.2 + gained])
        written(tmp_path, "trajectory", seed, 2e-3, [0, 0.9, 0.9, 0.9, 0.9])
    assert curves.tuned(TINY, "trajectory", tmp_path) == 1e-3
    rows = curves.table(curves.records_of(tmp_path, None), "countdown")[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["trajectory", "mean field"]
    assert cells[0][1:7] == ["0.001", "2", "40", "0.200", "0.200", "0.200"]
    assert cells[0][7:9] == ["0.400 [-0.871, 1.671]", "+0.200 [-1.071, +1.471]"]
    (fixed,) = [row for row in curves.table(curves.records_of(tmp_path, 2e-3), "countdown")[2:] if "trajectory" in row]
    assert "0.900 [0.900, 0.900]" in fixed
    with pytest.raises(RelgradError, match="not chosen yet"):
        curves.tuned(TINY, "elbo", tmp_path)


def test_the_command_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        curves.main(puzzles="chess", out=tmp_path)
    assert "--puzzles: no 'chess'; there are permutation, sudoku, countdown" in capsys.readouterr().err
