"""The benchmark of estimators: its figures by known answers, and that it runs."""

from __future__ import annotations

import pytest
import torch
from benchmarks import estimators


def test_the_figures_of_known_gradients() -> None:
    """Texts whose gradients are twice the exact one plus noise at right angles: the noise is told from the direction."""
    exact_P = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    noise_KP = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise_KP[:, 0] = 0
    figures = estimators.compared(2 * exact_P + noise_KP, exact_P, passes=1, steps=1)
    assert figures["cosine"] == pytest.approx(1, abs=0.01)
    assert figures["length"] == pytest.approx(2, rel=0.01)
    variance = 2 * estimators.BATCH / 4  # two directions of variance 1 a batch, over the square of the length
    assert figures["relative_variance"] == pytest.approx(variance, rel=0.05)
    texts = estimators.FORWARDS / 4
    assert figures["cosine_at_cost"] == pytest.approx((1 + variance / texts) ** -0.5, abs=0.01)


def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("trajectory", "mean field", "SPG, 2 masks")
    monkeypatch.setattr(estimators, "ESTIMATORS", {name: estimators.ESTIMATORS[name] for name in chosen})
    law = "random, 2 a step"
    record = estimators.measure(law, {"seed": 0, "warm_up": 2, "batches": 2})
    assert record["trajectories"] == 6 * 5**4, "pairs of positions, and every letter or end at each"
    assert 0 < record["objective"] < 1
    assert [record["estimators"][name]["passes"] for name in chosen] == [2, 1, 2]
    monkeypatch.setattr(estimators, "ARMS", (law,))
    (table,) = estimators.tables([{"arm": law, "seed": 0, **record}])
    assert table.row_count == 3
