"""The laws of one step of masked diffusion: mass, frequencies, gradients and known answers, by enumeration of small steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from enumerated import seeded
from relgrad.laws.categorical import Truncation
from relgrad.laws.unmasking import tokens
from relgrad.laws.unmasking.ancestral import Ancestral
from relgrad.laws.unmasking.confidence import IMPOSSIBLE
from relgrad.laws.unmasking.fixed_order import FixedOrder
from relgrad.laws.unmasking.interface import MASKED, Law, Outcome, Places
from relgrad.laws.unmasking.low_confidence import LowConfidence
from relgrad.laws.unmasking.plackett_luce import PlackettLuce
from relgrad.laws.unmasking.remask import Remask
from relgrad.laws.unmasking.remask_doubtful import RemaskDoubtful
from relgrad.laws.unmasking.threshold import threshold_law

PLAIN, COOL, CUT = Truncation(), Truncation(0.7), Truncation(0.9, top_p=0.8)
LAWS: dict[str, Law] = {
    "random": FixedOrder(PLAIN, "random"),
    "left-to-right": FixedOrder(COOL, "left_to_right"),
    "plackett-luce": PlackettLuce(PLAIN, "confidence", 0.5),
    "plackett-luce-margin-tempered": PlackettLuce(COOL, "margin", 0.3, tempered=True),
    "plackett-luce-entropy": PlackettLuce(CUT, "entropy", 0.8),
    "low-confidence": LowConfidence(PLAIN),
    "low-confidence-cool": LowConfidence(COOL),
    "low-confidence-tempered": LowConfidence(COOL, tempered=True),
    "low-confidence-top-p": LowConfidence(CUT, tempered=True),
    "threshold": threshold_law(PLAIN, 0.5, tempered=False),
    "threshold-tempered-top-p": threshold_law(CUT, 0.6, tempered=True),
    "ancestral": Ancestral(COOL),
    "remask": Remask(PLAIN),
    "remask-doubtful": RemaskDoubtful(PLAIN),
    "remask-doubtful-tempered-top-p": RemaskDoubtful(CUT, tempered=True),
}
every_law = pytest.mark.parametrize("law", [pytest.param(law, id=name) for name, law in LAWS.items()])
POSITIONS, TOKENS, QUOTA, LEFT = 4, 3, 2, 3


def logits(spread: float = 1.5) -> Tensor:
    return spread * torch.randn(POSITIONS, TOKENS, generator=seeded(1), dtype=torch.float64)


def places_of(law: Law, steps: int, quota: int = QUOTA) -> Places:
    """`steps` steps of the same four positions; of a law that rewrites, the second and the last are written already."""
    token_P = torch.tensor([MASKED, 1, MASKED, 0]) if law.rewrites else torch.full((POSITIONS,), MASKED)
    return Places(
        torch.arange(steps).repeat_interleave(POSITIONS),
        token_P.repeat(steps),
        torch.full((steps,), quota),
        torch.full((steps,), LEFT),
        torch.full((steps,), POSITIONS),
    )


def possible(law: Law) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every outcome (tokens, order) that could be of four positions, possible or not under the law."""
    outcomes = []
    before = places_of(law, 1).token_M.tolist()
    for after in itertools.product([MASKED, *range(TOKENS)], repeat=POSITIONS):
        if any(b != MASKED and a not in (MASKED, b) for a, b in zip(after, before, strict=True)):
            continue
        shown = [i for i, token in enumerate(after) if token != MASKED]
        if law.rewrites and len(shown) != POSITIONS - QUOTA:
            continue
        if not law.rewrites and not isinstance(law, Ancestral):
            few = len(shown) < QUOTA if law.adaptive else len(shown) != QUOTA
            if few or (isinstance(law, FixedOrder) and law.order == "left_to_right" and shown != [0, 1]):
                continue
        for turns in itertools.permutations(range(len(shown))) if law.ordered else [(0,) * len(shown)]:
            order = [0] * POSITIONS
            for i, turn in zip(shown, turns, strict=True):
                order[i] = turn
            outcomes.append((after, tuple(order)))
    return outcomes


