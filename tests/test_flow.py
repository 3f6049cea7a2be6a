"""The flow policy: what it keeps, what it computes, which steps it trains, how it is judged and supervised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from enumerated import expected_reward, flat_gradient, move, rewards_of, row_logp, seeded
from flow_policies import PROMPTS, flat, fresh, scored, small, spread
from relgrad.core.protocols import LossTerms, Toy
from relgrad.core.randomness import Draws
from relgrad.core.types import Example, Output, Prompt, RewardTable, Rollouts, Score
from relgrad.evaluation.held_out import evaluate
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import flow
from relgrad.policies.flow import engine as flow_engine
from relgrad.policies.flow import toy as flow_toy
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.settings import Lora
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training import checkpoint, kept_experience
from relgrad.training.grpo import Grpo, GrpoSettings, train
from relgrad.training.sft import Sft, SftSettings
from relgrad.trajectories import trained_steps
from relgrad.trajectories.states import pack_states, states_around, unpack_states


class Watched:
    """Counts rows through the network and positions through its head."""

    def __init__(self, policy: FlowPolicy) -> None:
        self.ids: list[Tensor] = []
        self.logits = 0
        hidden, logits = policy.model.hidden, policy.model.logits

        def watch_hidden(ids_BL: Tensor, *rest: Any) -> Tensor:
            self.ids.append(ids_BL.clone())
            return hidden(ids_BL, *rest)

        def watch_logits(hidden_MH: Tensor) -> Tensor:
            self.logits += len(hidden_MH)
            return logits(hidden_MH)

        policy.model.hidden, policy.model.logits = watch_hidden, watch_logits  # type: ignore[method-assign]

    @property
    def rows(self) -> list[int]:
        return [len(ids) for ids in self.ids]


# ---------------------------------------------------------------------- the trajectory


def test_states_come_back_from_starts_and_jumps() -> None:
    for rows, steps, positions, tokens in ((5, 4, 7, 3), (1, 1, 1, 2), (3, 6, 2, 70_000)):
        states = [torch.randint(tokens, (rows, positions), generator=seeded(t)) for t in range(steps + 1)]
        states[-1] = states[-2]  # a step without jumps
        trace = pack_states(states, tokens)
        chosen = torch.arange(rows).flip(0)
        assert torch.equal(unpack_states(trace, chosen), torch.stack(states, 1)[chosen])
        cells_N2 = torch.tensor([(row, step) for step in range(steps) for row in range(rows)])
        before_NE, after_NE = states_around(trace, cells_N2)
        assert torch.equal(before_NE, torch.cat(states[:-1]))
        assert torch.equal(after_NE, torch.cat(states[1:]))


def held(trace: dict[str, Tensor], rows: int) -> float:
    return sum(t.numel() * t.element_size() for t in trace.values()) / rows


def test_1024_positions_over_10_steps_of_gpt2_take_a_tenth_of_160_kB() -> None:
    """States of a network that never repeats a token, the worst there is; 2 x 8 x 1024 bytes a step would be 160 kB."""
    generator, rows = seeded(0), 4
    states = [torch.randint(50_257, (rows, 1024), generator=generator)]
    for step in range(10):
        drawn = torch.rand(rows, 1024, generator=generator) < 1 / (10 - step)
        states.append(torch.where(drawn, torch.randint(50_257, (rows, 1024), generator=generator), states[-1]))
    trace = pack_states(states, 50_257)
    assert torch.equal(unpack_states(trace, torch.arange(rows)), torch.stack(states, 1))
    assert held(trace, rows) < 24_000


def test_a_sampled_trajectory_of_1024_positions_is_small() -> None:
    settings = fresh(
        max_completion_length=1020, sampling_steps=10, network={"hidden": 4, "heads": 1, "blocks": 1, "length": 1024}
    )
    policy = flow.build(settings, seed=0)
    rollouts = policy.sample([Prompt("abcd")], 2, seeded(0))
    assert held(dict(rollouts.trace), rollouts.rows) < 16_000
    assert rollouts.mask_BT.shape == (2, 10)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_start_is_noise_of_the_source(source: str) -> None:
    policy = small(source=source)
    rollouts = policy.sample(PROMPTS, 300, seeded(0))
    start_BE = rollouts.trace["start_BE"].long()
    if source == "mask":
        assert bool((start_BE == policy.symbols.mask_id).all())
        return
    assert chisquare(start_BE.flatten().bincount(minlength=3)).pvalue > 1e-4
    assert chisquare((3 * start_BE[:, 0] + start_BE[:, 5]).bincount(minlength=9)).pvalue > 1e-4


def test_the_prompt_is_clean_at_every_step_and_the_rest_is_the_state() -> None:
    policy = small()
    watched = Watched(policy)
    rollouts = policy.sample(PROMPTS, 2, seeded(0))
    encoded = [policy.encode(p) for p in PROMPTS]
    states_BTE = unpack_states(rollouts.trace, torch.arange(6))
    assert len(watched.ids) == 5
    for step, ids_BL in enumerate(watched.ids):
        for row, ids in enumerate(ids_BL.tolist()):
            prompt = encoded[row // 2]
            assert ids[: len(prompt)] == prompt
            assert ids[len(prompt) : len(prompt) + 6] == states_BTE[row, step].tolist()


def test_the_text_ends_at_the_first_end() -> None:
    policy = small()
    rollouts = policy.sample(PROMPTS, 20, seeded(0))
    last_BE = unpack_states(rollouts.trace, torch.arange(60))[:, -1]
    seen = set()
    for ids, output, stop in zip(last_BE.tolist(), rollouts.outputs, rollouts.stop, strict=True):
        kept = ids[: ids.index(2)] if 2 in ids else ids
        assert output == Output("".join("ab"[i] for i in kept), tuple(kept))
        assert stop == ("eos" if 2 in ids else "length")
        seen.add(stop)
    assert seen == {"eos", "length"}


@pytest.mark.parametrize("options", [{}, {"train_steps": 2}, {"branch_steps": 1}])
def test_lengths_are_those_of_the_texts_with_their_ends(options: dict) -> None:
    """Whatever the number of steps, and of those that are trained: what runs log is what people read."""
    for rollouts in (
        small(**options).sample(PROMPTS, 20, seeded(0)),
        small(evaluation_steps=9).sample(PROMPTS, 9, seeded(1)),
    ):
        wanted = [len(o.ids) + (stop == "eos") for o, stop in zip(rollouts.outputs, rollouts.stop, strict=True)]
        assert (rollouts.size_BT * rollouts.mask_BT).sum(-1).tolist() == wanted
        assert not rollouts.size_BT[~rollouts.mask_BT].any()
        assert {1, 6} <= set(wanted)
    mask_BT = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert trained_steps.tokens_per_step(mask_BT, torch.tensor([7, 5])).tolist() == [[2, 0, 2, 3], [0, 5, 0, 0]]


def test_an_evaluation_and_a_generation_batch_report_the_length_of_the_text() -> None:
    policy = small(evaluation_steps=9, train_steps=1)
    found = evaluate(policy, PROMPTS, Seen(), num_generations=20, seed=0)
    generator = torch.Generator().manual_seed(0)
    with policy.evaluation():
        rollouts = policy.sample(PROMPTS, 20, generator)
    lengths = [len(o.ids) + (stop == "eos") for o, stop in zip(rollouts.outputs, rollouts.stop, strict=True)]
    assert found.mean_length == pytest.approx(sum(lengths) / 60)
    record = loop(policy).update()
    assert record.metrics["completions/max_length"] <= 6


# ---------------------------------------------------------------------- what is computed


def test_cells_of_any_rows_and_times_go_through_the_network_together() -> None:
    policy = small()
    rollouts = policy.sample(PROMPTS, 4, seeded(0))
    watched = Watched(policy)
    policy.score(rollouts, rollouts.cells())
    assert watched.rows == [12 * 5]
    assert watched.logits == 12 * 5 * 6  # editable positions only


def test_sampling_runs_all_rows_of_a_step_together() -> None:
    policy = small()
    watched = Watched(policy)
    policy.sample(PROMPTS, 4, seeded(0))
    assert watched.rows == [12] * 5


def test_from_a_mask_every_position_is_scored_once_however_many_steps_there_are() -> None:
    policy = small(source="mask", sampling_steps=20)
    watched = Watched(policy)
    rollouts = policy.sample(PROMPTS, 4, seeded(0))
    assert watched.logits == 12 * 6
    watched.ids.clear()
    policy.score(rollouts, rollouts.cells())
    assert watched.logits == 2 * 12 * 6
    states_BTE = unpack_states(rollouts.trace, torch.arange(12))
    jumps = (states_BTE[:, 1:] != states_BTE[:, :-1]).any(-1)
    assert watched.rows == [int(jumps.sum())], "steps in which nothing was unmasked need no network"
    quiet_N2 = (~jumps).nonzero()[:1]
    logp_N = policy.score(rollouts, quiet_N2).logp_N
    assert logp_N.requires_grad
    assert not flat_gradient(policy, logp_N.sum()).any()


def test_logits_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small()
    move(policy)
    rollouts = policy.sample(PROMPTS, 4, seeded(0))
    asked = {"entropy": True, "reference_kl": True}
    found = []
    for limit in (2**25, 50):
        monkeypatch.setattr(flow_engine, "LOGITS", limit)
        scores = policy.score(rollouts, rollouts.cells(), **asked)
        found.append((*scores, flat_gradient(policy, scores.logp_N.sum() + scores.entropy_N.sum() + scores.kl_N.sum())))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["mixture", "rate", "cumulative"])
@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_gradients_are_finite_at_every_step(kernel: str, exponent: int) -> None:
    policy = small(kernel=kernel, exponent=exponent, sampling_steps=64)
    rollouts = policy.sample(PROMPTS, 1, seeded(0))
    for step in range(64):
        scores = policy.score(
            rollouts, torch.tensor([(row, step) for row in range(3)]), entropy=True, reference_kl=True
        )
        assert bool(scores.logp_N.isfinite().all())
        gradient = flat_gradient(policy, scores.logp_N.sum() + scores.entropy_N.sum() + scores.kl_N.sum())
        assert bool(gradient.isfinite().all()), f"step {step}"


def test_adapters_on_bfloat16_weights_are_float32_and_score_what_was_drawn() -> None:
    policy = spread(flow.build(fresh(dtype="bfloat16", lora=Lora(r=2)), seed=0))
    assert {p.dtype for _, p in policy.parameters()} == {torch.float32}
    assert policy.model.blocks[0].qw.base_layer.weight.dtype == torch.bfloat16
    rollouts = policy.sample([Prompt("some text")], 4, seeded(0))
    logp_N = policy.score(rollouts, rollouts.cells()).logp_N
    assert float((logp_N.detach() - rollouts.behaviour_logp_BT.flatten()).abs().max()) < 0.05
    assert bool(flat_gradient(policy, logp_N.sum()).isfinite().all())


# ---------------------------------------------------------------------- which steps are trained


def test_every_step_is_trained_equally_often() -> None:
    draws, steps = 20_000, 7
    for trained in (
        trained_steps.random_steps(Draws.of(seeded(0), draws // 10), 10, steps, 3),
        *(trained_steps.steps_after_branch(Draws.of(seeded(1), draws), 1, steps, window) for window in (1, 2, 7)),
    ):
        share = 1 / trained.stands_for
        error = (share * (1 - share) / draws) ** 0.5
        assert bool(((trained.mask_BT.double().mean(0) - share).abs() <= 4 * error + 1e-12).all())
        assert bool(trained.mask_BT.any(-1).all())
        if trained.branch_B is not None:
            assert bool((trained.mask_BT.double().argmax(-1) == trained.branch_B).all()), (
                "training begins at the branch"
            )


def test_a_sum_over_some_steps_stands_for_the_sum_over_all() -> None:
    """Over all subsets of 2 of 5 steps the losses that sum average to the whole, thanks to the factor; means need none."""
    logp_BT, advantage_BT = torch.randn(3, 5, generator=seeded(0)), torch.randn(3, 1, generator=seeded(1)).expand(3, 5)

    def loss(loss_type: str, mask_BT: Tensor, stands_for: float) -> float:
        terms = LossTerms(
            logp_BT,
            logp_BT.clone(),
            advantage_BT,
            mask_BT,
            float(mask_BT.sum()),
            max_decisions=5,
            stands_for=stands_for,
        )
        return float(PolicyLoss(loss_type=loss_type)(terms)[0])  # type: ignore[arg-type]

    for loss_type in ("reinforce", "dr_grpo", "dapo", "grpo", "bnpo"):
        parts = []
        for kept in combinations(range(5), 2):
            mask_BT = torch.zeros(3, 5, dtype=torch.bool)
            mask_BT[:, kept] = True
            parts.append(loss(loss_type, mask_BT, 5 / 2))
        whole = loss(loss_type, torch.ones(3, 5, dtype=torch.bool), 1.0)
        assert sum(parts) / len(parts) == pytest.approx(whole, abs=1e-6), loss_type


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("uniform", {"train_steps": 1}),
        ("mask", {"branch_steps": 1}),
        ("mask", {"branch_steps": 2, "sampling_steps": 3}),
        pytest.param("mask", {"train_steps": 1}, marks=pytest.mark.slow),
        pytest.param("uniform", {"branch_steps": 1}, marks=pytest.mark.slow),
        pytest.param("uniform", {"branch_steps": 2, "sampling_steps": 3}, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_of_some_steps_is_that_of_all_on_average(options: dict, source: str) -> None:
    """Monte Carlo against the exact gradient of the expected reward, by enumeration; the part that is trained varies."""
    toy: Toy = flow_toy.make(source=source, **options)()
    move(toy.policy)
    prompt = toy.prompts[2]
    value = expected_reward(toy, [toy.enumerate(prompt)])
    exact_P = flat_gradient(toy.policy, value)
    uphill_P = exact_P / exact_P.norm()
    generator, found = seeded(4), []
    for _ in range(40):
        rollouts = toy.policy.sample([prompt] * 60, 4, generator)
        gain_B = rewards_of(toy, rollouts) - value.detach()
        estimate = rollouts.stands_for * (row_logp(toy.policy, rollouts) * gain_B).mean()
        found.append(float(uphill_P @ flat_gradient(toy.policy, estimate)))
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / 40**0.5
    assert exact_P.norm() > 4 * error, "too noisy to tell"
    assert abs(float(mean - exact_P.norm())) <= 4 * float(error)


def test_a_group_shares_its_trajectory_up_to_the_branch() -> None:
    policy = small(branch_steps=2, sampling_steps=6)
    watched = Watched(policy)
    rollouts = policy.sample(PROMPTS * 5, 4, seeded(0))
    states_BTE = unpack_states(rollouts.trace, torch.arange(60)).view(15, 4, 7, 6)
    first_GK = rollouts.mask_BT.double().argmax(-1).view(15, 4)
    assert bool((first_GK == first_GK[:, :1]).all())
    for states, branch in zip(states_BTE, first_GK[:, 0].tolist(), strict=True):
        assert bool((states[:, : branch + 1] == states[:1, : branch + 1]).all())
        assert bool((states[:, branch + 1 :] != states[:1, branch + 1 :]).any())
    assert watched.rows == [int(torch.where(first_GK[:, 0] > step, 1, 4).sum()) for step in range(6)]
    assert set(rollouts.mask_BT.sum(-1).tolist()) == {1, 2}
    assert not rollouts.behaviour_logp_BT[~rollouts.mask_BT].any()
    assert rollouts.stands_for == 7 / 2


class Spy:
    """REINFORCE that keeps what it was given."""

    needs = frozenset({"kl"})

    def __init__(self) -> None:
        self.terms: list[LossTerms] = []

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        self.terms.append(terms)
        return PolicyLoss(loss_type="reinforce")(terms)


def count_a(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
    return [Score(float(output.text.count("a"))) for output in outputs]


def loop(policy: FlowPolicy, **options: Any) -> Grpo:
    settings = GrpoSettings(**{"steps": 2, "num_prompts": 3, "num_generations": 4, "learning_rate": 1e-2, **options})
    names = PolicyLoss.__dataclass_fields__
    loss = PolicyLoss(**{n: getattr(settings, n) for n in names})
    return Grpo(policy, PROMPTS, RewardSet([NamedReward("a", count_a)], 60), loss, settings)


def test_the_loop_trains_some_steps_and_says_what_they_stand_for(tmp_path: Path) -> None:
    policy, spy = small(train_steps=2), Spy()
    run = loop(policy)
    run.loss = spy
    record = run.update()
    (terms,) = spy.terms
    assert terms.stands_for == 5 / 2
    assert terms.mask_BT.sum(-1).tolist() == [2] * 12
    assert record.metrics["parity/max_abs"] <= 1e-5
    assert record.metrics["completions/mean_decisions"] == 5
    kept_experience.save_rollouts(run.batch.parts[0].rollouts, tmp_path)
    assert kept_experience.load_rollouts(tmp_path).stands_for == 5 / 2


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("options", [{}, {"train_steps": 2}, {"branch_steps": 2}])
def test_later_updates_of_a_batch_have_ratios_that_are_brought_to_one_scale(source: str, options: dict) -> None:
    """GRPO-Guard's norm in the loop: the first update is as without it, the later ones are clipped at another scale."""
    found = {}
    for on in (False, True):
        run = loop(
            small(source=source, **options),
            steps=3,
            num_iterations=3,
            step_ratio_norm=on,
            learning_rate=3e-2,
            loss_type="grpo",
        )
        found[on] = [run.update().metrics for _ in range(3)]
        assert found[on][0]["importance_ratio/min"] == found[on][0]["importance_ratio/max"] == 1.0
    assert found[True][0]["grad_norm"] == found[False][0]["grad_norm"]
    for plain, normed in zip(found[False][1:], found[True][1:], strict=True):
        assert plain["importance_ratio/max"] > 1.0
        assert normed["importance_ratio/max"] != plain["importance_ratio/max"]
        assert normed["importance_ratio/min"] < 1.0 < normed["importance_ratio/max"]


