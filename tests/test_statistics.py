"""Statistics against known answers, enumeration over all subsets, and measured coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from relgrad.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_over_families,
    enough,
    expected_max,
    paired_difference,
    pass_at_k,
    t_over_seeds,
    welch_over_seeds,
)

NAN = math.nan


def test_bootstrap_of_many_normal_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    got = bootstrap_mean(values.tolist())
    error = values.std(ddof=1) / math.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert got.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_bootstrap_is_deterministic_and_seeded():
    values = [0.0, 1.0, 0.25, 0.5, 1.0, 0.0, 0.75]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) == bootstrap_mean([*values, NAN])
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert bootstrap_mean(values, confidence=0.5).low > bootstrap_mean(values).low


def test_bootstrap_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        values = generator.exponential(1.0, 40).tolist()
        hits += not bootstrap_mean(values, seed=seed).excludes(1.0)
    assert 86 <= hits <= 100  # binomial(100, .93): below 86 has probability .003


def test_bootstrap_of_little_data():
    assert bootstrap_mean([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    one = bootstrap_mean([0.5, NAN])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert not one.excludes(0.0)
    assert math.isnan(bootstrap_mean([]).value)


def test_families_are_drawn_whole():
    """Equal prompts of a family count once: the interval is as wide as Student's over the families' means, whatever their size."""
    levels = [0.1, 0.2, 0.25, 0.3, 0.0, 0.15]
    student = t_over_seeds(levels)
    for size in (1, 40):
        got = bootstrap_over_families(
            [v for v in levels for _ in range(size)], [f for f in "abcdef" for _ in range(size)]
        )
        assert got.value == pytest.approx(student.value)
        assert (got.low, got.high) == pytest.approx(
            (student.low, student.high), abs=0.15 * (student.high - student.low)
        )
    prompts = bootstrap_mean([v for v in levels for _ in range(40)])
    assert got.high - got.low > 5 * (prompts.high - prompts.low)
    assert got == bootstrap_over_families(
        [*(v for v in levels for _ in range(40)), NAN], [*(f for f in "abcdef" for _ in range(40)), "g"]
    ), "what is unscored is left out"


def test_few_families_have_no_interval():
    """All of n families lie on one side of the median with chance 2^(1 - n): 5 % is undercut from 6 on."""
    assert [enough(n) for n in (1, 5, 6)] == [False, False, True]
    got = bootstrap_over_families([0.1, 0.2, 0.3, 0.4, 0.5, NAN], list("abcdef"))
    assert got.value == pytest.approx(0.3)
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert bootstrap_over_families([0.5] * 6, list("abcdef")) == (0.5, 0.5, 0.5)
    assert math.isnan(bootstrap_over_families([], []).value)
    with pytest.raises(ValueError, match="one of each"):
        bootstrap_over_families([0.5], [])


def test_three_seeds_tell_little():
    """The gains of Flow-GRPO in docs/results.md: three positive differences, and an interval that holds 0."""
    got = t_over_seeds([0.059, 0.023, 0.013])
    assert got.value == pytest.approx(0.0317, abs=1e-4)
    assert got.high - got.value == pytest.approx(0.0601, abs=1e-3)
    assert not got.excludes(0)
    assert t_over_seeds([0.5, NAN]).value == 0.5
    assert math.isnan(t_over_seeds([0.5, NAN]).low)


def test_unpaired_seeds_are_compared_as_welch_does():
    before, after = [1.0, 2.0, 4.0, 3.0], [2.0, 7.0, 9.0]
    expected = stats.ttest_ind(after, before, equal_var=False).confidence_interval()
    got = welch_over_seeds(before, after)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert got.value == pytest.approx(3.5)
    assert welch_over_seeds([1.0, 1.0], [2.0, 2.0]) == (1.0, 1.0, 1.0)
    assert math.isnan(welch_over_seeds([1.0], [2.0, 3.0]).low)
    assert welch_over_seeds([1.0], [2.0, 3.0]).value == 1.5


def test_pairing_removes_the_spread_between_prompts():
    generator = np.random.default_rng(2)
    level = generator.normal(0, 10, 50)
    before = (level + generator.normal(0, 0.1, 50)).tolist()
    after = (level + 0.5 + generator.normal(0, 0.1, 50)).tolist()
    paired = paired_difference(before, after)
    assert paired.value == pytest.approx(np.mean(after) - np.mean(before))
    assert paired.low == pytest.approx(paired.value, abs=0.1)
    assert paired.excludes(0.0)
    assert not bootstrap_mean(after).excludes(float(np.mean(before)))


def test_pairs_with_an_unscored_side_are_left_out():
    assert paired_difference([0, NAN, 1, 0], [1, 1, NAN, 1]) == (1, 1, 1)
    with pytest.raises(ValueError, match="2 scores before, 3 after"):
        paired_difference([0, 1], [0, 1, 2])


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (5, 2, 4), (6, 5, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n: int, c: int, k: int):
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_many_samples():
    assert pass_at_k(2000, 1000, 1000) == 1.0
    assert pass_at_k(10_000, 1, 5000) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="k=5"):
        pass_at_k(4, 2, 5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_max_is_the_mean_over_subsets(k: int):
    scores = [0.3, -1.0, 0.3, 2.5, 0.0]
    best = [max(subset) for subset in itertools.combinations(scores, k)]
    assert expected_max(scores, k) == pytest.approx(sum(best) / len(best))
    assert expected_max([*scores, NAN], k) == pytest.approx(sum(best) / len(best))


def test_expected_max_of_passes_is_pass_at_k():
    assert expected_max([1, 0, 0, 1, 0, 0], 3) == pytest.approx(pass_at_k(6, 2, 3))
    with pytest.raises(ValueError, match="k=3 of 2"):
        expected_max([1, NAN, 0], 3)
