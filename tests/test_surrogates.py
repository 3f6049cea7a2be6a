"""Surrogates of a trajectory's log-probability, and the losses that go with them, against enumeration and slow formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import contract
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import LossTerms
from relgrad.core.randomness import Draws
from relgrad.core.types import Prompt
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.estimators.passes import Answers, Passes, Plan, Texts
from relgrad.objectives import bgpo, spg, wd1
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import unmasking
from relgrad.policies.unmasking import family_toys
from relgrad.policies.unmasking.toy import WHOLE, small
from relgrad.stages.grpo import require_fit
from relgrad.training.polychromic import PolychromicSettings, SetDiversity
from relgrad.training.settings import GrpoSettings

LENGTH, TOKENS = 3, 2
TEXT = torch.tensor([1, 0, 1])
DRAWN = 20_000
"""Texts that an expectation is averaged over; each with masks of its own."""


class Network:
    """log p of every token at every position of every state of a small text: a table, entry MASK = TOKENS for a masked position."""

    def __init__(self) -> None:
        shape = (TOKENS + 1,) * LENGTH + (LENGTH, TOKENS)
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.table = logits.log_softmax(-1)

    def __call__(self, state_SE: Tensor) -> Tensor:
        """[S, E, V]."""
        return self.table[tuple(state_SE.unbind(-1))]

    def of_text(self, masked_SE: Tensor) -> Tensor:
        """[S, E]: log p of TEXT's tokens at every position, with the given ones masked."""
        state_SE = torch.where(masked_SE, TOKENS, TEXT)
        return self(state_SE).gather(-1, TEXT.expand(len(state_SE), -1)[..., None])[..., 0]


NETWORK = Network()


