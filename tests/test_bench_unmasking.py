"""The benchmark `unmasking`: both ways are one gradient, and its table says what was measured."""

from __future__ import annotations

import pytest
from benchmarks import unmasking
from benchmarks.unmasking import Job

from relgrad.core.errors import RelgradError

SMALL = Job(prompts=2, each=2, prompt=3, positions=4, steps=2, width=8, layers=1)


def test_both_ways_are_timed_once_they_give_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    records = unmasking.run(quick=True, threads=[1], say=said.append, jobs={"small": SMALL})
    assert [record["arm"] for record in records] == list(unmasking.ARMS)
    assert all(len(record["cpu"]) == 1 for record in records)
    assert len(said) == 2
    assert unmasking.tables(records)[0].row_count == 2
    monkeypatch.setattr(unmasking, "gate", lambda job: 0.1)
    with pytest.raises(RelgradError, match="apart"):
        unmasking.run(quick=True, threads=[1], say=said.append, jobs={"small": SMALL})
