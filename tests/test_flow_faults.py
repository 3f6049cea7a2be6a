"""What the seed's Flow-GRPO recorded and scored, and that our checks see it."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import contract
from relgrad.core.protocols import Toy
from relgrad.core.types import CellScores, Prompt, Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.laws.schedule import Scheduler
from relgrad.policies.flow import toy as flow_toy
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.settings import Settings
from relgrad.policies.flow.steps import Steps
from relgrad.trajectories.states import pack_states, states_around, unpack_states


class ArgMaxAtTheEnd(Steps):
    """Takes the most probable tokens in the last step, and records that it was certain to."""

    def advance(self, trace, group_R, before_RE, step, steps, uniform_RE2):
        if step < steps - 1:
            return super().advance(trace, group_R, before_RE, step, steps, uniform_RE2)
        step_R = torch.full((len(before_RE),), step)
        return logits(self, trace, group_R, before_RE, step_R, steps).argmax(-1), torch.zeros(len(before_RE))


def logits(steps: Steps, trace: Any, group_N: Tensor, before_NE: Tensor, step_N: Tensor, count: int) -> Tensor:
    """[N, E, V] at every editable position."""
    at = torch.ones_like(before_NE, dtype=torch.bool).nonzero(as_tuple=True)
    hidden_MH = steps.engine.hidden(trace, group_N, before_NE, step_N, count, at)
    return steps.engine.logits(hidden_MH).view(*before_NE.shape, -1)


class Clamped:
    """The estimator of the seed's Flow-GRPO on FS-DFM: the rate kernel with clamps; an arg-max at the end taken for a jump."""

    law: Literal["exact", "surrogate"] = "exact"  # it says so

    def __init__(self, scheduler: Scheduler, *, argmax: bool) -> None:
        self.scheduler, self.argmax = scheduler, argmax

    def score(self, process: Any, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> CellScores:
        count = rollouts.mask_BT.shape[1]
        before_NE, after_NE = states_around(rollouts.trace, cells_N2)
        group_N, step_N = rollouts.group_B[cells_N2[:, 0]], cells_N2[:, 1]
        p_NEV = logits(process, rollouts.trace, group_N, before_NE, step_N, count).softmax(-1)
        time_N, h = step_N.double() / count, 1 / count
        rate_N1 = (self.scheduler.slope(time_N) / self.scheduler.left(time_N)).float()[:, None]
        own_NE = p_NEV.gather(-1, before_NE[..., None])[..., 0]
        survives_NE = torch.exp(-rate_N1 * (1 - own_NE) * h)
        jump_NE = (
            torch.log1p(-survives_NE.clamp(max=1 - 1e-4))
            + p_NEV.gather(-1, after_NE[..., None])[..., 0].log()
            - torch.log1p(-own_NE.clamp(max=1 - 1e-4))
        )
        logp_NE = torch.where(before_NE == after_NE, survives_NE.log(), jump_NE)
        if not self.argmax:  # the clamps alone: the last step is ours
            drawn_NE = p_NEV.gather(-1, after_NE[..., None])[..., 0].log()
            logp_NE = torch.where(step_N[:, None] == count - 1, drawn_NE, logp_NE)
        return CellScores(logp_NE.sum(-1))


def published(*, argmax: bool, **options: Any) -> Toy:
    """The toy of the rate kernel, with the seed's sampler and scorer."""
    settings = Settings(
        **{"max_completion_length": 2, "sampling_steps": 2, "kernel": "rate", "exponent": 2, "device": "cpu", **options}
    )
    honest = flow_toy.make(**settings.model_dump(exclude_unset=True))()
    policy = FlowPolicy(flow_toy.parts(settings), settings)
    if argmax:
        policy.steps = ArgMaxAtTheEnd(policy.engine, settings.kernel, policy.scheduler)
    policy.estimator = Clamped(policy.scheduler, argmax=argmax)
    policy.initial = lambda group_B, prompts, draws: flow_toy.fixed(policy, group_B, prompts)

    def enumerate_all(prompt: Prompt) -> Rollouts:
        everything = honest.enumerate(prompt)
        if not argmax:
            return everything
        states_BTE = unpack_states(everything.trace, torch.arange(everything.rows))
        group_B = torch.zeros(everything.rows, dtype=torch.int64)
        with torch.no_grad():
            last_BEV = logits(policy.steps, everything.trace, group_B, states_BTE[:, -2], torch.ones_like(group_B), 2)
        keep = (states_BTE[:, -1] == last_BEV.argmax(-1)).all(-1).nonzero()[:, 0]
        trace = dict(everything.trace) | pack_states(list(states_BTE[keep].unbind(1)), 3)
        fields = {n: getattr(everything, n)[keep] for n in ("group_B", "behaviour_logp_BT", "mask_BT", "size_BT")}
        pick = {n: tuple(getattr(everything, n)[i] for i in keep.tolist()) for n in ("outputs", "stop")}
        return Rollouts(prompts=everything.prompts, policy_version=0, trace=trace, **fields, **pick)

    return Toy(policy, honest.prompts, enumerate_all, flow_toy.keys, flow_toy.reward)


def test_parity_and_mass_catch_an_arg_max_that_is_recorded_as_a_jump() -> None:
    with pytest.raises(AssertionError, match="fresh and recorded log-probs"):
        contract.check_parity(published(argmax=True))
    with pytest.raises(AssertionError, match=r"have mass 0\.[0-8]"):
        contract.check_mass(published(argmax=True))


def test_mass_catches_the_clamps() -> None:
    """Sharp laws: where a token is all but certain, the clamped chance to leave it is too large."""
    with pytest.raises(AssertionError, match=r"have mass 1\.0000"):
        contract.check_mass(published(argmax=False, temperature=0.12, exponent=1))


def test_the_same_checks_pass_on_the_same_toy_scored_by_our_law() -> None:
    for options in ({"exponent": 2}, {"exponent": 1, "temperature": 0.12}):
        contract.check_parity(flow_toy.make(kernel="rate", **options)())
        contract.check_mass(flow_toy.make(kernel="rate", **options)())


KERNELS = ("mixture", "rate", "cumulative")


OTHERS = [(a, b) for a, b in product(KERNELS, KERNELS) if a != b and (a, b) != ("rate", "mixture")]


@pytest.mark.parametrize(
    ("drawn", "scored"),
    [
        pytest.param("mixture", "mixture", marks=pytest.mark.slow),
        ("rate", "mixture"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS),
    ],
)
def test_the_frequency_check_tells_which_kernel_drew(drawn: str, scored: str) -> None:
    """Trajectories of one kernel among the enumerated probabilities of another.

    In the first of two steps with kappa = t a token of probability 1/3 stays with probability .67, .72 and .63.
    """
    sampler, scorer = (flow_toy.make(kernel=kernel)() for kernel in (drawn, scored))
    mixed = Toy(Mixed(sampler.policy, scorer.policy), scorer.prompts, scorer.enumerate, flow_toy.keys, flow_toy.reward)
    if drawn == scored:
        contract.check_frequency(mixed)
        return
    with pytest.raises(AssertionError, match="degrees of freedom"):
        contract.check_frequency(mixed)


class Mixed:
    """Draws with one policy and scores with another of the same weights."""

    law = "exact"

    def __init__(self, sampler: FlowPolicy, scorer: FlowPolicy) -> None:
        self.sample, self.scorer = sampler.sample, scorer
        for (_, own), (_, other) in zip(sampler.parameters(), scorer.parameters(), strict=True):
            own.data = other.data  # the same tensors: what moves one moves both

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)
