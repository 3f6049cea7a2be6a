"""Losses of discrete flow matching against enumeration: paths, minimisers, gradients, and teachers of few-step students.

`Table` is a network over a few tokens whose answer to every (step, time, state) is a free parameter, so that optima and
expectations can be written down exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.laws import ctmc
from relgrad.laws.schedule import Scheduler
from relgrad.networks.fsdfm.network import DiT, DiTConfig
from relgrad.networks.weights.average import Ema
from relgrad.policies.flow.supervised.cross_entropy import cross_entropy
from relgrad.policies.flow.supervised.few_step import FewStep, divergence, draw_steps, few_step_loss
from relgrad.policies.flow.supervised.flow_matching import DATA_LOSSES, DataLoss, flow_matching_loss
from relgrad.policies.flow.supervised.generalised_kl import generalised_kl, weight
from relgrad.policies.flow.supervised.half_steps import half_steps
from relgrad.policies.flow.supervised.noise_path import At, Noised, Path, Uniforms
from relgrad.policies.flow.supervised.rk4 import rk4
from relgrad.text import answer

TOKENS, LENGTH = 3, 2
MASK = TOKENS
LINEAR = Scheduler()
SCHEDULERS = [LINEAR, Scheduler("polynomial", 2.0), Scheduler("cosine")]
UNIFORM, MASKED = torch.arange(TOKENS), torch.tensor([MASK])
SOURCES = pytest.mark.parametrize("source_K", [UNIFORM, MASKED], ids=["uniform", "mask"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(count: int, seed: int = 0) -> Draws:
    return Draws.of(seeded(seed), count)


def uniforms(count: int, seed: int = 0) -> Uniforms:
    """Fresh numbers for so many positions."""
    source = seeded(seed)
    return lambda: torch.rand(count, 2, generator=source)


def states(tokens: int, length: int) -> Tensor:
    """[tokens^length, length]: every row there is; a row's place is its number in base `tokens`."""
    return torch.tensor(list(itertools.product(range(tokens), repeat=length)))


def place(x_BL: Tensor, tokens: int) -> Tensor:
    """Which of `states` each row is."""
    return (x_BL * tokens ** torch.arange(x_BL.shape[1] - 1, -1, -1)).sum(-1)


def path_mass(text_XL: Tensor, state_SL: Tensor, kappa: float, source_K: Tensor) -> Tensor:
    """float64 [X, S]: p_t(state | text), position by position."""
    there = (text_XL[:, None] == state_SL[None]).double()
    source = torch.isin(state_SL, source_K).double() / len(source_K)
    return (kappa * there + (1 - kappa) * source[None]).prod(-1)


def posterior(text_XL: Tensor, share_X: Tensor, state_SL: Tensor, kappa: float, source_K: Tensor, ids: int) -> Tensor:
    """float64 [S, L, ids]: p(x_1^i = v | x_t), flat for states that cannot be."""
    joint_XS = share_X[:, None] * path_mass(text_XL, state_SL, kappa, source_K)
    joint_SLV = torch.einsum("xs,xlv->slv", joint_XS, torch.nn.functional.one_hot(text_XL, ids).double())
    total_S11 = joint_XS.sum(0)[:, None, None]
    return torch.where(total_S11 > 0, joint_SLV / total_S11, torch.full_like(joint_SLV, 1 / ids))


