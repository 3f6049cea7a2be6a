"""The categorical law: the sampler and the scorer are one distribution, and that distribution is the documented one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from relgrad.laws.categorical import Truncation, land_on_mass, log_probs, sample

LAWS = {
    "plain": Truncation(),
    "hot": Truncation(temperature=1.7),
    "cold": Truncation(temperature=0.3),
    "top_k": Truncation(top_k=3),
    "top_p": Truncation(top_p=0.8),
    "both": Truncation(temperature=0.8, top_k=4, top_p=0.7),
}
ONE_BELOW = 1 - 2**-24


def log_of(*probs: float) -> Tensor:
    return torch.tensor([probs]).log()


def by_definition(logits: list[float], law: Truncation) -> list[float]:
    """The law in plain floats: sort, cut to top_k, cut to the shortest prefix that reaches top_p, renormalise."""
    weights = [math.exp((z - max(logits)) / law.temperature) for z in logits]
    order = sorted(range(len(weights)), key=lambda v: (-weights[v], v))
    if law.top_k:
        order = order[: law.top_k]
    total = sum(weights[v] for v in order)
    kept, mass = [], 0.0
    for v in order:
        kept.append(v)
        mass += weights[v] / total
        if mass >= law.top_p:
            break
    total = sum(weights[v] for v in kept)
    return [weights[v] / total if v in kept else 0.0 for v in range(len(weights))]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_law_is_the_documented_one(law: Truncation):
    logits_NV = torch.randn(20, 7, generator=torch.Generator().manual_seed(1)) * 2
    expected_NV = torch.tensor([by_definition(row, law) for row in logits_NV.tolist()])
    torch.testing.assert_close(log_probs(logits_NV, law).exp(), expected_NV, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_sample_and_score_agree(law: Truncation):
    generator = torch.Generator().manual_seed(2)
    logits_NV = torch.randn(500, 11, generator=generator) * 3
    token_N, logp_N, support_NV = sample(logits_NV, law, generator)
    scored_N = log_probs(logits_NV, law, support_NV).gather(-1, token_N[:, None])[:, 0]
    assert token_N.dtype == torch.int64
    assert logp_N.dtype == torch.float32
    assert (support_NV is not None) == law.truncates
    torch.testing.assert_close(logp_N, scored_N, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_frequencies(law: Truncation):
    logits = [0.3, -1.0, 1.2, 0.0, 2.0, -3.0]
    expected = torch.tensor(by_definition(logits, law), dtype=torch.float64)
    draws = 20_000
    token_N, _, _ = sample(torch.tensor([logits]).expand(draws, -1), law, torch.Generator().manual_seed(3))
    observed = torch.bincount(token_N, minlength=len(logits)).double()
    live = expected > 0
    assert observed[~live].sum() == 0
    statistic = ((observed - draws * expected)[live] ** 2 / (draws * expected[live])).sum()
    assert chi2.sf(float(statistic), df=int(live.sum()) - 1) > 1e-4


def test_inverse_cdf_known_answers():
    # cumulative .2, .5, 1: the first entry whose cumulative mass exceeds u
    logits_NV = log_of(0.2, 0.3, 0.5).expand(6, 3)
    uniform_N = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, ONE_BELOW])
    token_N, logp_N, _ = sample(logits_NV, Truncation(), uniform_N=uniform_N)
    assert token_N.tolist() == [0, 0, 1, 1, 2, 2]
    expected_N = torch.tensor([0.2, 0.2, 0.3, 0.3, 0.5, 0.5]).log()
    torch.testing.assert_close(logp_N, expected_N)


@pytest.mark.parametrize("u", [0.0, 1e-45, 1e-8, 0.5, ONE_BELOW])
def test_an_entry_without_mass_is_never_drawn(u: float):
    logits_NV = torch.tensor([[-torch.inf, -1e30, 0.0, -torch.inf, 0.0, -300.0, -torch.inf]])
    token_N, logp_N, _ = sample(logits_NV, Truncation(), uniform_N=torch.tensor([u]))
    assert token_N.item() in (2, 4)
    assert logp_N.item() == pytest.approx(-math.log(2))


def test_a_draw_that_rounding_put_beside_the_mass_lands_on_it():
    mass_NV = torch.tensor([[0.0, 0.4, 1.0], [0.5, 0.0, 0.2], [0.3, 0.3, 0.0]])
    assert land_on_mass(torch.tensor([[1], [1], [2]]), mass_NV).tolist() == [[1], [0], [0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the parallel cumulative sum is CUDA's")
def test_no_draw_without_mass_on_a_gpu():
    logits_NV = torch.randn(512, 50_000, device="cuda")
    law = Truncation(top_k=1000)
    for seed in range(20):
        uniform_N = torch.rand(512, generator=torch.Generator().manual_seed(seed)).cuda()
        _, logp_N, _ = sample(logits_NV, law, uniform_N=uniform_N)
        assert bool(logp_N.isfinite().all())


@pytest.mark.parametrize("law", [Truncation(top_k=2), Truncation(top_p=0.6)], ids=["top_k", "top_p"])
def test_an_entry_outside_the_support_is_never_drawn(law: Truncation):
    logits_NV = log_of(0.1, 0.35, 0.1, 0.4, 0.05).expand(1001, 5)
    uniform_N = torch.linspace(0, ONE_BELOW, 1001)
    token_N, logp_N, support_NV = sample(logits_NV, law, uniform_N=uniform_N)
    assert support_NV is not None
    assert set(token_N.tolist()) == {1, 3}
    assert support_NV[0].tolist() == [False, True, False, True, False]
    assert logp_N.exp()[0].item() == pytest.approx(0.35 / 0.75)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (Truncation(top_k=1), [1, 0, 0, 0]),
        (Truncation(top_k=3), [1, 1, 1, 0]),
        (Truncation(top_k=9), [1, 1, 1, 1]),
        (Truncation(top_p=0.2), [1, 0, 0, 0]),
        (Truncation(top_p=0.5), [1, 1, 0, 0]),
        (Truncation(top_p=0.51), [1, 1, 1, 0]),
        (Truncation(top_p=1.0), [1, 1, 1, 1]),
        (Truncation(top_k=2, top_p=0.5), [1, 0, 0, 0]),
    ],
)
def test_ties_go_to_the_lower_index(law: Truncation, expected: list[int]):
    assert law.support(torch.zeros(1, 4)).long().tolist() == [expected]


def test_top_k_comes_before_top_p():
    # top_k=2 leaves .4/.7 and .3/.7; .4/.7 = .571 reaches .5 alone, while of all four .4 < .5 would need a second
    logits_NV = log_of(0.4, 0.3, 0.2, 0.1)
    assert Truncation(top_p=0.5).support(logits_NV).tolist() == [[True, True, False, False]]
    assert Truncation(top_k=2, top_p=0.5).support(logits_NV).tolist() == [[True, False, False, False]]


def test_the_recorded_support_stays_when_the_logits_move():
    law = Truncation(top_k=2)
    before_NV, after_NV = log_of(0.5, 0.3, 0.2), log_of(0.2, 0.3, 0.5)
    support_NV = law.support(before_NV)
    expected_NV = torch.tensor([[0.4, 0.6, 0.0]])
    torch.testing.assert_close(log_probs(after_NV, law, support_NV).exp(), expected_NV)


@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9),
    u=st.floats(0, ONE_BELOW, width=32),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_extreme_logits(logits: list[float], u: float, temperature: float, top_k: int, top_p: float):
    law = Truncation(temperature, top_k, top_p)
    token_N, logp_N, support_NV = sample(torch.tensor([logits]), law, uniform_N=torch.tensor([u]))
    scored_NV = log_probs(torch.tensor([logits]), law, support_NV)
    assert scored_NV.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert -105 < logp_N.item() <= 1e-6  # exp underflows near -104: below, an entry has no mass to be drawn by
    assert logp_N.item() == pytest.approx(scored_NV[0, token_N.item()].item(), abs=1e-4)


def test_bfloat16_logits_are_scored_in_float32():
    logits_NV = torch.randn(4, 50, generator=torch.Generator().manual_seed(4)).bfloat16()
    law = Truncation(temperature=0.7)
    token_N, logp_N, _ = sample(logits_NV, law, torch.Generator().manual_seed(5))
    expected_NV = torch.log_softmax(logits_NV.double() / 0.7, -1)
    assert logp_N.dtype == log_probs(logits_NV, law).dtype == torch.float32
    torch.testing.assert_close(logp_N.double(), expected_NV.gather(-1, token_N[:, None])[:, 0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_gradient_is_the_score_function(law: Truncation):
    # d log pi(v) / dz = (onehot(v) - pi) / tau on the support, 0 outside it
    logits_NV = torch.randn(3, 6, generator=torch.Generator().manual_seed(6), requires_grad=True)
    support_NV = law.support(logits_NV)
    token_N = support_NV.long().argmax(-1)
    chosen_N = log_probs(logits_NV, law, support_NV).gather(-1, token_N[:, None])[:, 0]
    (gradient_NV,) = torch.autograd.grad(chosen_N.sum(), logits_NV)
    pi_NV = torch.tensor([by_definition(row, law) for row in logits_NV.tolist()])
    expected_NV = (torch.nn.functional.one_hot(token_N, 6) - pi_NV) / law.temperature
    torch.testing.assert_close(gradient_NV, expected_NV, atol=1e-5, rtol=1e-5)


def test_sampling_uses_only_its_generator():
    logits_NV = torch.zeros(64, 5)
    state = torch.get_rng_state()
    first = sample(logits_NV, Truncation(), torch.Generator().manual_seed(7))[0]
    again = sample(logits_NV, Truncation(), torch.Generator().manual_seed(7))[0]
    other = sample(logits_NV, Truncation(), torch.Generator().manual_seed(8))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_illegal_options_are_named(options: dict[str, float]):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Truncation(**options)  # type: ignore[arg-type]