def texts(rows: int, written: int = LENGTH, steps: int = LENGTH) -> Texts:
    """`rows` times TEXT, of which the first positions are written, one a step from left to right."""
    written_BE = (torch.arange(LENGTH) < written).expand(rows, -1)
    step_BE = torch.where(written_BE, torch.arange(LENGTH) * steps // LENGTH, -1)
    return Texts(torch.ones_like(written_BE), written_BE, step_BE, steps, torch.ones(rows, 2, dtype=torch.bool))


def answered(plan: Plan, of: Texts, prompts: int = 1) -> tuple[Tensor, Passes]:
    """(the values [R, T] of these texts, their passes)."""
    passes = plan.passes(of, Draws(0, 0, prompts, prompts))
    answers = Answers.of(passes.trace(of), torch.arange(len(of.written_BE)))
    state_SE = passes.masked_BKE.flatten(0, 1)
    logp_BKE = NETWORK.of_text(state_SE).view(passes.masked_BKE.shape)
    return plan.values(logp_BKE[answers.row_M, answers.pass_M, answers.position_M], answers), passes


def subsets() -> Iterator[Tensor]:
    """Every set of positions of TEXT but the empty one, as bool [E]."""
    for bits in itertools.product([False, True], repeat=LENGTH):
        if any(bits):
            yield torch.tensor(bits)


def exact_elbo() -> float:
    """By every size and every mask: E_k E_M [ L/k sum_{i in M} log p ]."""
    total = 0.0
    for mask_E in subsets():
        size = int(mask_E.sum())
        chance = 1 / (LENGTH * math.comb(LENGTH, size))
        total += chance * LENGTH / size * float(NETWORK.of_text(mask_E[None])[0][mask_E].sum())
    return total


def exact_log_prob() -> float:
    """log pi of TEXT under the sampler that reveals one position a step, in random order."""
    orders = []
    for order in itertools.permutations(range(LENGTH)):
        masked_E, logp = torch.ones(LENGTH, dtype=torch.bool), 0.0
        for position in order:
            logp += float(NETWORK.of_text(masked_E[None])[0, position])
            masked_E[position] = False
        orders.append(logp)
    return float(torch.tensor(orders).logsumexp(0)) - math.log(len(orders))


def near(values: Tensor, expected: float) -> None:
    """The mean of independent values is the expected one, within five standard errors."""
    assert float(values.mean()) == pytest.approx(expected, abs=5 * float(values.std()) / math.sqrt(len(values)))


# ---------------------------------------------------------------------- the surrogates


@pytest.mark.parametrize(
    "plan",
    [
        Elbo(samples=1, stratified=False),
        Elbo(samples=3),
        Elbo(samples=1, antithetic=True),
        Elbo(samples=2, antithetic=True),
    ],
    ids=str,
)
def test_every_elbo_is_unbiased(plan: Elbo) -> None:
    values_RT, _ = answered(plan, texts(DRAWN))
    assert values_RT.shape == (DRAWN, 1)
    near(values_RT[:, 0], exact_elbo())


def test_the_elbo_is_below_the_log_probability() -> None:
    assert exact_elbo() < exact_log_prob()


def test_a_divided_elbo_is_a_mean_over_tokens() -> None:
    whole_RT, _ = answered(Elbo(samples=2), texts(4))
    divided_RT, _ = answered(Elbo(samples=2, per="token"), texts(4))
    torch.testing.assert_close(divided_RT * LENGTH, whole_RT, rtol=1e-6, atol=0)


def test_the_samples_of_bgpo_are_those_of_the_elbo() -> None:
    values_RT, _ = answered(Bgpo(samples=3), texts(DRAWN))
    assert values_RT.shape == (DRAWN, 3)
    near(LENGTH * values_RT.mean(-1), exact_elbo())


def test_mean_field_by_hand() -> None:
    values_RT, passes = answered(MeanField(prompt_masking=0.0), texts(2))
    everything_E = torch.ones(1, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(values_RT, NETWORK.of_text(everything_E).expand(2, -1))
    assert passes.veiled_BL is None


def test_the_prompt_is_veiled_by_the_share() -> None:
    _, passes = answered(MeanField(prompt_masking=0.25), texts(DRAWN))
    assert passes.veiled_BL is not None
    near(passes.veiled_BL.flatten().double(), 0.25)


def test_coupled_masks_by_hand() -> None:
    """Each token is asked about once in everything masked and once in a half; weights are those of the paper."""
    plan = Coupled()
    values_RT, passes = answered(plan, texts(50))
    masked_BKE, weight_BKE = passes.masked_BKE, passes.weight_BKE
    assert bool(masked_BKE[:, 0].all())
    assert bool((masked_BKE[:, 1] ^ masked_BKE[:, 2]).all()), "a mask and its complement"
    assert bool((weight_BKE[:, 0] == 0.5).all())
    share_B = 1 / (2 * weight_BKE[:, 1].amax(-1))
    whole_B = masked_BKE[:, 1].any(-1) & masked_BKE[:, 2].any(-1)
    assert bool((share_B[whole_B] >= plan.t_min - 1e-6).all())
    assert bool((share_B[whole_B] <= plan.t_max + 1e-6).all())
    expected_BE = torch.zeros(50, LENGTH, dtype=torch.float64)
    for number in range(3):
        logp_BE = NETWORK.of_text(masked_BKE[:, number])
        expected_BE += torch.where(masked_BKE[:, number], weight_BKE[:, number].double() * logp_BE, 0.0)
    torch.testing.assert_close(values_RT, expected_BE)


def test_the_weights_of_coupled_masks_add_up_to_one_and_a_half() -> None:
    _, passes = answered(Coupled(), texts(DRAWN))
    near(passes.weight_BKE.sum(1).flatten().double(), 1.5)


@pytest.mark.parametrize("written", [LENGTH, 2])
def test_merged_steps_between_the_trajectory_and_the_mean_field(written: int) -> None:
    of = texts(1, written)
    behind_E = torch.arange(LENGTH) >= written
    stepwise_RT, _ = answered(MergedSteps(segments=LENGTH), of)
    for position in range(written):
        masked_E = (torch.arange(LENGTH) >= position) | behind_E
        assert float(stepwise_RT[0, position]) == pytest.approx(float(NETWORK.of_text(masked_E[None])[0, position]))
    merged_RT, _ = answered(MergedSteps(segments=1), of)
    field_RT, _ = answered(MeanField(prompt_masking=0.0), of)
    torch.testing.assert_close(merged_RT, field_RT)


@pytest.mark.parametrize(("samples", "beta", "omega"), [(2, 1.5, 0.5), (3, 1.0, 1.0), (1, 2.0, 0.3)])
def test_spg_by_loops(samples: int, beta: float, omega: float) -> None:
    plan, of = Spg(samples=samples, beta=beta, omega=omega), texts(30)
    values_RT, passes = answered(plan, of)
    for row in range(30):
        lower, levels = 0.0, dict[int, float]()
        for masked_E in passes.masked_BKE[row]:
            logp_E, size = NETWORK.of_text(masked_E[None])[0], int(masked_E.sum())
            lower += float(logp_E[masked_E].mean()) / samples
            for i in masked_E.nonzero()[:, 0].tolist():
                levels[i] = levels.get(i, 0.0) + LENGTH / size * math.exp(beta * float(logp_E[i])) / samples
        upper = sum(math.log(level) / beta for level in levels.values()) / len(levels)
        assert values_RT[row].tolist() == pytest.approx([lower, omega * upper + (1 - omega) * lower], rel=1e-6)


def test_the_gradient_of_spg_is_finite_where_a_position_is_never_masked() -> None:
    of = texts(8)
    passes = Spg(samples=1).passes(of, Draws(0, 0, 1, 1))
    answers = Answers.of(passes.trace(of), torch.arange(8))
    logp_M = torch.full((len(answers.row_M),), -1.0, dtype=torch.float64, requires_grad=True)
    Spg(samples=1).values(logp_M, answers).sum().backward()
    assert logp_M.grad is not None
    assert bool(logp_M.grad.isfinite().all())
    assert bool((logp_M.grad != 0).all())


PLANS: list[Any] = [MeanField(), Coupled(), Elbo(), Elbo(antithetic=True), Bgpo(), Spg(), MergedSteps()]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_only_what_was_written_is_asked_about_and_the_rest_stays_masked(plan: Any) -> None:
    of = texts(20, written=2)
    values_RT, passes = answered(plan, of)
    assert values_RT.shape == (20, plan.decisions(LENGTH))
    assert passes.masked_BKE.shape == (20, plan.count, LENGTH)
    assert bool((passes.weight_BKE[..., 2] == 0).all())
    assert bool(passes.masked_BKE[..., 2].all()), "what was never written was masked when the text was written"
    assert bool((~passes.masked_BKE <= (passes.weight_BKE == 0)).all()), "no weight on what is given"
    assert bool(values_RT.isfinite().all())


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_prompts_passes_are_its_own(plan: Any) -> None:
    """Two prompts together, or the second one alone: the same masks."""
    both = plan.passes(texts(8), Draws(0, 0, 2, 2))
    second = plan.passes(texts(4), Draws(0, 1, 1, 2))
    assert torch.equal(both.masked_BKE[4:], second.masked_BKE)
    assert torch.equal(both.weight_BKE[4:], second.weight_BKE)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_text_of_nothing_has_no_value(plan: Any) -> None:
    values_RT, _ = answered(plan, texts(2, written=0))
    assert bool((values_RT == 0).all())


# ---------------------------------------------------------------------- the losses


def terms(logp_BT: Tensor, behaviour_BT: Tensor, advantage_B: Tensor, group_B: Tensor | None = None) -> LossTerms:
    return LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=behaviour_BT,
        advantage_BT=advantage_B[:, None].expand_as(logp_BT),
        mask_BT=torch.ones_like(logp_BT, dtype=torch.bool),
        batch_decisions=float(logp_BT.numel()),
        max_decisions=logp_BT.shape[1],
        group_B=group_B,
    )


ADVANTAGE = torch.tensor([1.0, -0.5, 0.25, -2.0], dtype=torch.float64)


def leaf(rows: int, decisions: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(rows, decisions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-drawn.abs()).requires_grad_()


def test_bgpo_by_hand_and_on_policy_the_gradient_of_the_elbo() -> None:
    logp_BT = leaf(4, 3)
    behaviour_BT = logp_BT.detach() - 0.3
    loss, _ = bgpo.BgpoLoss()(terms(logp_BT, behaviour_BT, ADVANTAGE))
    expected = -(1.0 * 1.3 + 0.25 * 1.3 - 0.5 * math.exp(0.3) - 2.0 * math.exp(0.3)) / 4
    assert float(loss.detach()) == pytest.approx(expected)
    loss, _ = bgpo.BgpoLoss()(terms(logp_BT, logp_BT.detach(), ADVANTAGE))
    (slope_BT,) = torch.autograd.grad(loss, logp_BT)
    torch.testing.assert_close(slope_BT, (-ADVANTAGE / 4 / 3)[:, None].expand(4, 3))


def test_the_bounds_of_bgpo_are_bounds() -> None:
    """The objective never exceeds A exp(mean of the samples' gains)."""
    logp_BT, behaviour_BT = leaf(4, 3), leaf(4, 3, seed=1).detach()
    loss, _ = bgpo.BgpoLoss()(terms(logp_BT, behaviour_BT, ADVANTAGE))
    ratio_B = (logp_BT.detach() - behaviour_BT).mean(-1).exp()
    assert -float(loss.detach()) <= float((ADVANTAGE * ratio_B).mean())


def test_spg_takes_the_bound_that_fits() -> None:
    logp_BT = leaf(4, 2)
    loss, _ = spg.SpgLoss()(terms(logp_BT, logp_BT.detach(), ADVANTAGE))
    (slope_BT,) = torch.autograd.grad(loss, logp_BT)
    expected = torch.tensor([[-1.0, 0.0], [0.0, 0.5], [-0.25, 0.0], [0.0, 2.0]], dtype=torch.float64) / 4
    torch.testing.assert_close(slope_BT, expected)
    with pytest.raises(ValueError, match="these rows have 3 decisions"):
        spg.SpgLoss()(terms(leaf(4, 3), leaf(4, 3), ADVANTAGE))


def test_wd1_weighs_by_the_softmax_of_the_group() -> None:
    """Two groups by hand; a group of equal advantages has no gradient; a group's scale is that of a mean over groups."""
    group_B = torch.tensor([7, 3, 7, 3])
    logp_BT = leaf(4, 2)
    loss, _ = wd1.Wd1Loss()(terms(logp_BT, logp_BT.detach(), ADVANTAGE, group_B))
    (slope_BT,) = torch.autograd.grad(loss, logp_BT)
    for group in (7, 3):
        rows = (group_B == group).nonzero()[:, 0]
        good, bad = ADVANTAGE[rows].softmax(0), (-ADVANTAGE[rows]).softmax(0)
        torch.testing.assert_close(slope_BT[rows], (-(good - bad) / 2)[:, None].expand(2, 2))
    equal = torch.full((4,), 0.3, dtype=torch.float64)
    loss, _ = wd1.Wd1Loss()(terms(logp_BT, logp_BT.detach(), equal, None))
    assert bool((torch.autograd.grad(loss, logp_BT)[0] == 0).all())


LOSSES = pytest.mark.parametrize("loss", [bgpo, spg, wd1], ids=lambda m: m.__name__.rpartition(".")[2])


@LOSSES
@pytest.mark.parametrize(
    "unused", [{"beta": 0.04}, {"entropy_coef": 0.5}, {"epsilon": 0.1}, {"loss_type": "grpo"}], ids=str
)
def test_what_a_loss_would_leave_out_is_refused(loss: Any, unused: dict[str, Any]) -> None:
    assert loss.build(GrpoSettings()).needs == frozenset()
    ((name, value),) = unused.items()
    with pytest.raises(RelgradError, match=f"does not know {name}={value!r}: leave it out"):
        loss.build(GrpoSettings(**unused))


def test_wd1_compares_rows_and_not_decisions() -> None:
    with pytest.raises(RelgradError, match="does not know credit='decision'"):
        wd1.build(GrpoSettings(credit="decision"))


@LOSSES
def test_what_another_drew_is_corrected(loss: Any) -> None:
    """A row of weight 0 has no gradient."""
    logp_BT = leaf(4, 2)
    correction_BT = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64).expand(4, 2)
    batch = replace(terms(logp_BT, logp_BT.detach(), ADVANTAGE), correction_BT=correction_BT)
    (slope_BT,) = torch.autograd.grad(loss.build(GrpoSettings())(batch)[0], logp_BT)
    assert bool((slope_BT[0] == 0).all())
    assert bool((slope_BT[1:] != 0).any(-1).all())


def test_bgpo_is_finite_where_a_good_text_gained_much() -> None:
    behaviour_BT = torch.full((2, 3), -200.0, dtype=torch.float32)
    logp_BT = torch.full((2, 3), -100.0, dtype=torch.float32, requires_grad=True)
    loss, _ = bgpo.BgpoLoss()(terms(logp_BT, behaviour_BT, torch.tensor([1.0, 0.0])))
    (slope_BT,) = torch.autograd.grad(loss, logp_BT)
    assert bool(slope_BT.isfinite().all())
    assert float(loss.detach()) == pytest.approx(-101 / 2)


# ---------------------------------------------------------------------- in a policy


def test_what_is_recorded_is_what_is_scored_where_a_network_keeps_blocks() -> None:
    """The cache of finished blocks knows the block that is written, and nothing of texts that are masked again."""
    contract.check_parity(family_toys.make("sdar-cached", "random", estimator=MeanField(prompt_masking=0.0))())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": {"kind": "elbo"}, "train_steps": 2}, "train_steps=2 with estimator.kind=elbo"),
        ({"estimator": {"kind": "elbo"}, "top_p": 0.9}, "with top_p=0.9"),
        ({"estimator": {"kind": "merged_steps", "segments": 9}}, "more than the 8 steps"),
        ({"estimator": {"kind": "merged_steps"}, "law": {"order": "threshold"}}, "with law.order=threshold"),
        ({"estimator": {"kind": "elba"}}, "elba"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unmasking.Settings.model_validate({"max_completion_length": 8, **settings})


def test_an_estimator_and_its_loss_go_together() -> None:
    named = {"bgpo": Bgpo(), "elbo": Elbo()}
    policies = {name: small(law={"order": "random"}, estimator=plan, **WHOLE) for name, plan in named.items()}
    require_fit(policies["bgpo"], bgpo.BgpoLoss(), "relgrad.objectives.bgpo")
    require_fit(policies["elbo"], PolicyLoss(), None)
    require_fit(policies["elbo"], wd1.Wd1Loss(), "relgrad.objectives.wd1")
    with pytest.raises(
        RelgradError, match=r"estimator.kind=bgpo needs grpo.loss=relgrad.objectives.bgpo \(received None\)"
    ):
        require_fit(policies["bgpo"], PolicyLoss(), None)
    with pytest.raises(RelgradError, match=r"is for policy.estimator.kind=spg \(received elbo\)"):
        require_fit(policies["elbo"], spg.SpgLoss(), "relgrad.objectives.spg")


def test_a_surrogate_has_no_entropy_and_no_diversity() -> None:
    policy = small(law={"order": "random"}, estimator=Elbo(), **WHOLE)
    rollouts = policy.sample([Prompt("ab", id=0)], 2, torch.Generator().manual_seed(0))
    with pytest.raises(RelgradError, match="a surrogate has no entropy"):
        policy.score(rollouts, rollouts.cells(), entropy=True)
    with pytest.raises(RelgradError, match="its values are no log-probabilities"):
        SetDiversity(policy, PolychromicSettings(), lambda texts: torch.zeros(len(texts), len(texts)))