# ---------------------------------------------------------------------- how it is judged


class Seen:
    """Rewards nothing and remembers the rollouts."""

    names = ("nothing",)

    def __init__(self) -> None:
        self.rollouts: list[Rollouts] = []

    def __call__(self, rollouts: Rollouts) -> RewardTable:
        self.rollouts.append(rollouts)
        zeros_BR = torch.zeros(rollouts.rows, 1, dtype=torch.float64)
        return RewardTable(self.names, torch.ones(1), zeros_BR, ({},) * rollouts.rows, ("",) * rollouts.rows)


def test_an_evaluation_takes_its_own_number_of_steps_and_measures_all_of_them() -> None:
    policy, seen = small(evaluation_steps=9, train_steps=1), Seen()
    found = evaluate(policy, PROMPTS, seen, num_generations=2, seed=0, divergence=True)
    (rollouts,) = seen.rollouts
    assert rollouts.mask_BT.shape == (6, 9)
    assert bool(rollouts.mask_BT.all())
    assert rollouts.stands_for == 1
    assert found.kl == 0.0
    assert policy.sample(PROMPTS, 2, seeded(0)).mask_BT.sum(-1).tolist() == [1] * 6
    assert policy.max_decisions == 5


def test_the_averaged_weights_are_judged_and_the_others_trained() -> None:
    policy = small(ema_decay=0.5)
    start = flat(policy)
    policy.after_update()  # nothing has moved
    train(loop(policy), lambda record: None)
    trained = flat(policy)
    with policy.evaluation():
        average = flat(policy)
    assert torch.equal(flat(policy), trained)
    between = (average - start).norm() / (trained - start).norm()
    assert 0.1 < float(between) < 0.999
    with pytest.raises(KeyboardInterrupt), policy.evaluation():
        raise KeyboardInterrupt
    assert torch.equal(flat(policy), trained)
    rollouts = policy.sample(PROMPTS, 2, seeded(0))
    with policy.evaluation():
        averaged = scored(policy, rollouts)
    assert not torch.allclose(averaged, scored(policy, rollouts), atol=1e-4)