def scored(law: Law, logits_PV: Tensor, outcomes: list, reference_PV: Tensor | None = None) -> list[Tensor]:
    """Log-probabilities (with what is free), entropy and KL where there is a reference, of outcomes of the same step."""
    places = places_of(law, len(outcomes))
    outcome = Outcome(
        torch.tensor([o[0] for o in outcomes]).flatten(), torch.tensor([o[1] for o in outcomes]).flatten()
    )
    needs_M = law.needs(places, outcome)
    rows = [p.repeat(len(outcomes), 1)[needs_M] for p in (logits_PV, *([] if reference_PV is None else [reference_PV]))]
    support = law.truncation.support(logits_PV.detach()).repeat(len(outcomes), 1)[needs_M]
    only = places.only(needs_M), outcome.only(needs_M), support if law.truncation.truncates else None
    values = law.terms(rows[0], *only, *rows[1:], entropy=reference_PV is not None)
    values[0] = values[0] + law.free(places, outcome)
    if len(values) > 1:
        values[1] = values[1] + law.free_entropy(places)
    return values


def drawn(law: Law, logits_PV: Tensor, steps: int, seed: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    places = places_of(law, steps)
    uniform_M2 = torch.rand(steps * POSITIONS, 2, generator=seeded(seed))
    asks_M, token_M = law.asks(places, uniform_M2[:, 0])
    outcome = law.draw(logits_PV.repeat(steps, 1)[asks_M], places.only(asks_M), uniform_M2[asks_M])
    token_M = token_M.index_put((asks_M,), outcome.token_M)
    order_M = torch.zeros_like(token_M).index_put((asks_M,), outcome.order_M)
    assert torch.equal(law.needs(places, Outcome(token_M, order_M)), asks_M)
    rows = zip(token_M.view(steps, -1).tolist(), order_M.view(steps, -1).tolist(), strict=True)
    return [(tuple(token), tuple(order)) for token, order in rows]


@every_law
def test_all_outcomes_have_mass_one(law: Law) -> None:
    mass = float(scored(law, logits(), possible(law))[0].exp().sum())
    assert mass == pytest.approx(1, abs=1e-9)


@every_law
def test_entropy_and_divergence_are_those_of_the_outcomes(law: Law) -> None:
    """In expectation; the reference has the same support."""
    outcomes = possible(law)
    reference_PV = logits() + 0.5 * torch.randn(POSITIONS, TOKENS, generator=seeded(2), dtype=torch.float64)
    logp_N, entropy_N, kl_N = scored(law, logits(), outcomes, reference_PV)
    start_N = in_place_of(law, logits(), reference_PV, outcomes)
    p_N = logp_N.exp()
    known_N = p_N > 1e-12
    assert float((p_N * entropy_N)[known_N].sum()) == pytest.approx(float(-(p_N * logp_N)[known_N].sum()), abs=1e-8)
    assert float((p_N * kl_N)[known_N].sum()) == pytest.approx(
        float((p_N * (logp_N - start_N))[known_N].sum()), abs=1e-8
    )


def in_place_of(law: Law, logits_PV: Tensor, reference_PV: Tensor, outcomes: list) -> Tensor:
    """Log-probabilities under the reference's logits, on the support of the others."""
    places = places_of(law, len(outcomes))
    outcome = Outcome(
        torch.tensor([o[0] for o in outcomes]).flatten(), torch.tensor([o[1] for o in outcomes]).flatten()
    )
    needs_M = law.needs(places, outcome)
    support = law.truncation.support(logits_PV).repeat(len(outcomes), 1)[needs_M] if law.truncation.truncates else None
    rows = reference_PV.repeat(len(outcomes), 1)[needs_M]
    return law.terms(rows, places.only(needs_M), outcome.only(needs_M), support)[0] + law.free(places, outcome)


@every_law
def test_outcomes_are_drawn_as_often_as_they_are_likely(law: Law) -> None:
    outcomes = possible(law)
    p_N = scored(law, logits(), outcomes)[0].exp()
    number = {outcome: i for i, outcome in enumerate(outcomes)}
    samples = drawn(law, logits(), 8_000, seed=3)
    assert set(samples) <= number.keys()
    count_N = torch.tensor([number[o] for o in samples]).bincount(minlength=len(outcomes)).double()
    expected_N = p_N * len(samples)
    common_N = expected_N >= 5
    rest, rest_expected = count_N[~common_N].sum(), expected_N[~common_N].sum()
    statistic = float(((count_N - expected_N).square() / expected_N)[common_N].sum())
    statistic += float((rest - rest_expected) ** 2 / rest_expected) if rest_expected >= 5 else 0.0
    assert chi2.sf(statistic, int(common_N.sum()) - 1 + (rest_expected >= 5)) > 1e-4


def test_doubtful_drafts_are_masked_again_and_what_stood_there_by_chance() -> None:
    """Two of four are masked again, two were written: one of these whichever, and the less certain of two certain drafts."""
    sure_PV = torch.tensor([[3.0, 0.0, 0.0], [0.0] * 3, [60.0, 0.0, 0.0], [0.0] * 3], dtype=torch.float64)
    law = RemaskDoubtful(PLAIN)
    samples = drawn(law, sure_PV, 4_000, seed=8)
    assert {after[2] for after, _ in samples} == {0}, "certain of its only token: never forgotten"
    assert {after[0] for after, _ in samples} == {MASKED}
    chosen = sum(after[1] == MASKED for after, _ in samples)
    assert abs(chosen - 2_000) < 4 * 1_000**0.5
    assert {(after[1], after[3]) for after, _ in samples} == {(MASKED, 0), (1, MASKED)}
    whole = places_of(law, 1)
    impossible = Outcome(torch.tensor([0, MASKED, 0, MASKED]), torch.zeros(4, dtype=torch.int64))
    assert float(law.free(whole, impossible)) <= IMPOSSIBLE, "two of those written, and no draft"


@pytest.mark.parametrize("tempered", [False, True])
def test_the_score_of_the_tokens_alone_is_no_probability(tempered: bool) -> None:
    """What the field takes for low-confidence remasking: a sum of 5.2 to 5.4 in likelihoods, section 4, on such a toy."""
    law = LowConfidence(COOL, tempered=tempered)
    outcomes = possible(law)
    logp_PV = torch.log_softmax(logits() / 0.7, -1)
    tokens_only = sum(
        math.exp(sum(float(logp_PV[i, t]) for i, t in enumerate(after) if t != MASKED)) for after, _ in outcomes
    )
    assert tokens_only == pytest.approx(math.comb(POSITIONS, QUOTA))  # every set of positions alone has mass 1
    assert float(scored(law, logits(), outcomes)[0].exp().sum()) == pytest.approx(1, abs=1e-9)


def test_equal_confidences_are_taken_from_the_left() -> None:
    """Where float32 rounds all confidences to 1, which is what trained networks do, position decides, and it is certain."""
    sure_PV = torch.tensor([[40.0, 0.0, 0.0], [55.0, 0.0, 0.0], [70.0, 0.0, 0.0], [41.0, 0.0, 0.0]])
    for law in (LowConfidence(PLAIN), LowConfidence(COOL, tempered=True)):
        assert set(drawn(law, sure_PV, 50, seed=4)) == {((0, 0, MASKED, MASKED), (0, 0, 0, 0))}
        outcomes = [((0, 0, MASKED, MASKED), (0,) * 4), ((MASKED, 0, 0, MASKED), (0,) * 4)]
        first, other = scored(law, sure_PV, outcomes)[0].tolist()
        assert first == pytest.approx(0, abs=1e-6)
        assert other < -30


def test_the_gradient_is_that_of_the_formula_and_what_cannot_be_is_a_number() -> None:
    """Of an impossible outcome the gradient is finite too: its ratio is 0, and not NaN."""
    law = threshold_law(PLAIN, 0.5, tempered=False)
    sure_PV = logits(6.0).requires_grad_()
    impossible = [((0, 1, 2, MASKED), (0,) * 4)]  # three positions, of which not all can be above the threshold
    logp_N = scored(law, sure_PV, impossible)[0]
    logp_N.sum().backward()
    assert float(logp_N.detach()) <= IMPOSSIBLE
    assert sure_PV.grad is not None
    assert bool(sure_PV.grad.isfinite().all())


@pytest.mark.parametrize("name", ["random", "plackett-luce", "plackett-luce-margin-tempered", "ancestral", "remask"])
def test_smooth_laws_have_the_gradient_of_finite_differences(name: str) -> None:
    law, at_PV = LAWS[name], logits().requires_grad_()
    outcomes = possible(law)
    worth_N = torch.randn(len(outcomes), generator=seeded(5), dtype=torch.float64)

    def value(logits_PV: Tensor) -> Tensor:
        return (scored(law, logits_PV, outcomes)[0].exp() * worth_N).sum()

    assert torch.autograd.gradcheck(value, (at_PV,), atol=1e-6)


def test_estimates_from_the_outcome_have_the_right_gradient() -> None:
    """Entropy and KL of low-confidence remasking: the mean of the estimates' gradients is the gradient of entropy and KL."""
    law, at_PV, start_PV = LowConfidence(COOL), logits().requires_grad_(), logits() + 0.3
    start_PV = start_PV + 0.4 * torch.randn(POSITIONS, TOKENS, generator=seeded(6), dtype=torch.float64)
    outcomes = possible(law)
    logp_N, entropy_N, kl_N = scored(law, at_PV, outcomes, start_PV)
    start_N = in_place_of(law, at_PV.detach(), start_PV, outcomes)
    p_N = logp_N.exp()
    for estimate_N, exact in ((entropy_N, -(p_N * logp_N).sum()), (kl_N, (p_N * (logp_N - start_N)).sum())):
        estimated = torch.autograd.grad((p_N.detach() * estimate_N).sum(), at_PV, retain_graph=True)[0]
        torch.testing.assert_close(estimated, torch.autograd.grad(exact, at_PV, retain_graph=True)[0])


def test_steps_of_different_sizes_do_not_mix() -> None:
    """Steps with other positions beside a step leave its terms as they are."""
    law, together = PlackettLuce(PLAIN), torch.randn(7, TOKENS, generator=seeded(7), dtype=torch.float64)
    token_M = torch.tensor([0, MASKED, 2, MASKED, MASKED, 1, MASKED])
    order_M = torch.tensor([1, 0, 0, 0, 0, 0, 0])
    places = Places(
        torch.tensor([0, 0, 0, 2, 2, 2, 2]),
        torch.full((7,), MASKED),
        torch.tensor([2, 1, 1]),
        torch.ones(3).long(),
        torch.tensor([3, 0, 4]),
    )
    values = law.terms(together, places, Outcome(token_M, order_M), None, together.flip(0), entropy=True)
    for step, at in ((0, slice(0, 3)), (2, slice(3, 7))):
        alone = Places(
            torch.zeros(at.stop - at.start).long(),
            token_M[at],
            places.quota_N[[step]],
            torch.ones(1).long(),
            places.whole_N[[step]],
        )
        single = law.terms(
            together[at], alone, Outcome(token_M[at], order_M[at]), None, together.flip(0)[at], entropy=True
        )
        torch.testing.assert_close([v[step] for v in values], [v[0] for v in single])
    assert [float(v[1]) for v in values] == [0, 0, 0]  # a step without positions


def test_tokens_are_those_of_the_recorded_support() -> None:
    logits_PV = logits()
    support_PV = torch.tensor([[True, False, True]] * POSITIONS)
    logp_P, entropy_P = tokens.terms(logits_PV, (CUT, CUT), torch.tensor([0, 2, 0, 2]), support_PV, None, True)
    two_P2 = torch.log_softmax(logits_PV[:, [0, 2]] / 0.9, -1)
    torch.testing.assert_close(logp_P, two_P2[torch.arange(4), torch.tensor([0, 1, 0, 1])])
    torch.testing.assert_close(entropy_P, -(two_P2.exp() * two_P2).sum(-1))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_thresholds_outside_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 0\.999\]"):
        threshold_law(PLAIN, value, tempered=False)
