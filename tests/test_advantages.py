"""Group-relative advantages against known answers and the formulas of the papers, written out in plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relgrad.core.types import RewardTable
from relgrad.objectives.advantages import combine, flat_groups, group_advantages, group_stats

NAN = math.nan


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def groups(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def table(columns: list[list[float]], weights: list[float] | None = None) -> RewardTable:
    value_BR = torch.tensor(columns, dtype=torch.float64).T
    weights_R = torch.tensor(weights or [1.0] * len(columns), dtype=torch.float64)
    return RewardTable(tuple(f"r{i}" for i in range(len(columns))), weights_R, value_BR)


def standardised(values: list[float], scale: float | None = None) -> list[float]:
    """(r - mean) / (std + 1e-4) over the scored values, sample std; None-like NaN gives 0."""
    scored = [v for v in values if not math.isnan(v)]
    if len(set(scored)) < 2:
        return [0.0] * len(values)
    mean = statistics.fmean(scored)
    std = statistics.stdev(scored) if scale is None else scale
    return [0.0 if math.isnan(v) else (v - mean) / (std + 1e-4) for v in values]


def test_one_one_zero():
    advantage_B = group_advantages(rows(1, 1, 0), groups(0, 0, 0))
    root = 1 / math.sqrt(3)  # the sample std of [1, 1, 0]; (1/3)/root = .577, (-2/3)/root = -1.155
    expected = [1 / 3 / (root + 1e-4), 1 / 3 / (root + 1e-4), -2 / 3 / (root + 1e-4)]
    assert advantage_B.tolist() == pytest.approx(expected, abs=1e-12)
    assert advantage_B.tolist() == pytest.approx([0.577, 0.577, -1.155], abs=1e-3)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e30, -7.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_group_gives_exactly_zero(scale, constant: float, dtype: torch.dtype):
    score_B = torch.tensor([constant] * 7 + [0.0, 1.0], dtype=dtype)
    group_B = groups(0, 0, 0, 0, 0, 0, 0, 1, 1)
    advantage_B = group_advantages(score_B, group_B, scale=scale)
    assert advantage_B[:7].tolist() == [0.0] * 7
    assert flat_groups(score_B, group_B).tolist() == [True, False]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_group_of_one_gives_exactly_zero(scale, leave_one_out: bool):
    advantage_B = group_advantages(
        rows(5, NAN, 2, 1, 2), groups(0, 1, 2, 3, 3), scale=scale, leave_one_out=leave_one_out
    )
    assert advantage_B[:3].tolist() == [0, 0, 0]
    assert advantage_B[4] > 0


def test_unscored_rows_neither_learn_nor_count():
    advantage_B = group_advantages(rows(1, NAN, 1, 0), groups(0, 0, 0, 0))
    assert advantage_B[1].item() == 0
    assert advantage_B[[0, 2, 3]].tolist() == pytest.approx(standardised([1, 1, 0]))


def test_a_group_with_one_scored_row_is_flat():
    score_B, group_B = rows(NAN, 3, NAN, NAN, NAN, 1, 0), groups(0, 0, 0, 1, 1, 2, 2)
    assert flat_groups(score_B, group_B).tolist() == [True, True, False]
    assert group_advantages(score_B, group_B)[:5].tolist() == [0] * 5


def test_ragged_and_interleaved_groups():
    score_B = rows(1, 10, 0, 30, 0.5, 20, 20)
    group_B = groups(0, 1, 0, 1, 0, 1, 1)
    advantage_B = group_advantages(score_B, group_B)
    assert advantage_B[[0, 2, 4]].tolist() == pytest.approx(standardised([1, 0, 0.5]))
    assert advantage_B[[1, 3, 5, 6]].tolist() == pytest.approx(standardised([10, 30, 20, 20]))


def test_scale_none_only_centres():
    advantage_B = group_advantages(rows(1, 0, 5, 9), groups(0, 0, 1, 1), scale="none")
    assert advantage_B.tolist() == [0.5, -0.5, -2, 2]


def test_scale_batch_divides_by_the_std_of_everyone():
    score = [1.0, 0.0, 5.0, 9.0]
    advantage_B = group_advantages(rows(*score, NAN), groups(0, 0, 1, 1, 1), scale="batch")
    std = statistics.stdev(score)
    expected = [v / (std + 1e-4) for v in (0.5, -0.5, -2, 2)] + [0]
    assert advantage_B.tolist() == pytest.approx(expected)


def test_leave_one_out_baseline():
    # row 0: 1 - mean(2, 6) = -3; row 1: 2 - mean(1, 6) = -1.5; row 2: 6 - mean(1, 2) = 4.5
    advantage_B = group_advantages(rows(1, 2, 6, NAN), groups(0, 0, 0, 0), scale="none", leave_one_out=True)
    assert advantage_B.tolist() == pytest.approx([-3, -1.5, 4.5, 0])


def test_group_stats():
    count_G, mean_G, std_G = group_stats(rows(1, NAN, 3, 7), groups(0, 0, 0, 1))
    assert count_G.tolist() == [2, 1]
    assert mean_G.tolist() == [2, 7]
    assert std_G.tolist() == pytest.approx([math.sqrt(2), 0])


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="scale='std'"):
        group_advantages(rows(1, 0), groups(0, 0), scale="std")  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.one_of(st.just(NAN), st.floats(-100, 100, width=16))), min_size=1, max_size=24
    )
)
@settings(max_examples=100, deadline=None)
def test_any_batch_equals_the_formula_group_by_group(cells: list[tuple[int, float]]):
    group = [g for g, _ in cells]
    score = [v for _, v in cells]
    advantage_B = group_advantages(rows(*score), groups(*group))
    for g in set(group):
        at = [i for i, x in enumerate(group) if x == g]
        assert advantage_B[at].tolist() == pytest.approx(standardised([score[i] for i in at]), abs=1e-9)


def test_combine_weights_and_completes_what_is_missing():
    # row 2 has no first reward: it counts as the mean of the other rows' (0.5), so that only its second reward speaks
    result = combine(table([[1, 0, NAN, NAN], [2, 4, 6, NAN]], [1.0, 0.5]), groups(0, 0, 0, 0))
    assert result.reward_B[:3].tolist() == [2, 2, 3.5]
    assert math.isnan(result.reward_B[3])
    assert result.advantage_B.tolist() == pytest.approx(standardised([2, 2, 3.5, NAN]), abs=1e-6)
    assert result.advantage_B.dtype == torch.float32
    assert result.std_G.tolist() == pytest.approx([statistics.stdev([2, 2, 3.5])])
    assert result.flat_G.tolist() == [False]


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("common", [1.0, 0.1])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_missing_score_neither_raises_nor_lowers_its_row_against_its_equals(aggregation, common, weight):
    """As 0 it would cost 1.5 deviations beside a bonus, and earn them beside a penalty."""
    rewards = table([[1, 1, 1, 1], [common, common, common, NAN]], [1.0, weight])
    result = combine(rewards, groups(0, 0, 0, 0), aggregation=aggregation)
    assert result.advantage_B.tolist() == [0, 0, 0, 0]
    assert result.flat_G.tolist() == [True]
    # beside rows that differ, the incomplete row stands where its other rewards put it
    rewards = table([[0, 2, 1, 1], [5, 3, 4, NAN]], [1.0, weight])
    advantage_B = combine(rewards, groups(0, 0, 0, 0), aggregation=aggregation).advantage_B
    assert advantage_B[2].item() == pytest.approx(advantage_B[3].item(), abs=1e-6)


def test_a_reward_that_a_whole_group_lacks_is_left_out_of_it():
    """Several tasks in one data set, each with rewards of its own: the other group is as if the reward did not exist."""
    mixed = combine(table([[1, 0, 3, 5], [2, 7, NAN, NAN]]), groups(0, 0, 1, 1), scale="none")
    assert mixed.reward_B.tolist() == [3, 7, 3, 5]
    assert mixed.advantage_B.tolist() == [-2, 2, -1, 1]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_monitor_scores_nobody(aggregation):
    """A reward of weight 0 changes nothing, whatever it says; a row that it alone has scored is unscored."""
    counts, watches = [1.0, 0.0, NAN, 5.0, 5.0], [7.0, NAN, 3.0, 1.0, 0.0]
    group_B = groups(0, 0, 0, 1, 1)
    alone = combine(table([counts], [0.5]), group_B, aggregation=aggregation)
    watched = combine(table([watches, counts], [0.0, 0.5]), group_B, aggregation=aggregation)
    for found, expected in zip(watched[:4], alone[:4], strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True, atol=0, rtol=0)
    assert watched.reward_B.isnan().tolist() == [False, False, True, False, False]
    assert watched.flat_G.tolist() == [False, True]


def test_where_everybody_watches_nobody_is_scored():
    result = combine(table([[1, 0]], [0.0]), groups(0, 0))
    assert result.reward_B.isnan().all()
    assert result.advantage_B.tolist() == [0, 0]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_penalty_is_linear_in_beta_and_leaves_flatness_alone(scale, aggregation):
    rewards = table([[1, 1, NAN, 0, 2]])
    group_B, nats_B = groups(0, 0, 0, 1, 1), torch.tensor([0.3, 0.1, 9.0, 0.2, 0.6])
    plain = combine(rewards, group_B, scale=scale, aggregation=aggregation)
    assert plain.flat_G.tolist() == [True, False]
    for beta in (1e-4, 1e-2, 1.0):
        charged = combine(rewards, group_B, scale=scale, aggregation=aggregation, penalty_B=beta * nats_B)
        assert charged.flat_G.tolist() == plain.flat_G.tolist()
        assert torch.equal(charged.reward_B.nan_to_num(), plain.reward_B.nan_to_num())
        effect = (charged.advantage_B - plain.advantage_B) / beta
        # centred within the group, unscored rows apart; 2e-3 is float32 rounding of an advantage of 1, divided by 1e-4
        assert effect.tolist() == pytest.approx([-0.1, 0.1, 0, 0.2, -0.2], abs=2e-3)


def test_normalize_then_sum_hears_a_reward_of_small_scale():
    # each column standardised in its group, weighted sum, standardised over the batch
    big, small = [100.0, 0.0, 100.0, 0.0], [0.0, 0.0, 0.001, 0.0]
    weights = [1.0, 2.0]
    parts = [standardised(big[:2]) + standardised(big[2:]), standardised(small[:2]) + standardised(small[2:])]
    total = [weights[0] * a + weights[1] * b for a, b in zip(*parts, strict=True)]
    result = combine(table([big, small], weights), groups(0, 0, 1, 1), aggregation="normalize_then_sum")
    assert result.advantage_B.tolist() == pytest.approx(standardised(total), abs=1e-6)
    plain = combine(table([big, small], weights), groups(0, 0, 1, 1))
    assert plain.advantage_B[2] - plain.advantage_B[0] < 1e-4 < result.advantage_B[2] - result.advantage_B[0]


def test_normalize_then_sum_with_unscored_and_flat():
    columns = [[1.0, 0.0, NAN, 5.0, 5.0], [3.0, NAN, NAN, 2.0, 2.0]]
    group_B = groups(0, 0, 0, 1, 1)
    result = combine(table(columns), group_B, aggregation="normalize_then_sum")
    assert result.advantage_B[2:].tolist() == [0, 0, 0]
    total = [
        *standardised([1.0, 0.0]),
        0.0,
        0.0,
    ]  # the second column has one scored row in group 0 and is flat in group 1
    assert result.advantage_B[:2].tolist() == pytest.approx(standardised(total)[:2], abs=1e-6)


def test_an_unknown_aggregation_is_named():
    with pytest.raises(ValueError, match="aggregation='mean'"):
        combine(table([[1, 0]]), groups(0, 0), aggregation="mean")  # type: ignore[arg-type]