class Table:
    """A network of free logits [states, L, ids] (one table per (step, time) where `at_time` says which)."""

    def __init__(self, ids: int, at_time: Callable[[float, float | None], Tensor]) -> None:
        self.ids, self.at_time = ids, at_time
        self.asked: list[tuple[float, float | None]] = []

    def __call__(self, x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        steps: Sequence[float | None] = [None] * len(x_BL) if step_B is None else step_B.tolist()
        asked = list(zip(time_B.tolist(), steps, strict=True))
        self.asked += asked
        kinds = sorted(set(asked), key=str)
        tables = torch.stack([self.at_time(*kind) for kind in kinds])
        return tables[torch.tensor([kinds.index(kind) for kind in asked]), place(x_BL, self.ids)][at]


# ---------------------------------------------------------------------- the path


@SOURCES
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
def test_noise_leaves_the_prompt_clean_and_reaches_the_text_at_rate_kappa(
    source_K: Tensor, scheduler: Scheduler
) -> None:
    rows, t = 4000, 0.6
    ids_BL = torch.tensor([[2, 2, 0, 1, 2, 1]]).expand(rows, 6)
    editable_BL = (torch.tensor([0, 0, 1, 1, 1, 0]) == 1).expand(rows, 6)
    state = torch.random.get_rng_state()
    noised = Path(scheduler, source_K).noise(ids_BL, editable_BL, torch.full((rows,), t).double(), draws(rows))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(noised.x_BL[~editable_BL], ids_BL[~editable_BL])
    assert torch.equal(noised.x_BL[noised.at], noised.current_N)
    assert torch.equal(noised.label_N.view(rows, 3), ids_BL[:, 2:5])
    kappa = float(scheduler.kappa(torch.tensor(t).double()))
    for column, label in ((2, 0), (3, 1), (4, 2)):
        shares = torch.bincount(noised.x_BL[:, column], minlength=TOKENS + 1) / rows
        expected = torch.zeros(TOKENS + 1).index_fill(0, source_K, (1 - kappa) / len(source_K))
        expected[label] += kappa
        assert float((shares - expected).abs().max()) < 4 * math.sqrt(0.25 / rows)

    for time, wanted in ((1.0, ids_BL[:, 2:5]), (0.0, None)):
        end = Path(scheduler, source_K).noise(ids_BL, editable_BL, torch.full((rows,), time).double(), draws(rows))
        if wanted is not None:
            assert torch.equal(end.x_BL[:, 2:5], wanted)
        else:
            assert set(end.current_N.tolist()) == set(source_K.tolist())


def test_a_row_without_an_editable_position_is_refused() -> None:
    editable_BL = torch.tensor([[False, True], [False, False]])
    with pytest.raises(RelgradError, match="no editable position in row 1 of 2"):
        Path(LINEAR, UNIFORM).noise(torch.zeros(2, 2).long(), editable_BL, torch.zeros(2).double(), draws(2))
    with pytest.raises(RelgradError, match="give the ids of the source"):
        Path(LINEAR, torch.tensor([]))


def test_rows_can_be_chosen_and_moved() -> None:
    ids_BL = torch.arange(12).view(3, 4) % TOKENS
    editable_BL = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]) == 1
    noised = Path(LINEAR, UNIFORM).noise(ids_BL, editable_BL, torch.tensor([0.25, 0.5, 0.75]).double(), draws(3))
    part = noised.rows(torch.tensor([True, False, True]))
    assert torch.equal(part.x_BL, noised.x_BL[[0, 2]])
    assert part.time_B.tolist() == [0.25, 0.75]
    assert torch.equal(part.x_BL[part.at], part.current_N)
    assert torch.equal(part.label_N, torch.cat([ids_BL[0, 1:3], ids_BL[2]]))
    moved = part.moved((part.current_N + 1) % TOKENS)
    assert torch.equal(moved.x_BL[moved.at], (part.current_N + 1) % TOKENS)
    assert torch.equal(moved.x_BL[0, [0, 3]], part.x_BL[0, [0, 3]])


