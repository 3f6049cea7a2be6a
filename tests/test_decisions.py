"""Tree search over decisions: known orders, what is recorded of them, what is closed, budgets, and batches of trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relgrad.core.protocols import Place
from relgrad.search.decisions import DecisionTree, TreeSettings, finish, grow

QUIET = TreeSettings(noise=0.0, temperature=1.0)


class Letters:
    """Write `goal` letter by letter; a state is what was written. `alike` letters write the first one."""

    def __init__(self, goal: Sequence[int], actions: int = 2, most_steps: int = 2, alike: Sequence[int] = ()) -> None:
        self.goal, self.actions, self.most_steps, self.alike = tuple(goal), actions, most_steps, alike
        self.start: tuple[int, ...] = ()

    def apply(self, state: Any, action: int) -> Any:
        return (*state, 0 if action in self.alike else action)

    def solved(self, state: Any) -> bool:
        return state == self.goal


def prior(*shares: float) -> Callable[[Sequence[Place]], Tensor]:
    return lambda places: torch.tensor([shares] * len(places))


def tree(problem: Letters, settings: TreeSettings = QUIET, most: int = 100, seed: int = 0, **more: Any) -> DecisionTree:
    return DecisionTree(problem, settings, most, np.random.default_rng(seed), **more)


def test_a_uniform_prior_goes_through_decisions_in_turn():
    """0, 1, then 00, then 10: PUCT by hand, with ties to the first decision."""
    searched = tree(Letters((1, 0)))
    grow([searched], prior(0.5, 0.5))
    tried = [searched.found(leaf).decisions for leaf in searched.leaves]
    assert tried == [(0,), (1,), (0, 0), (1, 0)]
    (solution,) = searched.solved
    assert solution.evaluations == searched.evaluations == 4
    assert solution.select_logp == pytest.approx((math.log(1 / 2), 0.0)), (
        "two of four visits at the root, the only one below"
    )
    assert solution.prior_logp == pytest.approx((math.log(0.5), math.log(0.5)))


def test_decisions_are_tried_about_as_often_as_they_are_likely():
    searched = tree(Letters((9,), actions=3, most_steps=6), most=200)
    grow([searched], prior(0.7, 0.2, 0.1))
    visits = np.array(searched.root.visits) / sum(searched.root.visits)
    assert np.abs(visits - [0.7, 0.2, 0.1]).max() < 0.02


def test_a_good_prior_needs_fewer_evaluations_than_a_uniform_one():
    good, uniform = (
        tree(Letters((1, 1, 1), most_steps=3)),
        tree(Letters((1, 1, 1), most_steps=3), TreeSettings(prior="uniform", noise=0)),
    )
    grow([good, uniform], prior(0.1, 0.9))
    assert good.evaluations == 3
    assert uniform.evaluations > 8


def test_what_was_seen_before_is_closed_and_an_exhausted_search_ends():
    """Of 3 letters two do the same: 2 new states at the root, 2 x 3 evaluations below, then there is nothing left."""
    searched = tree(Letters((9,), actions=3, alike=(0, 1)))
    grow([searched], prior(0.4, 0.4, 0.2))
    assert searched.evaluations == 3 + 2 * 3
    assert searched.root.open == []
    assert searched.solved == []


def test_a_budget_is_kept_to_the_evaluation():
    for most in (1, 5, 17):
        searched = tree(Letters((9,), most_steps=8), most=most)
        grow([searched], prior(0.5, 0.5))
        assert searched.evaluations == len(searched.leaves) == most


def test_the_search_goes_on_after_a_solution_where_several_are_wanted():
    class Even(Letters):
        def solved(self, state: Any) -> bool:
            return sum(state) == 2

    searched = tree(Even((9,), most_steps=3), solutions=2)
    grow([searched], prior(0.5, 0.5))
    assert len(searched.solved) == 2
    assert all(sum(one.decisions) == 2 for one in searched.solved)
    first, second = (one.evaluations for one in searched.solved)
    assert first < second == searched.evaluations


def test_noise_at_the_root_lets_a_prior_that_is_wrong_out():
    """Without it the decision that the prior rules out is never tried."""
    settings = TreeSettings(noise=0.25, temperature=1.0, dirichlet=50.0)
    for noisy, solves in ((settings, True), (QUIET, False)):
        searched = tree(Letters((1,), most_steps=12), noisy, most=60)
        grow([searched], lambda places: torch.tensor([[1.0, 0.0]] * len(places)))
        assert bool(searched.solved) == solves


def test_a_temperature_flattens_the_prior():
    searched = tree(Letters((9,)), TreeSettings(noise=0, temperature=2.0), most=1)
    grow([searched], prior(0.8, 0.2))
    assert searched.root.prior == pytest.approx([2 / 3, 1 / 3]), "sqrt(.8) : sqrt(.2) = 2 : 1"


def test_trees_do_the_same_together_as_alone():
    goals = [(1, 0, 1), (0, 0), (1, 1, 1, 1), (9,)]
    settings = TreeSettings()

    def trees() -> list[DecisionTree]:
        return [tree(Letters(goal, most_steps=4), settings, 12, seed) for seed, goal in enumerate(goals)]

    ended: list[int] = []
    together = trees()
    grow(together, prior(0.3, 0.7), ended.append)
    assert ended[-1] == len(goals)
    for one, other in zip(together, trees(), strict=True):
        grow([other], prior(0.3, 0.7))
        assert [one.found(leaf) for leaf in one.leaves] == [other.found(leaf) for leaf in other.leaves]


def test_failures_are_finished_by_draws_from_the_policy_until_they_are_solved_or_at_their_last_step():
    problem = Letters((0, 1, 1), most_steps=4)
    begun = tree(problem, most=1)
    grow([begun], prior(0.9, 0.1))
    (leaf,) = begun.leaves
    row = begun.found(leaf)
    assert row.decisions == (0,)
    assert finish([(problem, row)], prior(0.3, 0.7), [[0.0, 0.31, 0.29, 0.99]])[0].decisions == (0, 1, 0, 1)
    solved, _ = finish([(problem, row)] * 2, prior(0.3, 0.7), [[0.0, 0.3001, 0.9, 0.0], [0.0] * 4])
    assert (solved.decisions, solved.solved) == ((0, 1, 1), True)
    assert solved.select_logp == pytest.approx((*row.select_logp, math.log(0.7), math.log(0.7)))
    assert solved.prior_logp == pytest.approx((*row.prior_logp, math.log(0.7), math.log(0.7)))
    assert finish([(problem, solved)], prior(0.3, 0.7), [[0.0] * 4]) == [solved]
    uniform = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = finish([(problem, row)] * 4000, prior(0.3, 0.7), uniform)
    share = sum(one.decisions[1] for one in drawn) / 4000
    assert share == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 4000))
