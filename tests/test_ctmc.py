"""One Euler step: mass, samples, gradients, divergences, and every place where a naive formula has no number."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from relgrad.laws import ctmc
from relgrad.laws.ctmc import Kernel, Law, Source
from relgrad.laws.schedule import Scheduler

V = 6
MASK = V - 1
KERNELS: list[Kernel] = ["mixture", "rate", "cumulative"]
SCHEDULERS = [Scheduler(exponent=1), Scheduler(exponent=2), Scheduler(exponent=3), Scheduler("cosine")]
LAWS = [Law(k, s, MASK if s == "mask" else None) for k, s in itertools.product(KERNELS, ["uniform", "mask"])]
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.kernel}-{law.source}")
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(law: Law, rows: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """Random logits; with a mask source the mask cannot be drawn, with the other one token is excluded too."""
    logits_NV = torch.randn(rows, V, generator=seeded(seed)) * scale
    logits_NV[:, MASK if law.source == "mask" else 2] = -torch.inf
    return logits_NV


def tokens_of(law: Law, rows: int) -> Tensor:
    """Current tokens: with a mask source masked ones and others in turn, otherwise all that can be drawn."""
    if law.source == "mask":
        return torch.tensor([MASK, 1, MASK])[torch.arange(rows) % 3]
    return torch.tensor([0, 1, 3, 4, 5])[torch.arange(rows) % 5]


def hazards(kernel: Kernel, scheduler: Scheduler, steps: int) -> Tensor:
    """float64 [steps]: the hazards of all steps of a uniform grid."""
    t = torch.arange(steps, dtype=torch.float64) / steps
    return ctmc.hazard(kernel, scheduler, t, 1 / steps)


def naive(law: Law, logits_NV: Tensor, token_N: Tensor, hazard_N: Tensor) -> Tensor:
    """float64 [N, V]: probabilities by the table of the module, with no care for rounding."""
    p_NV, last_N1 = torch.softmax(logits_NV.double(), -1), hazard_N.isinf()[:, None]
    a_N = hazard_N.double()[:, None].masked_fill(last_N1, 1.0)
    own_NV = torch.nn.functional.one_hot(token_N, V).double()
    p_own = (p_NV * own_NV).sum(-1, keepdim=True)
    if law.kernel == "mixture":
        moving = (1 - torch.exp(-a_N)) * p_NV + torch.exp(-a_N) * own_NV
    else:
        jump = 1 - torch.exp(-a_N * (1 - p_own))
        moving = jump * p_NV * (1 - own_NV) / (1 - p_own) + (1 - jump) * own_NV
    moving = torch.where(last_N1, p_NV, moving)
    return torch.where(law.live(token_N)[:, None], moving, own_NV)


# ---------------------------------------------------------------------- the grid


@every_scheduler
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("steps", [1, 2, 10, 64])
def test_hazards_are_positive_and_end_in_infinity(kernel: Kernel, scheduler: Scheduler, steps: int) -> None:
    a = hazards(kernel, scheduler, steps)
    assert a[-1] == math.inf
    assert bool(a[:-1].isfinite().all())
    assert bool((a >= 0).all())
    rate_is_zero = kernel == "rate" and scheduler != Scheduler()
    assert steps == 1 or (float(a[0]) == 0) == rate_is_zero


def test_hazards_of_the_kernels_agree_to_first_order_in_the_step_only() -> None:
    scheduler, t = Scheduler(exponent=2), torch.tensor([0.5], dtype=torch.float64)
    gaps = []
    for h in (0.1, 0.05, 0.025):
        ours, rate = ctmc.hazard("mixture", scheduler, t, h), ctmc.hazard("rate", scheduler, t, h)
        gaps.append(float((ours - rate).abs()))
        assert float(rate) == pytest.approx(h * 1 / 0.75)
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.15)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.15)


def test_the_last_ordinary_jump_of_64_steps_tells_the_kernels_apart() -> None:
    """kappa = t^2, p_c = 1/2, the step before the last (likelihoods section 3: .19 where x_1 is drawn at the rate's hazard)."""
    t, scheduler, q = torch.tensor([62 / 64], dtype=torch.float64), Scheduler(exponent=2), 0.5
    found = {kernel: float(ctmc.hazard(kernel, scheduler, t, 1 / 64)) for kernel in KERNELS}
    assert -math.expm1(-found["rate"]) * q == pytest.approx(0.194, abs=1e-3)
    assert -math.expm1(-found["rate"] * q) == pytest.approx(0.218, abs=1e-3)
    assert -math.expm1(-found["mixture"]) * q == pytest.approx(0.248, abs=1e-3)
    assert -math.expm1(-found["cumulative"] * q) == pytest.approx(0.290, abs=1e-3)


def test_a_law_has_a_mask_only_with_the_mask_source() -> None:
    with pytest.raises(ValueError, match="has a mask"):
        Law("mixture", "uniform", 3)
    with pytest.raises(ValueError, match="has a mask"):
        Law("mixture", "mask")


# ---------------------------------------------------------------------- probabilities


@every_law
@every_scheduler
def test_every_row_has_mass_1_and_is_the_table(law: Law, scheduler: Scheduler) -> None:
    for steps in (1, 2, 10):
        for a in hazards(law.kernel, scheduler, steps):
            logits_NV, token_N = logits_of(law, 15), tokens_of(law, 15)
            hazard_N = a.expand(15).float()
            log_NV = ctmc.log_transition(law, logits_NV, token_N, hazard_N)
            assert torch.allclose(log_NV.double().exp().sum(-1), torch.ones(15, dtype=torch.float64), atol=1e-6)
            assert torch.allclose(log_NV.double().exp(), naive(law, logits_NV, token_N, hazard_N), atol=1e-6)
            for v in range(V):
                next_N = torch.full((15,), v)
                logp_N = ctmc.log_prob(law, logits_NV, token_N, next_N, hazard_N)
                torch.testing.assert_close(logp_N, log_NV[:, v], atol=2e-6, rtol=1e-5)


@every_law
def test_samples_follow_the_law(law: Law) -> None:
    draws, scheduler = 20_000, Scheduler(exponent=2)
    for number, a in enumerate(hazards(law.kernel, scheduler, 3)):
        for token in (MASK, 1) if law.source == "mask" else (0, 4):
            logits_1V = logits_of(law, 1, seed=number)
            token_N, hazard_N = torch.full((draws,), token), a.expand(draws).float()
            uniform_N2 = torch.rand(draws, 2, generator=seeded(100 * number + token))
            next_N = ctmc.sample(law, logits_1V.expand(draws, -1), token_N, hazard_N, uniform_N2)
            p_V = naive(law, logits_1V, token_N[:1], hazard_N[:1])[0]
            seen_V = next_N.bincount(minlength=V).double()
            assert not seen_V[p_V == 0].any()
            possible = p_V > 0
            if possible.sum() > 1:
                assert chisquare(seen_V[possible], p_V[possible] / p_V.sum() * draws).pvalue > 1e-4


def test_a_frequency_test_at_a_finite_step_tells_the_kernels_apart() -> None:
    """Samples of each kernel are judged by the probabilities of all three: only its own passes."""
    draws, scheduler, t, h = 40_000, Scheduler(exponent=2), torch.tensor([0.5], dtype=torch.float64), 0.25
    logits_1V = torch.tensor([[1.5, 0.0, -0.5, 0.3, -1.0, 0.7]])
    token_N = torch.zeros(draws, dtype=torch.int64)
    for number, sampler in enumerate(KERNELS):
        uniform_N2 = torch.rand(draws, 2, generator=seeded(number))
        hazard_N = ctmc.hazard(sampler, scheduler, t, h).expand(draws).float()
        next_N = ctmc.sample(Law(sampler), logits_1V.expand(draws, -1), token_N, hazard_N, uniform_N2)
        seen_V = next_N.bincount(minlength=V).double()
        for scorer in KERNELS:
            hazard_1 = ctmc.hazard(scorer, scheduler, t, h).float()
            p_V = ctmc.log_transition(Law(scorer), logits_1V, token_N[:1], hazard_1)[0].double().exp()
            p = chisquare(seen_V, p_V / p_V.sum() * draws).pvalue
            assert (p > 1e-4) == (sampler == scorer), f"drawn by {sampler}, judged by {scorer}: p = {p:.2g}"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_last_step_is_plain_categorical_sampling(kernel: Kernel, source: Source) -> None:
    law = Law(kernel, source, MASK if source == "mask" else None)
    logits_NV = logits_of(law, 10)
    token_N = torch.full((10,), MASK) if source == "mask" else tokens_of(law, 10)
    log_NV = ctmc.log_transition(law, logits_NV, token_N, torch.full((10,), math.inf))
    torch.testing.assert_close(log_NV, torch.log_softmax(logits_NV, -1))


def test_the_mixture_needs_no_rule_for_the_last_step() -> None:
    """A hazard of 60 instead of infinity: e^-60 is nothing, and the ordinary formulas give the same."""
    logits_NV, token_N = logits_of(LAWS[0], 10), tokens_of(LAWS[0], 10)
    almost, last = (ctmc.log_transition(LAWS[0], logits_NV, token_N, torch.full((10,), a)) for a in (60.0, math.inf))
    torch.testing.assert_close(almost, last)
    rate = Law("rate")
    other = ctmc.log_transition(rate, logits_NV, token_N, torch.full((10,), 60.0))
    assert not torch.allclose(other.exp(), last.exp(), atol=0.01), "the rate kernel never stays, so it needs the rule"


# ---------------------------------------------------------------------- the mask source


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_a_mask_only_newly_unmasked_tokens_carry_a_gradient(kernel: Kernel) -> None:
    law, a = Law(kernel, "mask", MASK), 0.7
    logits_NV = logits_of(law, 3).requires_grad_()
    token_N, next_N = torch.tensor([MASK, 1, MASK]), torch.tensor([MASK, 1, 3])
    logp_N = ctmc.log_prob(law, logits_NV, token_N, next_N, torch.full((3,), a))
    drawn = torch.log_softmax(logits_NV.detach()[2], -1)[3]
    torch.testing.assert_close(
        logp_N.detach(), torch.stack([torch.tensor(-a), torch.tensor(0.0), math.log(-math.expm1(-a)) + drawn])
    )
    logp_N.sum().backward()
    assert not logits_NV.grad[:2].any()
    assert float(logits_NV.grad[2].abs().sum()) > 0.1
    assert law.depends(token_N, next_N).tolist() == [False, False, True]
    free_N = ctmc.free_log_prob(law, token_N, next_N, torch.full((3,), a))
    torch.testing.assert_close(free_N[:2], logp_N.detach()[:2])


def test_what_is_unmasked_stays_and_a_mask_does_not_outlast_the_end() -> None:
    law = Law("mixture", "mask", MASK)
    logits_NV = logits_of(law, 2)
    stays = torch.tensor([math.inf, 0.3])
    assert ctmc.log_prob(law, logits_NV, torch.tensor([MASK, 1]), torch.tensor([MASK, 0]), stays).tolist() == [
        -math.inf, -math.inf,
    ]  # fmt: skip


def test_the_mask_source_tells_what_it_will_unmask_without_logits() -> None:
    law, rows = Law("rate", "mask", MASK), 3000
    token_N, uniform_N2 = tokens_of(law, rows), torch.rand(rows, 2, generator=seeded(1))
    hazard_N = torch.tensor([0.4, math.inf])[torch.arange(rows) % 2]
    next_N = ctmc.sample(law, logits_of(law, rows), token_N, hazard_N, uniform_N2)
    assert torch.equal(ctmc.unmasks(law, token_N, hazard_N, uniform_N2[:, 0]), next_N != token_N)


# ---------------------------------------------------------------------- entropy and divergence


@every_law
def test_entropy_and_kl_are_the_sums_over_all_tokens(law: Law) -> None:
    for a in (0.0, 0.3, math.inf):
        logits_NV, reference_NV, token_N = logits_of(law, 15), logits_of(law, 15, seed=1), tokens_of(law, 15)
        hazard_N = torch.full((15,), a)
        p_NV, q_NV = (naive(law, z, token_N, hazard_N) for z in (logits_NV, reference_NV))
        entropy_N = -torch.special.xlogy(p_NV, p_NV).sum(-1)
        kl_N = (torch.special.xlogy(p_NV, p_NV) - torch.special.xlogy(p_NV, q_NV)).sum(-1)
        assert torch.allclose(ctmc.entropy(law, logits_NV, token_N, hazard_N).double(), entropy_N, atol=1e-5)
        assert torch.allclose(ctmc.kl(law, logits_NV, reference_NV, token_N, hazard_N).double(), kl_N, atol=1e-5)
        assert not ctmc.kl(law, logits_NV, logits_NV, token_N, hazard_N).any()


# ---------------------------------------------------------------------- gradients


@every_law
@pytest.mark.parametrize("a", [0.05, 0.6, math.inf])
def test_gradients_are_those_of_the_table(law: Law, a: float) -> None:
    logits_NV, reference_NV, token_N = logits_of(law, 15), logits_of(law, 15, seed=1), tokens_of(law, 15)
    hazard_N, live_N = torch.full((15,), a), law.live(token_N)
    next_N = torch.where(live_N, logits_NV.argmax(-1), token_N)
    q_NV = naive(law, reference_NV, token_N, hazard_N).clamp(min=1e-300)

    def slope(value) -> Tensor:
        leaf = logits_NV.double().requires_grad_()
        return torch.autograd.grad(value(leaf).sum(), leaf)[0]

    def table(z_NV: Tensor) -> Tensor:
        return naive(law, z_NV, token_N, hazard_N)

    def weighted(z_NV: Tensor, log_q_NV: Tensor | float) -> Tensor:
        p_NV = table(z_NV)
        return torch.where(p_NV > 0, p_NV * (p_NV.clamp(min=1e-300).log() - log_q_NV), 0.0)

    ours = slope(lambda z: ctmc.log_prob(law, z, token_N, next_N, hazard_N))
    wanted = slope(lambda z: table(z)[live_N].gather(-1, next_N[live_N, None]).log())
    torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=1e-4)
    ours = slope(lambda z: ctmc.kl(law, z, reference_NV, token_N, hazard_N))
    torch.testing.assert_close(ours, slope(lambda z: weighted(z, q_NV.log())), atol=5e-6, rtol=1e-4)
    ours = slope(lambda z: ctmc.entropy(law, z, token_N, hazard_N))
    torch.testing.assert_close(ours, slope(lambda z: -weighted(z, 0.0)), atol=5e-6, rtol=1e-4)