def test_times_are_uniform_and_evenly_spread() -> None:
    times = torch.stack([draws(8, seed).spread() for seed in range(500)])
    assert float(times.min()) >= 0
    assert float(times.max()) < 1
    assert bool((torch.sort((times * 8).floor(), -1).values == torch.arange(8)).all())  # one in every eighth
    assert abs(float(times[:, 0].mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 500)
    whole, parts = draws(8, 3), [draws(8, 3).part(first, 4) for first in (0, 4)]
    assert torch.equal(whole.spread(), torch.cat([part.spread() for part in parts]))


# ---------------------------------------------------------------------- the two losses of a position


@pytest.mark.parametrize(
    ("current", "label", "kl", "ce"),
    [
        (0, 1, -2 * (0.5 + math.log(0.3)), -math.log(0.3)),
        (1, 0, -2 * (0.3 + math.log(0.5)), -math.log(0.5)),
        (0, 0, -2 * (0.5 - 1), -math.log(0.5)),
        (2, 2, -2 * (0.2 - 1), -math.log(0.2)),
    ],
)
def test_known_values(current: int, label: int, kl: float, ce: float) -> None:
    """p = (.5, .3, .2), kappa = t = 1/2: the weight is 2."""
    at = (torch.tensor([0]), torch.tensor([0]))
    noised = Noised(
        torch.tensor([[current]]), torch.tensor([0.5]).double(), at, torch.tensor([current]), torch.tensor([label])
    )
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log() + 7
    assert float(generalised_kl(logits, noised, Path(LINEAR, UNIFORM))) == pytest.approx(kl, rel=1e-5)
    assert float(cross_entropy(logits, noised, Path(LINEAR, UNIFORM))) == pytest.approx(ce, rel=1e-5)


def test_the_mask_source_counts_masked_positions_only() -> None:
    at = (torch.tensor([0, 0]), torch.tensor([0, 1]))
    noised = Noised(
        torch.tensor([[MASK, 1]]), torch.tensor([0.5]).double(), at, torch.tensor([MASK, 1]), torch.tensor([0, 1])
    )
    logits = torch.cat([torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]).log(), torch.full((2, 1), -torch.inf)], 1)
    for loss, expected in ((cross_entropy, math.log(2)), (generalised_kl, 2 * math.log(2))):
        assert loss(logits, noised, Path(LINEAR, MASKED)).tolist() == [pytest.approx(expected, rel=1e-5), 0.0]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
def test_the_weight_is_kappas_rate_up_to_its_bound(scheduler: Scheduler) -> None:
    t = torch.tensor([0.0, 0.3, 0.9, 1 - 1e-12, 1.0]).double()
    inside = scheduler.slope(t[:3]) / (1 - scheduler.kappa(t[:3]))
    torch.testing.assert_close(weight(scheduler, t, 50.0), torch.cat([inside, torch.full((2,), 50.0).double()]))


def expected_loss(
    kind: DataLoss, table_SLV: Tensor, text_XL: Tensor, share_X: Tensor, t: float, path: Path, ids: int
) -> Tensor:
    """Sum over texts and states of q(text) p_t(state | text) times the loss of all positions, as the code computes it."""
    state_SL = states(ids, LENGTH)
    kappa = float(path.scheduler.kappa(torch.tensor(t).double()))
    mass_XS = share_X[:, None] * path_mass(text_XL, state_SL, kappa, path.source_K)
    x, s = (mass_XS > 0).nonzero(as_tuple=True)
    at = torch.ones(len(x), LENGTH).nonzero(as_tuple=True)
    noised = Noised(state_SL[s], torch.full((len(x),), t).double(), at, state_SL[s].flatten(), text_XL[x].flatten())
    loss_N = DATA_LOSSES[kind](table_SLV[s].flatten(0, 1), noised, path)
    return (loss_N.double().view(-1, LENGTH).sum(-1) * mass_XS[x, s]).sum()