def test_a_supervised_stage_averages_too_and_the_next_stage_begins_with_the_average(tmp_path: Path) -> None:
    policy = flow.build(fresh(ema_decay=0.9), seed=0)
    examples = [Example(Prompt(c), c * 3) for c in "abcd"]
    stage = Sft(policy, examples, SftSettings(steps=5, batch_size=4, learning_rate=1e-2))
    train(stage, lambda record: None)
    with policy.evaluation():
        average = flat(policy)
    assert not torch.allclose(average, flat(policy))
    policy.save(tmp_path)
    again = flow.build(fresh(ema_decay=0.9), seed=1, start=tmp_path)
    assert torch.equal(flat(again), average)
    again.load(tmp_path)  # continuing: the trained weights, and the average where it was
    assert torch.equal(flat(again), flat(policy))
    for one in (policy, again):
        move(one)
        one.after_update()
    with policy.evaluation(), again.evaluation():
        assert torch.equal(flat(policy), flat(again))


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_a_film_shows_every_jump_and_how_probable_it_was(source: str) -> None:
    policy = small(source=source, evaluation_steps=7)
    films = policy.film(PROMPTS, 2, seeded(0))
    assert [film["prompt"] for film in films] == [p.text for p in PROMPTS for _ in range(2)]
    with policy.evaluation():
        rollouts = policy.sample(PROMPTS, 2, seeded(0))
    states_BTE = unpack_states(rollouts.trace, torch.arange(6))
    for row, film in enumerate(films):
        assert [frame["step"] for frame in film["frames"]] == list(range(8))
        for step, frame in enumerate(film["frames"]):
            assert frame["text"] == "".join("ab∎█"[i] for i in states_BTE[row, step])
            assert frame["masked"] == [i for i, c in enumerate(frame["text"]) if c == "█"]
            if step:
                before, first = film["frames"][step - 1], step - 1
                changed = [i for i in range(6) if frame["text"][i] != before["text"][i]]
                assert frame["filled"] == changed
                prompt, state = PROMPTS[row // 2], tuple(states_BTE[row, first].tolist())
                p_EV = network_says(policy, prompt, state, first / 7).exp()
                for i in range(6):
                    told = frame["confidence"][i]
                    if i in changed:
                        assert told == pytest.approx(float(p_EV[i, states_BTE[row, step, i]]), rel=0.051)
                    else:
                        assert told == before["confidence"][i]
                jumps_EV = law_says(policy, p_EV, states_BTE[row, first], first / 7, 1 / 7)
                wanted = [float(jumps_EV[i, states_BTE[row, step, i]]) for i in changed]
                assert frame["chance"] == pytest.approx(wanted, rel=0.051)
                every = [float(jumps_EV[i, states_BTE[row, step, i]]) for i in range(6)]
                assert frame["logp"] == pytest.approx(math.log(math.prod(every)), abs=1e-4)
            assert frame["end"] == (frame["text"].index("∎") if "∎" in frame["text"] else None)
        assert film["final"] == film["frames"][-1]["text"].partition("∎")[0]
        assert film["ids"] == ["ab".index(c) for c in film["final"]]
        assert film["source"] == source
        assert film["frames"][0]["confidence"] == [None] * 6
        assert film["frames"][0]["logp"] is None


def law_says(policy: FlowPolicy, p_EV: Tensor, state_E: Tensor, time: float, step: float) -> Tensor:
    """[E, V]: probability of the next token under the mixture with kappa = t, by hand: draw with this chance, or stay."""
    draws = step / (1 - time)
    full_EV = torch.zeros(len(state_E), policy.symbols.size)
    full_EV[:, :3] = p_EV
    now_EV = torch.nn.functional.one_hot(state_E, policy.symbols.size).float()
    moving_EV = (1 - draws) * now_EV + draws * full_EV
    settled_E1 = (policy.symbols.masked & (state_E != policy.symbols.tokens))[:, None]
    return torch.where(settled_E1, now_EV, moving_EV)


def network_says(policy: FlowPolicy, prompt: Prompt, state: tuple[int, ...], time: float) -> Tensor:
    """[E, V]: log p by a plain forward pass."""
    ids_1L = torch.tensor([[*policy.encode(prompt), *state]])
    with torch.no_grad():
        logits_EV = policy.model.logits(policy.model.hidden(ids_1L, torch.tensor([time]))[0, -len(state) :])
    return torch.log_softmax(logits_EV[:, :3], -1)  # "a", "b" and the end; what else there is cannot be drawn


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    """Weights, their average, the batch with its trajectories, and what its trained steps stand for."""
    options = {"ema_decay": 0.9, "train_steps": 2, "source": "mask"}
    whole, first = small(**options), small(**options)
    train(loop(whole, steps=4, num_iterations=2), lambda record: None)
    stopped = loop(first, steps=4, num_iterations=2)
    for _ in range(3):
        stopped.update()
    folder = checkpoint.save(tmp_path, stopped, first)
    again = small(**options)
    resumed = loop(again, steps=4, num_iterations=2)
    checkpoint.restore(folder, resumed, again)
    resumed.update()
    assert torch.equal(flat(again), flat(whole))
    with again.evaluation(), whole.evaluation():
        assert torch.equal(flat(again), flat(whole))


# ---------------------------------------------------------------------- supervised


def test_supervision_teaches_to_answer_and_to_end() -> None:
    """Three prompts, three answers of different lengths; from noise to the very text, in 8 steps."""
    sizes = {"hidden": 32, "blocks": 2, "heads": 2, "cond_dim": 16, "length": 12}
    policy = flow.build(fresh(network=sizes, sampling_steps=8), seed=0)
    wanted = {"x=": "ab", "y=": "cabba", "z=": ""}
    examples = [Example(Prompt(p, id=n), a) for n, (p, a) in enumerate(wanted.items())]
    stage = Sft(policy, examples, SftSettings(steps=200, batch_size=12, learning_rate=5e-3))
    train(stage, lambda record: None)
    rollouts = policy.sample([e.prompt for e in examples], 20, seeded(0))
    right = [o.text == examples[int(g)].target for o, g in zip(rollouts.outputs, rollouts.group_B, strict=True)]
    assert sum(right) >= 54, f"{sum(right)} of 60 answers are right"


@pytest.mark.parametrize("options", [{"data_loss": "generalised_kl"}, {"source": "mask"}])
def test_supervised_losses_count_the_positions_that_are_written(options: dict) -> None:
    policy = flow.build(fresh(**options), seed=0)
    loss, count, nll = policy.supervised_loss([Example(Prompt("ab"), "x"), Example(Prompt("abc"), "yz")], seeded(0))
    assert count == 12
    plain = flow.build(fresh(**{**options, "data_loss": "cross_entropy"}), seed=0)
    loss_of_plain = plain.supervised_loss([Example(Prompt("ab"), "x"), Example(Prompt("abc"), "yz")], seeded(0))
    assert nll == pytest.approx(float(loss_of_plain.total.detach()), rel=1e-6)
    assert bool(loss.isfinite())
    again, _, _ = policy.supervised_loss([Example(Prompt("ab"), "x"), Example(Prompt("abc"), "yz")], seeded(0))
    assert torch.equal(loss, again)
    assert float(flat_gradient(policy, loss).abs().max()) > 0


def test_a_row_is_supervised_the_same_beside_longer_ones() -> None:
    policy = spread(flow.build(fresh(), seed=0))
    policy.model.eval()
    ids_BL = torch.tensor([[1, 2, 5, 6, 96, 96], [1, 2, 3, 4, 5, 96]])
    at = (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 4, 5]))
    both = policy.engine.network(ids_BL, torch.tensor([0.3, 0.6]), None, at)
    alone = policy.engine.network(ids_BL[:1, :4], torch.tensor([0.3]), None, (at[0][:2], at[1][:2]))
    torch.testing.assert_close(both[:2], alone, atol=1e-5, rtol=1e-5)


