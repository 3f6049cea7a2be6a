"""Losses against formulas written out by hand, exact policy gradients by enumeration, and finite differences."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from relgrad.core.protocols import LossTerms
from relgrad.objectives.losses import LOSS_TYPES, PolicyLoss, truncated_importance_weights

# three rows of 3, 2 and 0 decisions; ratios exp(.5), exp(-.5), exp(.1) / exp(-.1), exp(.4)
RATIO = [[0.5, -0.5, 0.1], [-0.1, 0.4, 0.0], [0.0, 0.0, 0.0]]
MASK = [[True, True, True], [True, True, False], [False, False, False]]
ADVANTAGE = [1.5, -0.5, 2.0]
MAX_DECISIONS, BATCH_DECISIONS = 7, 8.0


def terms(**changes) -> LossTerms:
    generator = torch.Generator().manual_seed(0)
    behaviour_BT = -torch.rand(3, 3, generator=generator, dtype=torch.float64) - 0.5
    mask_BT = torch.tensor(MASK)
    fields: dict = {
        "logp_BT": (behaviour_BT + torch.tensor(RATIO, dtype=torch.float64)).requires_grad_(),
        "behaviour_logp_BT": behaviour_BT,
        "advantage_BT": torch.tensor(ADVANTAGE, dtype=torch.float64)[:, None].expand(3, 3),
        "mask_BT": mask_BT,
        "batch_decisions": BATCH_DECISIONS,
        "max_decisions": MAX_DECISIONS,
        "reference_logp_BT": behaviour_BT + torch.rand(3, 3, generator=generator, dtype=torch.float64) - 0.5,
        "entropy_BT": torch.rand(3, 3, generator=generator, dtype=torch.float64).requires_grad_(),
        "kl_BT": torch.rand(3, 3, generator=generator, dtype=torch.float64).requires_grad_(),
    }
    return LossTerms(**(fields | changes))


def clipped(ratio: float, advantage: float, low: float, high: float, delta: float = math.inf) -> float:
    return -min(min(ratio, delta) * advantage, max(min(ratio, 1 + high), 1 - low) * advantage)


def by_hand(loss_type: str, cell: list[list[float]]) -> float:
    """The table of losses.py as five lines of arithmetic, over the live cells only."""
    live = [[c for c, m in zip(row, mask, strict=True) if m] for row, mask in zip(cell, MASK, strict=True)]
    total, count = sum(map(sum, live)), sum(map(len, live))
    return {
        "grpo": sum(sum(row) / max(len(row), 1) for row in live) / 3,
        "bnpo": total / count,
        "dr_grpo": total / (3 * MAX_DECISIONS),
        "dapo": total / BATCH_DECISIONS,
        "cispo": total / BATCH_DECISIONS,
        "reinforce": total / 3,
    }[loss_type]


def cells(function) -> list[list[float]]:
    return [[function(i, t) for t in range(3)] for i in range(3)]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize(
    ("options", "low", "high", "delta"),
    [
        ({}, 0.2, 0.2, math.inf),
        ({"epsilon": 0.05}, 0.05, 0.05, math.inf),
        ({"epsilon_high": 0.3}, 0.2, 0.3, math.inf),
        ({"delta": 1.1}, 0.2, 0.2, 1.1),
    ],
)
def test_clipped_losses(loss_type, options: dict, low: float, high: float, delta: float):
    loss, metrics = PolicyLoss(loss_type=loss_type, **options)(terms())
    cell = cells(lambda i, t: clipped(math.exp(RATIO[i][t]), ADVANTAGE[i], low, high, delta))
    assert loss.item() == pytest.approx(by_hand(loss_type, cell))
    assert metrics["loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_sequence_level(loss_type):
    loss, _ = PolicyLoss(loss_type=loss_type, importance_sampling_level="sequence")(terms())
    mean = [(0.5 - 0.5 + 0.1) / 3, (-0.1 + 0.4) / 2, 0.0]
    cell = cells(lambda i, t: clipped(math.exp(mean[i]), ADVANTAGE[i], 0.2, 0.2))
    assert loss.item() == pytest.approx(by_hand(loss_type, cell))


def test_delta_caps_what_the_clip_leaves_open():
    # A < 0 and rho far above 1 + epsilon: PPO's minimum keeps rho A, unbounded; delta bounds it
    far = terms(logp_BT=terms().behaviour_logp_BT + 3.0, advantage_BT=-torch.ones(3, 3, dtype=torch.float64))
    assert PolicyLoss("bnpo")(far)[0].item() == pytest.approx(math.exp(3))
    assert PolicyLoss("bnpo", delta=4.0)(far)[0].item() == pytest.approx(4.0)


@pytest.mark.parametrize(("epsilon_high", "cap"), [(None, 5.0), (1.2, 1.2)])
def test_cispo(epsilon_high: float | None, cap: float):
    far = terms(behaviour_logp_BT=terms().behaviour_logp_BT - 1.5)
    loss, metrics = PolicyLoss("cispo", epsilon_high=epsilon_high)(far)
    logp = far.logp_BT.tolist()
    weight = cells(lambda i, t: min(math.exp(RATIO[i][t] + 1.5), cap))
    assert loss.item() == pytest.approx(by_hand("cispo", cells(lambda i, t: -weight[i][t] * ADVANTAGE[i] * logp[i][t])))
    (gradient_BT,) = torch.autograd.grad(loss, far.logp_BT)
    expected = cells(lambda i, t: -weight[i][t] * ADVANTAGE[i] / BATCH_DECISIONS * MASK[i][t])
    torch.testing.assert_close(gradient_BT, torch.tensor(expected, dtype=torch.float64))
    over = [math.exp(RATIO[0][t] + 1.5) > cap for t in range(3)]  # row 1 has A < 0
    assert metrics["cispo_clip_ratio"] == pytest.approx(sum(over) / 5)


def test_reinforce_has_the_exact_policy_gradient():
    # a two-step chain over {stop, a, b}: 'stop' ends; 7 trajectories; J = sum_tau P(tau) R(tau)
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    paths = [(0,)] + [(a, b) for a, b in itertools.product((1, 2), (0, 1, 2))]
    reward = torch.randn(len(paths), generator=generator, dtype=torch.float64)
    prob = torch.stack([first.softmax(0)[p[0]] * (second[p[0]].softmax(0)[p[1]] if p[0] else 1.0) for p in paths])
    exact = torch.autograd.grad((prob * reward).sum(), (first, second), retain_graph=True)

    logp_BT = torch.stack(
        [
            torch.stack([first.log_softmax(0)[p[0]], second[p[0]].log_softmax(0)[p[-1]] if p[0] else first.sum() * 0])
            for p in paths
        ]
    )
    weight_B = prob.detach() * len(paths)  # expectation over trajectories as a mean over equal rows
    batch = LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=logp_BT.detach(),
        advantage_BT=(weight_B * reward)[:, None].expand(-1, 2),
        mask_BT=torch.tensor([[True, bool(p[0])] for p in paths]),
        batch_decisions=1.0,
        max_decisions=2,
    )
    loss, _ = PolicyLoss("reinforce")(batch)
    for got, wanted in zip(torch.autograd.grad(loss, (first, second)), exact, strict=True):
        torch.testing.assert_close(got, -wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_every_surrogate_points_along_the_policy_gradient(loss_type):
    fresh = terms(logp_BT=terms().behaviour_logp_BT.clone().requires_grad_())
    loss, _ = PolicyLoss(loss_type)(fresh)
    (gradient_BT,) = torch.autograd.grad(loss, fresh.logp_BT)
    cell = cells(lambda i, t: 0.0)
    for i, t in itertools.product(range(3), range(3)):
        if MASK[i][t]:
            one = [[-ADVANTAGE[i] if (i, t) == (j, s) else 0.0 for s in range(3)] for j in range(3)]
            cell[i][t] = by_hand(loss_type, one)
    torch.testing.assert_close(gradient_BT, torch.tensor(cell, dtype=torch.float64))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "reinforce"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "k3 plain", "exact"])
def test_divergence_is_added_per_decision(loss_type, estimator: str):
    options = {"kl_estimator": estimator.split()[0], "use_bias_correction_kl": estimator != "k3 plain"}
    batch = terms()
    without, _ = PolicyLoss(loss_type)(batch)
    loss, metrics = PolicyLoss(loss_type, beta=0.3, **options)(batch)
    logp, ref, kl = batch.logp_BT.tolist(), batch.reference_logp_BT.tolist(), batch.kl_BT.tolist()

    def divergence(i: int, t: int) -> float:
        delta = logp[i][t] - ref[i][t]
        k3 = math.exp(-delta) - 1 + delta
        return {"k2": delta**2 / 2, "k3": k3 * math.exp(RATIO[i][t]), "k3 plain": k3, "exact": kl[i][t]}[estimator]

    assert loss.item() - without.item() == pytest.approx(by_hand(loss_type, cells(lambda i, t: 0.3 * divergence(i, t))))
    assert metrics["kl"] == pytest.approx(by_hand("bnpo", cells(divergence)))


def test_k1_is_left_to_the_reward():
    batch = terms()
    loss = PolicyLoss(beta=0.3, kl_estimator="k1")
    assert loss(batch)[0].item() == PolicyLoss()(batch)[0].item()
    assert loss.needs == frozenset()


def test_entropy_bonus_is_the_mean_over_decisions():
    batch = terms()
    without, _ = PolicyLoss()(batch)
    loss, _ = PolicyLoss(entropy_coef=0.01)(batch)
    entropy = batch.entropy_BT.tolist()
    assert without.item() - loss.item() == pytest.approx(0.01 * by_hand("bnpo", entropy))
    (gradient_BT,) = torch.autograd.grad(loss, batch.entropy_BT)
    torch.testing.assert_close(gradient_BT, -0.01 / 5 * batch.mask_BT.double())


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, set()),
        ({"beta": 0.1}, {"reference"}),
        ({"beta": 0.1, "kl_estimator": "k2"}, {"reference"}),
        ({"beta": 0.1, "kl_estimator": "exact"}, {"kl"}),
        ({"beta": 0.0, "kl_estimator": "exact"}, set()),
        ({"entropy_coef": 0.1, "beta": 0.1}, {"entropy", "reference"}),
    ],
)
def test_needs_names_the_optional_terms(options: dict, needs: set[str]):
    loss = PolicyLoss(**options)
    assert loss.needs == needs
    given = {"reference": "reference_logp_BT", "entropy": "entropy_BT", "kl": "kl_BT"}
    bare = terms(**{field: None for name, field in given.items() if name not in needs})
    assert math.isfinite(loss(bare)[0].item())


# cispo detaches its weight, so that its gradient is not that of its value: test_cispo has the formula
@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_gradient_equals_finite_differences(loss_type, level, estimator):
    loss = PolicyLoss(
        loss_type, importance_sampling_level=level, beta=0.2, kl_estimator=estimator, entropy_coef=0.05, delta=1.5
    )
    batch = terms()
    leaves = (batch.logp_BT, batch.entropy_BT, batch.kl_BT)
    value, _ = loss(batch)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for name, leaf, gradient in zip(("logp_BT", "entropy_BT", "kl_BT"), leaves, gradients, strict=True):
        difference = torch.zeros_like(leaf)
        for index in itertools.product(range(3), range(3)):
            step = torch.zeros_like(leaf)
            step[index] = 1e-6
            high, low = (loss(terms(**{name: leaf + s}))[0].item() for s in (step, -step))
            difference[index] = (high - low) / 2e-6
        torch.testing.assert_close(gradient if gradient is not None else step * 0, difference, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_masked_cells_have_no_value_and_no_gradient(loss_type, level):
    loss = PolicyLoss(loss_type, importance_sampling_level=level, beta=0.1)
    batch = terms()
    value, metrics = loss(batch)
    (gradient_BT,) = torch.autograd.grad(value, batch.logp_BT)
    assert (gradient_BT[~batch.mask_BT] == 0).all()
    assert (gradient_BT[:2][batch.mask_BT[:2]] != 0).any()
    junk_BT = torch.where(batch.mask_BT, batch.logp_BT.detach(), batch.logp_BT.detach() + 1.0)
    changed, changed_metrics = loss(terms(logp_BT=junk_BT))
    assert changed.item() == pytest.approx(value.item(), abs=1e-12)
    assert changed_metrics == pytest.approx(metrics)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_without_decisions_costs_nothing(loss_type):
    loss, _ = PolicyLoss(loss_type, beta=0.1)(terms(mask_BT=torch.zeros(3, 3, dtype=torch.bool), batch_decisions=0.0))
    assert loss.item() == 0


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "reinforce"])
def test_correction_multiplies_the_surrogate_only(loss_type):
    weight_BT = torch.tensor([[0.5, 2.0, 1.0], [1.5, 0.1, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    plain, corrected = terms(), terms(correction_BT=weight_BT)
    kl = PolicyLoss(loss_type, beta=0.1)(plain)[0] - PolicyLoss(loss_type)(plain)[0]
    loss = PolicyLoss(loss_type, beta=0.1)(corrected)[0]
    scaled = terms(advantage_BT=plain.advantage_BT * weight_BT)
    assert loss.item() == pytest.approx((PolicyLoss(loss_type)(scaled)[0] + kl).item())


def test_truncated_importance_weights():
    logp_BT = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    engine_BT = torch.tensor([[-5.0, -0.5, 1.0]])
    weight_BT = truncated_importance_weights(logp_BT, engine_BT, torch.tensor([[True, True, False]]), cap=2.0)
    assert weight_BT.tolist() == [pytest.approx([2.0, math.exp(0.5), 1.0])]
    assert not weight_BT.requires_grad


def test_clip_metrics_count_the_decisions_that_lost_their_gradient():
    # live ratios: 1.65, .61, 1.11 with A > 0; .90, 1.49 with A < 0. High: 1.65. Low: none (.90 is above .8)
    _, metrics = PolicyLoss("bnpo")(terms())
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert metrics["clip_ratio/low_mean"] == 0
    assert metrics["clip_ratio/region_mean"] == pytest.approx(1 / 5)
    assert metrics["importance_ratio/min"] == pytest.approx(math.exp(-0.5))
    assert metrics["importance_ratio/max"] == pytest.approx(math.exp(0.5))
    _, metrics = PolicyLoss("bnpo", epsilon=0.05)(terms())
    assert metrics["clip_ratio/high_mean"] == pytest.approx(2 / 5)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(1 / 5)


def test_clipped_decisions_lose_their_gradient():
    batch = terms()
    (gradient_BT,) = torch.autograd.grad(PolicyLoss("bnpo")(batch)[0], batch.logp_BT)
    assert gradient_BT[0, 0] == 0
    assert gradient_BT[0, 1].item() == pytest.approx(-ADVANTAGE[0] * math.exp(-0.5) / 5)


def test_float32_in_float32_out():
    batch = terms()
    single = terms(
        logp_BT=batch.logp_BT.detach().float().requires_grad_(),
        behaviour_logp_BT=batch.behaviour_logp_BT.float(),
        advantage_BT=batch.advantage_BT.float(),
    )
    (expected_BT,) = torch.autograd.grad(PolicyLoss()(batch)[0], batch.logp_BT)
    (gradient_BT,) = torch.autograd.grad(PolicyLoss()(single)[0], single.logp_BT)
    assert gradient_BT.dtype == torch.float32
    torch.testing.assert_close(gradient_BT.double(), expected_BT, atol=1e-6, rtol=1e-5)


PARTS = {
    **{name: PolicyLoss(name) for name in LOSS_TYPES},
    "two-sided": PolicyLoss("dr_grpo", delta=1.5),
    "sequence": PolicyLoss("grpo", importance_sampling_level="sequence", epsilon=0.05),
    "k2": PolicyLoss("bnpo", beta=0.3, kl_estimator="k2"),
    "k3-entropy": PolicyLoss("grpo", beta=0.3, entropy_coef=0.2),
    "exact-entropy": PolicyLoss("dapo", beta=0.3, kl_estimator="exact", entropy_coef=0.2),
}


@pytest.mark.parametrize("name", PARTS)
def test_losses_and_gradients_of_parts_add_up(name: str):
    """Every average is a sum over the part's rows, divided by counts of the whole step."""
    whole = terms(step_rows=3, step_decisions=float(torch.tensor(MASK).sum()))
    leaves = [whole.logp_BT, whole.entropy_BT, whole.kl_BT]
    loss, _ = PARTS[name](whole)
    slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    total, added = 0.0, [torch.zeros_like(slope) for slope in slopes]
    for rows in ([0], [1, 2]):
        own_rows = {n: v[rows].detach() for n, v in vars(whole).items() if isinstance(v, torch.Tensor)}
        for leaf in ("logp_BT", "entropy_BT", "kl_BT"):
            own_rows[leaf].requires_grad_()
        part = replace(whole, **own_rows)
        part_loss, _ = PARTS[name](part)
        total += float(part_loss.detach())
        own = torch.autograd.grad(
            part_loss, [part.logp_BT, part.entropy_BT, part.kl_BT], allow_unused=True, materialize_grads=True
        )
        for sum_BT, slope in zip(added, own, strict=True):
            sum_BT[rows] += slope
    assert total == pytest.approx(float(loss.detach()), rel=1e-12)
    for sum_BT, slope in zip(added, slopes, strict=True):
        torch.testing.assert_close(sum_BT, slope, rtol=1e-12, atol=1e-15)