@SOURCES
@pytest.mark.parametrize("kind", list(DATA_LOSSES))
@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
def test_the_minimiser_is_the_posterior(source_K: Tensor, kind: DataLoss, t: float) -> None:
    text_XL, ids = states(TOKENS, LENGTH), TOKENS + (len(source_K) == 1)
    path = Path(SCHEDULERS[1], source_K)
    share_X = torch.rand(len(text_XL), generator=seeded(4)).double()
    share_X /= share_X.sum()
    kappa = float(path.scheduler.kappa(torch.tensor(t).double()))
    truth = posterior(text_XL, share_X, states(ids, LENGTH), kappa, source_K, ids).log()

    def value(table: Tensor) -> float:
        return float(expected_loss(kind, table, text_XL, share_X, t, path, ids))

    best = value(truth)
    scale = max(float(weight(path.scheduler, torch.tensor([t]).double())), 0.0) if kind == "generalised_kl" else 1.0
    for seed in range(6):
        direction = torch.randn(truth.shape, generator=seeded(seed)).double()
        slope = (value(truth + 0.02 * direction) - value(truth - 0.02 * direction)) / 0.04
        assert abs(slope) < 2e-3 * max(scale, 1e-9)  # finite differences: stationary ...
        if scale:
            assert value(truth + direction) > best + 1e-3 * scale  # ... and lowest

    table = (truth.masked_fill(~truth.isfinite(), -30) + torch.randn(truth.shape, generator=seeded(9))).requires_grad_()
    expected_loss(kind, table, text_XL, share_X, t, path, ids).backward()
    gradient, direction = table.grad, torch.randn(truth.shape, generator=seeded(10)).double()
    assert gradient is not None
    away = table.detach()
    slope = (value(away + 0.01 * direction) - value(away - 0.01 * direction)) / 0.02
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=5e-3, abs=1e-4 * max(scale, 1.0))