def test_few_step_distillation_makes_a_student_that_is_told_its_step(tmp_path: Path) -> None:
    teacher = spread(flow.build(fresh(), seed=0))
    teacher.save(tmp_path)
    student = flow.build(fresh(few_step={"finest": 16}, ema_decay=0.9, kernel="cumulative"), seed=0, start=tmp_path)
    assert student.model.config.step_conditioned
    stage = Sft(student, [Example(Prompt("ab"), "xyz")], SftSettings(steps=3, batch_size=8, learning_rate=1e-3))
    before = flat(student)
    train(stage, lambda record: None)
    assert not torch.equal(flat(student), before)
    rollouts = student.sample([Prompt("ab")], 3, seeded(0))
    torch.testing.assert_close(scored(student, rollouts), rollouts.behaviour_logp_BT.flatten(), atol=1e-5, rtol=0)


def test_the_loop_logs_an_estimate_of_the_entropy_unless_the_loss_needs_it() -> None:
    """Of a flow policy exact entropy is costly: logged is the mean of -log p of what was drawn."""
    asked: list[bool] = []

    class Watched(FlowPolicy):
        def score(self, *place: Any, entropy: bool = False, **more: Any) -> Any:
            asked.append(entropy)
            return super().score(*place, entropy=entropy, **more)

    for coefficient in (0.0, 0.01):
        made = flow.build(fresh(), seed=0)
        policy = Watched(made.parts, made.settings)
        rewards = RewardSet(
            [NamedReward("length", lambda prompt, outputs: [float(i) for i in range(len(outputs))])], 60
        )
        settings = GrpoSettings(steps=1, num_prompts=1, num_generations=6, entropy_coef=coefficient)
        loop = Grpo(policy, PROMPTS, rewards, PolicyLoss(entropy_coef=coefficient), settings, seed=0)
        asked.clear()
        metrics = loop.update().metrics
        assert asked
        assert set(asked) == {bool(coefficient)}
        if not coefficient:
            batch = loop.batch
            assert batch is not None
            drawn_N = batch.behaviour_logp_BT[batch.mask_BT]
            assert metrics["entropy"] == pytest.approx(-float(drawn_N.mean()), rel=1e-5)
