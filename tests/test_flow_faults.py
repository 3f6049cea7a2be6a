"""What the seed's Flow-GRPO recorded and scored, and that our checks see it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import contract
from relgrad.core.protocols import Toy
from relgrad.core.types import CellScores, Prompt, Rollouts
from relgrad.policies.flow import toy as _flow_toys
from relgrad.policies.flow.policy import FlowPolicy, Settings
from relgrad.trajectories import states as _flow_states


class Published(FlowPolicy):
    """The seed's Flow-GRPO on FS-DFM: an arg-max at the end recorded as a jump, and a log-probability with clamps.

    `sample` records what it did: the arg-max has probability 1. `score` says what the seed's trainer computed.
    """

    argmax = True

    def _advance(self, trace, group_R, before_RE, step, uniform_RE2):
        if not self.argmax or step < self.max_decisions - 1:
            return super()._advance(trace, group_R, before_RE, step, uniform_RE2)
        best_RE = self.logits(trace, group_R, before_RE, torch.full((len(before_RE),), step)).argmax(-1)
        return best_RE, torch.zeros(len(before_RE))

    def logits(self, trace, group_N: Tensor, before_NE: Tensor, step_N: Tensor) -> Tensor:
        at = torch.ones_like(before_NE, dtype=torch.bool).nonzero(as_tuple=True)
        hidden_MH = self.engine.hidden(trace, group_N, before_NE, step_N, self.max_decisions, at)
        return self.engine.logits(hidden_MH).view(*before_NE.shape, -1)

    def score(self, rollouts: Rollouts, cells_N2: Tensor, **asked: bool) -> CellScores:
        self.model.eval()
        before_NE, after_NE = _flow_states.around(rollouts.trace, cells_N2)
        group_N, step_N = rollouts.group_B[cells_N2[:, 0]], cells_N2[:, 1]
        p_NEV = self.logits(rollouts.trace, group_N, before_NE, step_N).softmax(-1)
        time_N, h = step_N.double() / self.max_decisions, 1 / self.max_decisions
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
            logp_NE = torch.where(step_N[:, None] == self.max_decisions - 1, drawn_NE, logp_NE)
        return CellScores(logp_NE.sum(-1))


def published(*, argmax: bool, **options: Any) -> Toy:
    """The toy of the rate kernel, with the seed's sampler and scorer."""
    settings = Settings(
        **{"max_completion_length": 2, "sampling_steps": 2, "kernel": "rate", "exponent": 2, "device": "cpu", **options}
    )
    honest = _flow_toys.make(**settings.model_dump(exclude_unset=True))()
    policy = Published(_flow_toys.parts(settings), settings)
    policy.argmax = argmax
    policy.initial = lambda group_B, prompts, generator: _flow_toys.fixed(policy, group_B, prompts)

    def enumerate_all(prompt: Prompt) -> Rollouts:
        everything = honest.enumerate(prompt)
        if not argmax:
            return everything
        states_BTE = _flow_states.read(everything.trace, torch.arange(everything.rows))
        group_B = torch.zeros(everything.rows, dtype=torch.int64)
        with torch.no_grad():
            last_BE = policy.logits(everything.trace, group_B, states_BTE[:, -2], torch.ones_like(group_B)).argmax(-1)
        keep = (states_BTE[:, -1] == last_BE).all(-1).nonzero()[:, 0]
        trace = dict(everything.trace) | _flow_states.write(list(states_BTE[keep].unbind(1)), 3)
        fields = {n: getattr(everything, n)[keep] for n in ("group_B", "behaviour_logp_BT", "mask_BT", "size_BT")}
        pick = {n: tuple(getattr(everything, n)[i] for i in keep.tolist()) for n in ("outputs", "stop")}
        return Rollouts(prompts=everything.prompts, policy_version=0, trace=trace, **fields, **pick)

    return Toy(policy, honest.prompts, enumerate_all, _flow_toys.key, _flow_toys.reward)


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
        contract.check_parity(_flow_toys.make(kernel="rate", **options)())
        contract.check_mass(_flow_toys.make(kernel="rate", **options)())


KERNELS = ("mixture", "rate", "cumulative")


@pytest.mark.parametrize(
    ("drawn", "scored"), [("mixture", "mixture"), *((a, b) for a, b in product(KERNELS, KERNELS) if a != b)]
)
def test_the_frequency_check_tells_which_kernel_drew(drawn: str, scored: str) -> None:
    """Trajectories of one kernel among the enumerated probabilities of another.

    In the first of two steps with kappa = t a token of probability 1/3 stays with probability .67, .72 and .63.
    """
    sampler, scorer = (_flow_toys.make(kernel=kernel)() for kernel in (drawn, scored))
    mixed = Toy(
        Mixed(sampler.policy, scorer.policy), scorer.prompts, scorer.enumerate, _flow_toys.key, _flow_toys.reward
    )
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