@SOURCES
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
@pytest.mark.parametrize("kind", list(DATA_LOSSES))
def test_the_loss_estimates_its_integral_over_time(source_K: Tensor, scheduler: Scheduler, kind: DataLoss) -> None:
    """One position, a network that believes in other shares: the mean of many draws against quadrature of the formula. With a
    mask the generalised KL is the cross-entropy of the text itself, whatever the scheduler."""
    share, belief = [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]
    ids = TOKENS + (len(source_K) == 1)

    def believed(t: float) -> Tensor:
        """[state, ids]"""
        kappa = float(scheduler.kappa(torch.tensor(t).double()))
        one_X1, state_S1 = torch.arange(TOKENS)[:, None], torch.arange(ids)[:, None]
        return posterior(one_X1, torch.tensor(belief).double(), state_S1, kappa, source_K, ids)[:, 0]

    def integrand(t: float) -> float:
        time = torch.tensor(t).double()
        kappa, slope, p = float(scheduler.kappa(time)), float(scheduler.slope(time)), believed(t).tolist()
        total = 0.0
        for x1, c in itertools.product(range(TOKENS), source_K.tolist() if ids > TOKENS else range(TOKENS)):
            mass = share[x1] * (kappa * (c == x1) + (1 - kappa) / len(source_K))
            bracket = p[c][c] - (c == x1) + (c != x1) * math.log(p[c][x1])
            total += mass * (-math.log(p[c][x1]) if kind == "cross_entropy" else -slope / (1 - kappa) * bracket)
        return total

    expected = integrate.quad(integrand, 0, 1 - 1e-6, epsrel=1e-4)[0]
    if ids > TOKENS and kind == "generalised_kl":
        assert expected == pytest.approx(-sum(q * math.log(v) for q, v in zip(share, belief, strict=True)), rel=1e-4)

    def network(x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        return torch.stack([believed(t)[c] for t, c in zip(time_B.tolist(), x_BL[:, 0].tolist(), strict=True)]).log()

    found = []
    for seed in range(20):
        source = seeded(seed)
        text_B1 = torch.multinomial(torch.tensor(share), 200, replacement=True, generator=source)[:, None]
        loss, count, _ = flow_matching_loss(
            network, text_B1, torch.ones_like(text_B1).bool(), Path(scheduler, source_K), kind, Draws.of(source, 200)
        )
        assert count == 200
        found.append(float(loss) / count)
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / math.sqrt(len(found))
    assert abs(float(mean) - expected) < 4 * float(error) + 1e-3 * abs(expected)


@SOURCES
@pytest.mark.parametrize("kind", list(DATA_LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [0.0, 1e-30, 0.5, 1 - 1e-16, 1.0])
def test_gradients_are_finite_at_every_time(source_K: Tensor, kind: DataLoss, dtype: torch.dtype, t: float) -> None:
    """Through a real network, for posteriors from flat to certain (and certainly wrong)."""
    for scheduler, sharpness in itertools.product(SCHEDULERS, (0.1, 30.0, 3000.0)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = DiT(DiTConfig.preset("tiny", vocab_size=TOKENS + 1)).to(dtype)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            torch.nn.init.normal_(model.output_layer.linear.weight, std=sharpness)
        ids_BL = torch.randint(TOKENS, (4, 6), generator=seeded())
        path = Path(scheduler, source_K)
        noised = path.noise(ids_BL, torch.ones_like(ids_BL).bool(), torch.full((4,), t).double(), draws(4, 1))
        logits_NV = model.logits(model.hidden(noised.x_BL, noised.time_B.float())[noised.at]).to(dtype)
        logits_NV = logits_NV.masked_fill(torch.arange(TOKENS + 1) == MASK, -torch.inf)
        loss = DATA_LOSSES[kind](logits_NV, noised, path).sum()
        loss.backward()
        assert bool(loss.isfinite())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def test_only_editable_positions_count() -> None:
    asked: list[tuple[Tensor, At]] = []

    def network(x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        asked.append((x_BL, at))
        return torch.zeros(len(at[0]), TOKENS)

    ids_BL = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    editable_BL = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]]) == 1
    loss, count, _ = flow_matching_loss(network, ids_BL, editable_BL, Path(LINEAR, UNIFORM), "cross_entropy", draws(2))
    assert count == 3
    assert float(loss) == pytest.approx(3 * math.log(TOKENS), rel=1e-6)
    ((x_BL, at),) = asked
    assert torch.equal(x_BL[~editable_BL], ids_BL[~editable_BL])
    assert torch.equal(torch.stack(at), editable_BL.nonzero().T)


# ---------------------------------------------------------------------- what stands in a row


def test_answers_end_in_eos_up_to_the_end_of_the_row() -> None:
    rows = answer.rows([[5, 6], [7]], [[1, 2], [3, 3, 3]], size=3, eos_id=0)
    assert rows.ids_BL.tolist() == [[5, 6, 1, 2, 0], [7, 3, 3, 3, 0]]
    assert rows.editable_BL.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 0]]
    assert rows.valid_BL.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert answer.until_end([1, 2, 0, 3, 0], 0) == [1, 2]
    assert answer.until_end([3, 3, 3], 0) == [3, 3, 3]
    longer = answer.rows([[5]], [[1, 2, 3, 4]], size=3, eos_id=0)
    assert (longer.ids_BL.tolist(), longer.editable_BL.int().tolist()) == ([[5, 1, 2, 3, 4]], [[0, 1, 1, 1, 1]])
    with pytest.raises(RelgradError, match="answer 1 has the end of sequence"):
        answer.rows([[5], [5]], [[1], [1, 0]], size=3, eos_id=0)


# ---------------------------------------------------------------------- few steps


def test_steps_are_drawn_in_inverse_proportion_to_their_size_and_fit() -> None:
    settings = FewStep(finest=16)
    time_B, step_B = draw_steps(settings, draws(40_000))
    assert bool((time_B + step_B <= 1).all())
    assert bool((time_B * 16 == (time_B * 16).round()).all())
    for k in range(5):
        share = float((step_B == 2**k / 16).double().mean())
        assert share == pytest.approx(2 ** (4 - k) / 31, abs=4 * math.sqrt(0.25 / 40_000))
    starts = torch.bincount((time_B[step_B == 1 / 16] * 16).long(), minlength=16).double()
    assert float((starts / starts.sum() - 1 / 16).abs().max()) < 0.01
    assert set(time_B[step_B == 0.5].tolist()) == {i / 16 for i in range(9)}
    assert set(time_B[step_B == 1].tolist()) == {0.0}
    with pytest.raises(ValueError, match="finest=48"):
        FewStep(finest=48)
    settings.require_steps(8)
    for steps in (0, 12, 32):
        with pytest.raises(RelgradError, match=f"steps={steps}"):
            settings.require_steps(steps)


