"""How many prompts a tree search solves within so many evaluations, guided by a policy, and with a uniform prior beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from relgrad.core.protocols import GuidesSearch, Rewards
from relgrad.core.randomness import derived
from relgrad.core.types import Prompt
from relgrad.objectives.advantages import combine
from relgrad.search.decisions import DecisionTree, Found, TreeSettings, grow

PRIORS: dict[str, Literal["policy", "uniform"]] = {"search": "policy", "uniform": "uniform"}
"""Names of figures, and the prior that they are of."""
AT_ONCE = 32
"""Prompts that are searched side by side."""


def search_figures(
    policy: GuidesSearch,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """A figure a prompt, for the policy's prior ("search") and the uniform one ("uniform"), each with the same noise at the root.

    NAME/solved@K      1 where the first solution came within K evaluations and the rewards confirm it, for every K of the policy's
                       `search_evaluations`
    NAME/evaluations   evaluations until then; the largest K where there was none (censored)
    """
    figures: dict[str, list[float]] = {}
    most = policy.search_evaluations[-1]
    for turn, (name, prior) in enumerate(PRIORS.items()):
        settings = TreeSettings(prior=prior)
        needed: list[int | None] = []
        for first in range(0, len(prompts), AT_ONCE):
            some = prompts[first : first + AT_ONCE]
            needed += _needed(policy, some, rewards, settings, seed)
            progress(turn * len(prompts) + first + len(some), len(PRIORS) * len(prompts))
        for most_evaluations in policy.search_evaluations:
            figures[f"{name}/solved@{most_evaluations}"] = [
                float(one is not None and one <= most_evaluations) for one in needed
            ]
        figures[f"{name}/evaluations"] = [float(most if one is None else one) for one in needed]
    return figures


def _needed(
    policy: GuidesSearch, prompts: Sequence[Prompt], rewards: Rewards, settings: TreeSettings, seed: int
) -> list[int | None]:
    """Evaluations until the first confirmed solution; None where there is none."""
    found = [
        first_solution(tree) for tree in search_all(policy, prompts, settings, policy.search_evaluations[-1], seed)
    ]
    solved = [place for place, one in enumerate(found) if one is not None]
    if not solved:
        return [None] * len(prompts)
    decisions = [one.decisions for one in found if one is not None]
    rollouts = policy.rollouts_of([prompts[place] for place in solved], torch.arange(len(solved)), decisions)
    reward_B = combine(rewards(rollouts), rollouts.group_B).reward_B
    confirmed = {place for place, reward in zip(solved, reward_B.tolist(), strict=True) if reward > 0}
    return [one.evaluations if one is not None and place in confirmed else None for place, one in enumerate(found)]


def search_all(
    policy: GuidesSearch, prompts: Sequence[Prompt], settings: TreeSettings, evaluations: int, seed: int
) -> list[DecisionTree]:
    """The finished searches of these prompts; a prompt's depends on the seed and the prompt alone."""
    trees = [
        DecisionTree(
            policy.problem(prompt),
            settings,
            evaluations,
            np.random.default_rng(derived(seed, "search", prompt.id, prompt.text)),
        )
        for prompt in prompts
    ]
    grow(trees, policy.priors)
    return trees


def first_solution(tree: DecisionTree) -> Found | None:
    """The first that solved what can be seen of the problem."""
    return tree.solved[0] if tree.solved else None
