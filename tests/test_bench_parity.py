"""The benchmarks' gate: TRL's loss and gradient and ours, from the same texts, agree; a difference stops the clocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import parity

from relgrad.core.errors import RelgradError

pytest.importorskip("trl")


def test_both_systems_have_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RELGRAD_CACHE", str(tmp_path))
    assert len(parity.gate().rows) == len(parity.LOSSES)
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    monkeypatch.setattr(parity, "LOSSES", ("dapo",))
    with pytest.raises(RelgradError, match="nothing is timed"):
        parity.gate()