def random_table(ids: int, length: int, seed: int) -> Table:
    """Another random answer at every (time, step)."""

    def at_time(t: float, d: float | None) -> Tensor:
        source = seeded(seed + round(t * 4096) * 7919 + round((d or 0) * 4096))
        table = torch.randn(ids**length, length, ids, generator=source)
        return table.masked_fill(torch.arange(ids) == TOKENS, -torch.inf) if ids > TOKENS else table

    return Table(ids, at_time)


def transitions(logits_SLV: Tensor, path: Path, kernel: ctmc.Kernel, t: float, h: float, ids: int) -> Tensor:
    """float64 [S, S]: one step of all positions, from the law itself."""
    state_SL = states(ids, logits_SLV.shape[1])
    hazard = ctmc.hazard(kernel, path.scheduler, torch.tensor([t]).double(), h).expand(state_SL.numel())
    logp = ctmc.log_transition(path.law(kernel), logits_SLV.flatten(0, 1), state_SL.flatten(), hazard)
    per_SLV = logp.double().exp().view(*state_SL.shape, ids)
    return per_SLV[torch.arange(len(state_SL))[:, None, None], torch.arange(state_SL.shape[1]), state_SL[None]].prod(-1)


def repeated(state: Sequence[int], t: float, rows: int) -> Noised:
    """The same state in many rows, all positions editable; the labels play no part."""
    x_BL = torch.tensor(state).expand(rows, len(state)).contiguous()
    at = torch.ones_like(x_BL).nonzero(as_tuple=True)
    return Noised(x_BL, torch.full((rows,), t).double(), at, x_BL.flatten(), x_BL.flatten())


@SOURCES
@pytest.mark.parametrize(("t", "d"), [(0.25, 0.25), (0.0, 1.0), (0.5, 0.5)])
def test_half_steps_is_the_exact_composition_of_two_steps(source_K: Tensor, t: float, d: float) -> None:
    """e 1[c] + (1 - e) target, averaged over draws, is the enumerated law of a position after two half steps."""
    ids, rows = TOKENS + (len(source_K) == 1), 5_000
    path, table = Path(Scheduler("polynomial", 2.0), source_K), random_table(ids, LENGTH, 3)
    state = [0, 2] if ids == TOKENS else [MASK, MASK]
    target_NV = half_steps(
        table, repeated(state, t, rows), torch.full((rows,), d).double(), path, uniforms(rows * LENGTH)
    )
    target_BLV = target_NV.view(rows, LENGTH, ids)

    both = transitions(table.at_time(t, d / 2), path, "mixture", t, d / 2, ids)
    both = both @ transitions(table.at_time(t + d / 2, d / 2), path, "mixture", t + d / 2, d / 2, ids)
    after_S = both[int(place(torch.tensor([state]), ids))]
    e = float(path.scheduler.stay_factor(torch.tensor(t).double(), d))
    for position in range(LENGTH):
        law_V = torch.zeros(ids).double().index_add(0, states(ids, LENGTH)[:, position], after_S)
        expected_V = law_V - e * torch.nn.functional.one_hot(torch.tensor(state[position]), ids)
        found_BV = (1 - e) * target_BLV[:, position].double()
        error_V = found_BV.std(0) / math.sqrt(rows)
        assert bool(((found_BV.mean(0) - expected_V).abs() < 4.5 * error_V + 1e-5).all())