def extremes(law: Law, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, current, next): p_c near 1 and near 0, staying and jumping, in every combination."""
    rows = []
    for gap, (token, after) in itertools.product(
        [0.0, 5.0, 17.0, 40.0, 110.0, 1e4], [(0, 0), (0, 1), (1, 1), (1, 0), (1, 3), (MASK, MASK), (MASK, 0), (MASK, 3)]
    ):
        if law.source == "mask" and token != MASK and token != after:
            continue  # cannot happen
        logits_V = torch.tensor([gap, 0.1, 0.2, -0.3, 0.4, 0.0])
        if law.source == "mask":
            logits_V[MASK] = -torch.inf
        rows.append((logits_V, token, after))
    logits_NV = torch.stack([r[0] for r in rows]).to(dtype)
    return logits_NV, torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows])


@every_law
@every_scheduler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_finite_at_every_step(law: Law, scheduler: Scheduler, dtype: torch.dtype) -> None:
    """All steps of several grids, t = 0 and the last one included, with p_c -> 1 and p_c -> 0."""
    logits_NV, token_N, next_N = extremes(law, dtype)
    reference_NV = torch.where(
        logits_NV.isfinite(), torch.randn(logits_NV.shape, generator=seeded(1)).to(dtype), -torch.inf
    )
    for steps in (1, 4, 64):
        for a in hazards(law.kernel, scheduler, steps):
            hazard_N = a.expand(len(token_N)).float()
            leaf = logits_NV.clone().requires_grad_()
            logp_N = ctmc.log_prob(law, leaf, token_N, next_N, hazard_N)
            happens_N = (hazard_N > 0) | (token_N == next_N)
            happens_N &= hazard_N.isfinite() | (next_N != MASK) | (law.source == "uniform")
            assert bool(logp_N[happens_N].isfinite().all())
            assert bool((logp_N[happens_N] <= 1e-6).all())
            assert bool((logp_N[~happens_N] == -torch.inf).all())
            terms_N = ctmc.entropy(law, leaf, token_N, hazard_N) + ctmc.kl(law, leaf, reference_NV, token_N, hazard_N)
            assert bool(terms_N.isfinite().all())
            for value in (logp_N[happens_N].sum(), terms_N.sum(), logp_N.sum()):
                (grad_NV,) = torch.autograd.grad(value, leaf, retain_graph=True)
                assert bool(grad_NV.isfinite().all())


def test_the_naive_formula_has_no_gradient_at_t_0_and_ours_has() -> None:
    """kappa = t^2: the rate is 0, and the branch that is not taken, log1p(-1), sends back 0 x inf.

    This is what destroyed the runs of Flow-GRPO on FS-DFM: its guard, clamp(max=1 - 1e-8), is clamp(max=1) in float32.
    """
    assert float(torch.tensor(1 - 1e-8, dtype=torch.float32)) == 1.0
    token_N = next_N = torch.tensor([0, 1, 4])
    hazard_N = hazards("rate", Scheduler(exponent=2), 10)[:1].expand(3).float()
    assert not hazard_N.any()

    def published(logits_NV: Tensor) -> Tensor:
        p_NV = torch.softmax(logits_NV, -1)
        p_own_N = p_NV.gather(-1, token_N[:, None])[:, 0]
        exponent_N = hazard_N * (1 - p_own_N)
        jump_N = (
            torch.log1p(-torch.exp(-exponent_N)) + p_NV.gather(-1, next_N[:, None])[:, 0].log() - torch.log1p(-p_own_N)
        )
        return torch.where(token_N == next_N, -exponent_N, jump_N)

    slopes = []
    for law in (published, lambda z: ctmc.log_prob(Law("rate"), z, token_N, next_N, hazard_N)):
        leaf = logits_of(Law(), 3, scale=1.0).masked_fill(torch.arange(V) == 2, 0.0).requires_grad_()
        value_N = law(leaf)
        assert value_N.tolist() == [0.0, 0.0, 0.0], "the forward gives no warning"
        slopes.append(torch.autograd.grad(value_N.sum(), leaf)[0])
    assert bool(slopes[0].isnan().all())
    assert not slopes[1].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_nearly_certain_tokens_keep_their_digits(kernel: Kernel) -> None:
    """p_c = 1 - 1e-13 in float32: the chance to leave is right to five digits, where 1 - p_c would be 0."""
    gap, a = 30.0, 0.5
    logits_1V = torch.tensor([[gap, 0.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf]])
    q = math.exp(-gap) / (1 + math.exp(-gap))
    exact = math.log(-math.expm1(-a)) + math.log(q) if kernel == "mixture" else math.log(-math.expm1(-a * q))
    found = ctmc.log_prob(Law(kernel), logits_1V, torch.tensor([0]), torch.tensor([1]), torch.tensor([a]))
    assert float(found) == pytest.approx(exact, abs=1e-5)
