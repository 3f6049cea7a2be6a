"""Every policy passes the contract (contract.py) on every toy its module offers; modules are discovered."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import contract
import relgrad.policies
import toy_policy
from relgrad.core import registry
from relgrad.core.protocols import Toy
from relgrad.core.randomness import Draws
from relgrad.core.types import CellScores
from relgrad.laws.categorical import Truncation


def modules() -> list[str]:
    """Every module of relgrad.policies that offers toys, and the table policy of these tests."""
    names = [f"relgrad.policies.{m.name}" for m in pkgutil.iter_modules(relgrad.policies.__path__)]
    return ["toy_policy", *(name for name in names if hasattr(importlib.import_module(name), "toys"))]


MODULES = {name: importlib.import_module(name).toys() for name in modules()}
TOYS = [pytest.param(build, id=f"{m.split('.')[-1]}-{n}") for m, toys in MODULES.items() for n, build in toys.items()]
every_toy = pytest.mark.parametrize("build", TOYS)


@pytest.mark.parametrize("kind", registry.kinds("policies"))
def test_every_policy_offers_toys(kind: str):
    assert MODULES.get(f"relgrad.policies.{kind}"), f"relgrad/policies/{kind}.py: toys() is missing or empty"


COSTLY = ("frequency", "gradient", "composition", "learns")
"""Checks that draw many trajectories or train. The default suite takes each with at most three toys of a policy, the checks' toys
taking turns; `slow` has all the others."""
MANY = 8
"""Of a policy with more toys than these, costly checks take two toys, and the others every third one, in turn (pairwise)."""


def pairs(checks: Iterable[str]) -> Iterator[Any]:
    """Every toy with every one of the checks."""
    for module, toys in MODULES.items():
        every, others = (math.ceil(len(toys) / 3), 1) if len(toys) <= MANY else (math.ceil(len(toys) / 2), 3)
        for number, (toy, build) in enumerate(toys.items()):
            for place, check in enumerate(checks):
                turn = (number + COSTLY.index(check)) % every if check in COSTLY else (number + place) % others
                left_out = turn != 0
                marks = [pytest.mark.slow] if left_out else []
                yield pytest.param(build, check, marks=marks, id=f"{check}-{module.split('.')[-1]}-{toy}")


@pytest.mark.parametrize(("build", "name"), list(pairs(contract.EVERYONE)))
def test_contract(build: Callable[[], Toy], name: str):
    contract.EVERYONE[name](build())


@pytest.mark.parametrize(("build", "name"), list(pairs(contract.EXACT_ONLY)))
def test_contract_of_exact_laws(build: Callable[[], Toy], name: str):
    toy = build()
    if toy.policy.law == "surrogate":
        pytest.skip(f"{type(toy.policy).__name__} scores by a surrogate law: '{name}' does not hold for it")
    contract.EXACT_ONLY[name](toy)


@pytest.mark.parametrize("module", MODULES)
def test_contract_round_trip(module: str, tmp_path: Path):
    differences = contract.check_round_trips(module, MODULES[module], tmp_path)
    assert differences == pytest.approx(dict.fromkeys(MODULES[module], 0.0), abs=1e-5)


@every_toy
def test_contract_load_refuses(build: Callable[[], Toy], tmp_path: Path):
    contract.check_load_refuses(build(), tmp_path)


# The contract itself: each check finds the fault it is there for.


class ScoresAtTemperatureOne(toy_policy.TablePolicy):
    def score(self, rollouts, cells_N2, **asked):
        law, self.truncation = self.truncation, Truncation()
        try:
            return super().score(rollouts, cells_N2, **asked)
        finally:
            self.truncation = law


class ForgetsTheEnd(toy_policy.TablePolicy):
    def roll(self, prompts, group_B, choose):
        rollouts = super().roll(prompts, group_B, choose)
        rollouts.mask_BT[rollouts.trace["token_BT"] == toy_policy.END] = False
        rollouts.behaviour_logp_BT[~rollouts.mask_BT] = 0
        return rollouts


class SamplesAnotherLaw(toy_policy.TablePolicy):
    def sample(self, prompts, group_size, generator):
        law, self.truncation = self.truncation, Truncation(temperature=1.1)
        try:
            return super().sample(prompts, group_size, generator)
        finally:
            self.truncation = law


class HalvesTheGradient(toy_policy.TablePolicy):
    def score(self, rollouts, cells_N2, **asked):
        scores = super().score(rollouts, cells_N2, **asked)
        return scores._replace(logp_N=(scores.logp_N + scores.logp_N.detach()) / 2)


class TurnsTheGradientAround(toy_policy.TablePolicy):
    def score(self, rollouts, cells_N2, **asked):
        scores = super().score(rollouts, cells_N2, **asked)
        return scores._replace(logp_N=2 * scores.logp_N.detach() - scores.logp_N)


class ScoresByPlaceInTheBatch(toy_policy.TablePolicy):
    def score(self, rollouts, cells_N2, **asked):
        scores = super().score(rollouts, cells_N2, **asked)
        return scores._replace(logp_N=scores.logp_N + 0.01 * torch.arange(len(cells_N2)))


class PlansACellTwice(toy_policy.TablePolicy):
    def plan(self, rollouts, rows, budget):
        chunks = super().plan(rollouts, rows, budget)
        return [*chunks, chunks[-1][-1:]]


class UsesTheGlobalState(toy_policy.TablePolicy):
    def sample(self, prompts, group_size, generator):
        return super().sample(prompts, group_size, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))


class DrawsForTheBatchAsAWhole(toy_policy.TablePolicy):
    def sample(self, prompts, group_size, randomness):
        return super().sample(prompts, group_size, Draws.of(randomness, len(prompts)).common)


class RunsAnotherModel(toy_policy.TablePolicy):
    def __init__(self, prompts, truncation, seed):
        super().__init__(prompts, replace(truncation, temperature=1.1 * truncation.temperature), seed)


class HasNoReference(toy_policy.TablePolicy):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.start_PSV = self.table_PSV


class ReportsHalfTheEntropy(toy_policy.TablePolicy):
    def score(self, rollouts, cells_N2, **asked) -> CellScores:
        scores = super().score(rollouts, cells_N2, **asked)
        return scores._replace(entropy_N=None if scores.entropy_N is None else scores.entropy_N / 2)


@pytest.mark.parametrize(
    ("policy", "name", "finding"),
    [
        (ScoresAtTemperatureOne, "parity", "fresh and recorded log-probs"),
        (ForgetsTheEnd, "mass", "have mass 2"),
        (SamplesAnotherLaw, "parity", "fresh and recorded log-probs"),
        (SamplesAnotherLaw, "frequency", "which the enumeration does not have"),
        (SamplesAnotherLaw, "gradient", "estimated"),
        (HalvesTheGradient, "gradient", "finite differences"),
        (ScoresByPlaceInTheBatch, "composition", "shuffled cells"),
        (ScoresByPlaceInTheBatch, "chunks", "log-probs with budget 1"),
        (PlansACellTwice, "chunks", "not a partition"),
        (UsesTheGlobalState, "seed", "global random state"),
        (DrawsForTheBatchAsAWhole, "beside", "alone and beside the others"),
        (RunsAnotherModel, "untouched", "recorded log-probs and the untouched model"),
        (HasNoReference, "reference", "at the start"),
        (TurnsTheGradientAround, "learns", "mean reward went"),
        (ReportsHalfTheEntropy, "terms", "by enumeration"),
    ],
)
def test_the_contract_finds_the_fault(policy: type[toy_policy.TablePolicy], name: str, finding: str):
    toy = toy_policy.toy(Truncation(temperature=0.7, top_k=2), policy)
    with pytest.raises(AssertionError, match=finding):
        (contract.EVERYONE | contract.EXACT_ONLY)[name](toy)