def test_rk4_is_the_papers_average() -> None:
    """Against a sum over all three states between, with the cumulative kernel and k4 at t + d (no later than 1 - d/2)."""
    path, table, rows = Path(LINEAR, torch.arange(2)), random_table(2, LENGTH, 5), 5_000
    for t, d, last in ((0.25, 0.25, 0.5), (0.5, 0.5, 0.75)):
        target_NV = rk4(
            table, repeated([0, 1], t, rows), torch.full((rows,), d).double(), path, uniforms(rows * LENGTH)
        )
        torch.testing.assert_close(target_NV.sum(-1), torch.ones(rows * LENGTH))
        z = [table.at_time(now, d / 2).double().log_softmax(-1) for now in (t, t + d / 2, last)]
        first = transitions(z[0], path, "cumulative", t, d / 2, 2)
        later = transitions(z[1], path, "cumulative", t + d / 2, d / 2, 2)
        expected = torch.zeros(LENGTH, 2).double()
        for a, b, c in itertools.product(range(4), repeat=3):
            mass = first[1, a] * later[a, b] * later[b, c]
            expected += mass * ((z[0][1] + 2 * z[1][a] + 2 * z[1][b] + z[2][c]) / 6).softmax(-1)
        found_BLV = target_NV.view(rows, LENGTH, 2).double()
        assert bool(((found_BLV.mean(0) - expected).abs() < 4.5 * found_BLV.std(0) / math.sqrt(rows) + 1e-5).all())
    with pytest.raises(RelgradError, match="needs a uniform source"):
        rk4(table, repeated([0, 1], 0.5, 1), torch.tensor([0.5]).double(), Path(LINEAR, MASKED), uniforms(LENGTH))


@pytest.mark.parametrize("kind", ["half_steps", "rk4"])
def test_teachers_are_asked_only_what_students_are_trained_on_and_without_gradient(kind: Any) -> None:
    settings, path = FewStep(finest=8, teacher=kind), Path(LINEAR, UNIFORM)
    parameter = torch.zeros(TOKENS**LENGTH, LENGTH, TOKENS, requires_grad=True)
    teacher, student = Table(TOKENS, lambda t, d: parameter), Table(TOKENS, lambda t, d: parameter)
    text_BL = torch.randint(TOKENS, (300, LENGTH), generator=seeded())
    editable_BL = torch.tensor([False, True]).expand_as(text_BL)
    _, count, _ = few_step_loss(student, teacher, text_BL, editable_BL, path, settings, draws(300, 1))
    assert count == 300
    assert len(student.asked) == 300
    learning = [d for _, d in student.asked if d and d > 1 / 8]
    assert len(teacher.asked) == len(learning) * (2 if kind == "half_steps" else 4)
    for t, d in teacher.asked:
        assert d is not None
        assert d >= 1 / 8
        assert t + d <= 1
        assert t * 8 == round(t * 8)
    with pytest.raises(RuntimeError, match="does not require grad"):  # only the student's own answer carries one
        few_step_loss(Table(TOKENS, lambda t, d: parameter.detach()), teacher, text_BL, editable_BL, path, settings,
                      draws(300, 1))[0].backward()  # fmt: skip


def test_the_divergence_is_kl_and_zero_only_at_the_target() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    logits = torch.tensor([[0.1, 1.0, -torch.inf], [0.0, 0.0, 0.0]], requires_grad=True)
    found = divergence(target, logits)
    expected = [torch.nn.functional.kl_div(logits[0, :2].log_softmax(-1), target[0, :2], reduction="sum"),
                torch.nn.functional.kl_div(logits[1].log_softmax(-1), target[1], reduction="sum")]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    torch.testing.assert_close(divergence(target, target.log()), torch.zeros(2))
    assert bool((divergence(target * 0.8, target.log()) > 0).all())


class Student:
    """A few-step network of free logits: [sizes, times, states, L, ids], with the posterior to start from."""

    def __init__(self, finest: int, start: Callable[[float], Tensor], ids: int) -> None:
        self.finest, self.ids = finest, ids
        by_time = torch.stack([start(i / finest) for i in range(finest)]).float()
        self.table = by_time.repeat(finest.bit_length(), 1, 1, 1, 1).requires_grad_()

    def __call__(self, x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        assert step_B is not None
        size_B = (step_B * self.finest).log2().round().long()
        time_B = (time_B * self.finest).round().long()
        return self.table[size_B, time_B, place(x_BL, self.ids)][at]

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [("table", self.table)]  # type: ignore[list-item]

    def valid(self, steps: int, path: Path, kernel: ctmc.Kernel, good_S: Tensor) -> float:
        """The chance that a text written in so many steps is one of the data's, exactly."""
        mass_S = torch.full((len(good_S),), 1 / len(good_S)).double()
        for i in range(steps):
            size, start = (self.finest // steps).bit_length() - 1, i * self.finest // steps
            mass_S = mass_S @ transitions(
                self.table[size, start].detach(), path, kernel, i / steps, 1 / steps, self.ids
            )
        return float(mass_S[good_S].sum())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kernel", "gains"), [("half_steps", "mixture", 0.13), ("rk4", "cumulative", 0.15)])
def test_distillation_makes_few_steps_better(kind: Any, kernel: ctmc.Kernel, gains: float) -> None:
    """Texts 0000 and 1111: positions that are written together do not know of each other, so that two steps of the exact
    posterior write one of them in half of the cases only, and eight steps in .94. A student sees what the noise is like and
    decides by it."""
    finest, length, tokens = 8, 4, 2
    path = Path(LINEAR, torch.arange(tokens))
    text_XL = torch.tensor([[0] * length, [1] * length])
    state_SL = states(tokens, length)
    good_S = (state_SL == state_SL[:, :1]).all(-1)
    student = Student(
        finest,
        lambda t: posterior(text_XL, torch.tensor([0.5, 0.5]).double(), state_SL, t, path.source_K, tokens).log(),
        tokens,
    )
    before = {steps: student.valid(steps, path, kernel, good_S) for steps in (1, 2, 8)}
    assert before[2] == pytest.approx(0.494, abs=0.002)
    settings, source = FewStep(finest=finest, teacher=kind), seeded(2)
    optimizer = torch.optim.Adam([student.table], lr=0.02)
    average = Ema(student.parameters(), 0.98)

    def teacher(x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        with average.in_place(student.parameters()):
            return student(x_BL, time_B, step_B, at)

    for _ in range(500):
        text_BL = text_XL[torch.randint(2, (512,), generator=source)]
        loss, count, _ = few_step_loss(
            student, teacher, text_BL, torch.ones_like(text_BL).bool(), path, settings, Draws.of(source, 512)
        )
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        average.update(student.parameters())
    with average.in_place(student.parameters()):
        after = {steps: student.valid(steps, path, kernel, good_S) for steps in (1, 2, 8)}
    print(before, after)
    assert after[2] > before[2] + gains
    assert after[1] > before[1] + gains
    assert after[8] > before[8] - 0.01


# ---------------------------------------------------------------------- the moving average


def test_the_average_warms_up_and_gives_the_weights_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([8.0]))
    named = [("w", weight)]
    average = Ema(named, 0.5)
    weight.data = torch.tensor([0.0])
    average.update(named)  # (1 + 1) / (10 + 1) of the old
    assert average.tensors()["w"].tolist() == [pytest.approx(8 * 2 / 11)]
    for _ in range(20):
        average.update(named)
    expected = 8.0
    for n in range(1, 22):
        expected *= min(0.5, (1 + n) / (10 + n))
    assert average.tensors()["w"].tolist() == [pytest.approx(expected)]
    own = weight.data
    with average.in_place(named):
        assert weight.tolist() == [pytest.approx(expected)]
    assert weight.data_ptr() == own.data_ptr()
    with pytest.raises(ZeroDivisionError), average.in_place(named):
        _ = 1 / 0
    assert weight.data_ptr() == own.data_ptr()

    again = Ema(named, 0.5)
    again.restore({n: t.clone() for n, t in average.tensors().items()})
    weight.data = torch.tensor([3.0])
    for either in (average, again):
        either.update(named)
    assert torch.equal(average.tensors()["w"], again.tensors()["w"])
    with pytest.raises(RelgradError, match=r"Missing: w; unexpected: v"):
        again.restore({"v": torch.zeros(1), "updates": torch.tensor(1)})
    with pytest.raises(RelgradError, match="decay=1"):
        Ema(named, 1)
