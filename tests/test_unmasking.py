"""The policy that unmasks: its blocks and steps, what it keeps and computes, what follows the end, supervision, refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from enumerated import expected_reward, flat_gradient, move, nudge, seeded
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.core.types import Example, Prompt, Rollouts
from relgrad.laws.unmasking.interface import MASKED, Law, Outcome, Places
from relgrad.laws.unmasking.low_confidence import LowConfidence
from relgrad.policies import fill_in, unmasking
from relgrad.policies.unmasking import engine, steps
from relgrad.policies.unmasking import toy as unmasking_toy
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.settings import Settings
from relgrad.policies.unmasking.toy import BLOCKS, PROMPTS, WHOLE, enumerate_all, small
from relgrad.text.vocabulary import BLANK
from relgrad.trajectories.states import unpack_states

A, B, MASK, END = range(4)


def scored(policy: UnmaskingPolicy, rollouts: Rollouts) -> Tensor:
    with torch.no_grad():
        return policy.score(rollouts, rollouts.cells()).logp_N


def states(rollouts: Rollouts) -> Tensor:
    return unpack_states(rollouts.trace, torch.arange(rollouts.rows))


class Watched:
    """Counts rows through the network and positions through its head."""

    def __init__(self, policy: UnmaskingPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.logits = list[int](), 0
        hidden, logits = policy.network.hidden, policy.network.logits

        def watch_hidden(ids_BL: Tensor, *rest: Tensor) -> Tensor:
            self.rows.append(len(ids_BL))
            return hidden(ids_BL, *rest)

        def watch_logits(hidden_MH: Tensor) -> Tensor:
            self.logits += len(hidden_MH)
            return logits(hidden_MH)

        monkeypatch.setattr(policy.network, "hidden", watch_hidden)
        monkeypatch.setattr(policy.network, "logits", watch_logits)


# ---------------------------------------------------------------------- blocks and steps


@pytest.mark.parametrize(
    ("options", "revealed"),
    [
        ({"steps": 4, "max_completion_length": 6}, [[2, 2, 1, 1]]),  # LLaDA: as even as can be, larger ones first
        ({"steps": 4, "max_completion_length": 6, "block_length": 3}, [[2, 1, 2, 1], [2, 1, 0, 0]]),  # or an end before
        ({"law": {"order": "left_to_right"}, "max_completion_length": 3}, [[1, 1, 1]]),
    ],
)
def test_every_step_reveals_its_share(options: dict[str, Any], revealed: list[list[int]]) -> None:
    policy = small(**options)
    rollouts = policy.sample(PROMPTS[:1], 40, seeded(0))
    masked_BT = (states(rollouts) == MASK).sum(-1)
    assert {tuple(row) for row in (masked_BT[:, :-1] - masked_BT[:, 1:]).tolist()} <= {tuple(row) for row in revealed}
    assert torch.equal(rollouts.mask_BT, masked_BT[:, :-1] > masked_BT[:, 1:])


def test_blocks_are_written_one_after_the_other_and_a_text_that_ended_is_finished() -> None:
    policy = small(law={"order": "random"}, max_completion_length=6, block_length=2, steps=6)
    state_BTE = states(policy.sample(PROMPTS[:2], 60, seeded(1)))
    block_E, ended = torch.arange(6) // 2, 0
    for row in state_BTE.tolist():
        for before, after in itertools.pairwise(row):
            changed = [i for i in range(6) if before[i] != after[i]]
            first = before.index(MASK) if MASK in before else 6
            assert all(int(block_E[i]) == int(block_E[first]) for i in changed)
            if END in before[: 2 * int(block_E[min(first, 5)])]:
                assert not changed
                ended += first < 6
    assert ended > 20


def test_what_follows_the_end_counts_in_the_whole_answer_and_is_no_text() -> None:
    """A sampled row and the same row with another token behind its end: another decision, the same text."""
    policy = small(law={"order": "left_to_right"}, max_completion_length=3)
    rollouts = enumerate_all(policy, PROMPTS[0])
    last = [tuple(row) for row in states(rollouts)[:, -1].tolist()]
    first, other = last.index((A, END, A)), last.index((A, END, B))
    assert [rollouts.outputs[i].text for i in (first, other)] == ["a", "a"]
    assert rollouts.stop[first] == "eos"
    assert int(rollouts.size_BT[first].sum()) == 2
    logp_BT = scored(policy, rollouts).view(-1, 3)
    assert torch.equal(logp_BT[first, :2], logp_BT[other, :2])
    assert abs(float(logp_BT[first, 2] - logp_BT[other, 2])) > 0.01


def test_a_threshold_takes_fewer_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are ready go through the network no more; the film says how many tokens a pass gave."""
    for threshold, most in ((0.01, 1), (0.5, 5)):
        policy = small(law={"order": "threshold", "threshold": threshold}, max_completion_length=5)
        watched = Watched(policy, monkeypatch)
        rollouts = policy.sample(PROMPTS, 8, seeded(2))
        assert sum(watched.rows) == int(rollouts.mask_BT.sum())
        assert int(rollouts.mask_BT.sum(-1).max()) <= most
    assert 1 < int(rollouts.mask_BT.sum(-1).min()) < 5
    for film in policy.film(PROMPTS, 2, seeded(2)):
        tokens = len(film["ids"]) + (film["frames"][-1]["end"] is not None)
        assert film["tokens_per_forward"] == pytest.approx(tokens / (len(film["frames"]) - 1), abs=1e-3)


# ---------------------------------------------------------------------- computed


def test_logits_are_computed_where_the_law_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for order, positions in (("random", 3), ("ancestral", 3), ("low_confidence", 3 + 1), ("plackett_luce", 3 + 1)):
        policy = small(law={"order": order}, **WHOLE)
        rollouts = policy.sample(PROMPTS, 4, seeded(3))
        watched = Watched(policy, monkeypatch)
        policy.score(rollouts, rollouts.cells())
        assert watched.logits == 12 * positions or (order == "ancestral" and watched.logits == 12 * 3)
        assert len(watched.rows) == 1, "steps of different texts and times are one batch"


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for law in ({"order": "low_confidence"}, {"order": "plackett_luce"}):
        policy = small(law=law, top_p=0.9, **BLOCKS)
        whole = policy.sample(PROMPTS, 2, seeded(4))
        gradient = flat_gradient(policy, policy.score(whole, whole.cells()).logp_N.sum())
        with monkeypatch.context() as patched:
            patched.setattr(engine, "LOGITS", 23)
            patched.setattr(steps, "ROWS", 20)
            pieces = policy.sample(PROMPTS, 2, seeded(4))
            small_gradient = flat_gradient(policy, policy.score(pieces, pieces.cells()).logp_N.sum())
        assert whole.outputs == pieces.outputs
        assert all(torch.equal(tensor, pieces.trace[name]) for name, tensor in whole.trace.items())
        torch.testing.assert_close(gradient, small_gradient, rtol=1e-4, atol=1e-5)


def test_k_of_t_steps_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step that was one is trained as often as the others, and `stands_for` is what makes up for it."""
    policy = small(law={"order": "low_confidence"}, train_steps=1, **BLOCKS)
    rollouts = policy.sample(PROMPTS[:1], 1500, seeded(5))
    monkeypatch.setattr(policy, "settings", policy.settings.model_copy(update={"train_steps": None}))
    everything = policy.sample(PROMPTS[:1], 1500, seeded(6))
    assert rollouts.stands_for == 4
    share_T = rollouts.mask_BT.double().mean(0) * rollouts.stands_for
    error_T = 4 * rollouts.mask_BT.double().std(0) / math.sqrt(1500)
    exact_T = everything.mask_BT.double().mean(0)
    assert bool(((share_T - exact_T).abs() <= 4 * error_T + 0.06).all())
    with policy.evaluation():
        assert int(policy.sample(PROMPTS[:1], 2, seeded(7)).mask_BT.sum()) > 2


def test_it_is_judged_in_other_steps_with_averaged_weights() -> None:
    policy = small(law={"order": "random"}, max_completion_length=4, steps=4, evaluation_steps=2, ema_decay=0.9)
    move(policy)
    policy.after_update()
    with policy.evaluation():
        rollouts = policy.sample(PROMPTS, 3, seeded(8))
        averaged_N = scored(policy, rollouts)
    torch.testing.assert_close(averaged_N, rollouts.behaviour_logp_BT[rollouts.mask_BT])
    assert rollouts.mask_BT.shape == (9, 2)
    assert policy.max_decisions == 4
    assert float((scored(policy, rollouts) - averaged_N).abs().max()) > 1e-3  # its own weights, the same two steps


def test_a_trace_is_compact() -> None:
    """256 positions in 32 steps: a position is written once, whatever the number of steps."""
    settings = Settings(
        network={"block_size": 256, "n_layer": 1, "n_head": 1, "n_embd": 4}, max_completion_length=240, steps=30,
        law={"order": "plackett_luce"}, device="cpu",
    )  # fmt: skip
    rollouts = unmasking.build(settings, seed=0).sample([Prompt("abcd")], 4, seeded(9))
    assert sum(t.numel() * t.element_size() for t in rollouts.trace.values()) / 4 < 4000  # whole states take 15 kB


# ---------------------------------------------------------------------- the law of whole trajectories


class TokensOnly(LowConfidence):
    """What the field scores low-confidence remasking by: the tokens that stayed, without the drafts that did not."""

    def needs(self, places: Places, outcome: Outcome) -> Tensor:
        return outcome.token_M != MASKED


def test_the_score_of_the_tokens_alone_fails_the_mass_test() -> None:
    policy = small(law={"order": "low_confidence"}, **BLOCKS)
    everything = [enumerate_all(policy, prompt) for prompt in PROMPTS[:2]]

    def masses() -> list[float]:
        return [
            float(torch.zeros(r.rows).index_add(0, r.cells()[:, 0], scored(policy, r)).double().exp().sum())
            for r in everything
        ]

    assert masses() == pytest.approx([1, 1], abs=1e-5)
    law: Law = TokensOnly(policy.engine.law.truncation)
    policy.engine.law = law
    assert min(masses()) > 2


def climbed(policy: UnmaskingPolicy, points: int = 11) -> tuple[float, float]:
    """(rise of the expected reward along a straight way of length 1, the integral of its gradient along the way).

    Everything is enumerated anew at every point: what can happen changes on the way.
    """
    toy = unmasking_toy.make("random", **WHOLE)()
    toy = replace(toy, policy=policy)

    def value() -> Tensor:
        return expected_reward(toy, [enumerate_all(policy, PROMPTS[0])])

    move(policy, seed=1)
    gradient_P = flat_gradient(policy, value())
    way_P, length = gradient_P / gradient_P.norm(), 1 / (points - 1)
    nudge(policy, way_P, -0.5)
    values, slopes = list[float](), list[float]()
    for point in range(points):
        here = value()
        values.append(float(here.detach()))
        slopes.append(float(flat_gradient(policy, here) @ way_P))
        if point < points - 1:
            nudge(policy, way_P, length)
    return values[-1] - values[0], length * (sum(slopes) - (slopes[0] + slopes[-1]) / 2)


@pytest.mark.parametrize(
    ("law", "options", "share"),
    [
        ({"order": "random"}, WHOLE, 1.0),
        ({"order": "low_confidence"}, WHOLE, 0.57),
        ({"order": "threshold", "threshold": 0.6}, {"max_completion_length": 3}, 0.52),
    ],
)
def test_the_gradient_leaves_out_the_jumps_of_a_selection_by_drafts(
    law: dict[str, Any], options: dict[str, Any], share: float
) -> None:
    """docs/likelihoods.md: of the rise of the objective, the gradient accounts for all, or for this share; the rest are jumps."""
    rise, integral = climbed(small(law=law, **options))
    assert abs(rise) > 0.1
    assert integral / rise == pytest.approx(share, abs=0.01 if share == 1 else 0.08)


# ---------------------------------------------------------------------- supervised


def test_the_supervised_loss_is_the_bound_on_average() -> None:
    """Against every mask of every size, by plain forward passes; the prompt is clean and ends are learned."""
    policy = small(max_completion_length=3)
    example = Example(Prompt("ab"), "b")
    clean, sums = [A, B, B, END, END], []
    model, allowed_V = policy.network.module, torch.tensor([0.0, 0.0, -torch.inf, 0.0, -torch.inf])
    with torch.no_grad():
        for size in (1, 2, 3):
            for hidden in itertools.combinations((2, 3, 4), size):
                ids = [MASK if i in hidden else token for i, token in enumerate(clean)]
                logp = (model.logits(model.hidden(torch.tensor([ids]))[0]) + allowed_V).log_softmax(-1)
                sums.append(-sum(float(logp[i, clean[i]]) for i in hidden) * 3 / size / math.comb(3, size) / 3)
        losses = [policy.supervised_loss([example] * 16, Draws(seed, 0, 16, 16)) for seed in range(150)]
    each = torch.tensor([float(loss.total) / 16 for loss in losses])
    assert losses[0].targets == 48
    assert losses[0].nll == float(losses[0].total)
    assert abs(float(each.mean()) - sum(sums)) <= 4 * float(each.std()) / math.sqrt(150)


def test_long_answers_and_foreign_characters_are_refused() -> None:
    policy = small(max_completion_length=3)
    for prompt, target, message in (
        (Prompt("ab", id=7), "abab", "prompt 7 has 2 tokens and its answer 4"),
        (Prompt("ababab", id=8), "a", "the network has 8 positions"),
        (Prompt("a", id=9), "a█", "the answer to prompt 9 holds █"),
    ):
        with pytest.raises(RelgradError, match=message):
            policy.supervised_loss([Example(prompt, target)], seeded(0))
    for prompt, message in (
        (Prompt("xa", id=3), "prompt 3: .*not in the vocabulary"),
        (Prompt("a█", id=4), "policy.writes: holes"),
        (Prompt("ababab", id=5), "take 9 positions, and the network has 8"),
        (Prompt([{"role": "user", "content": "a"}], id=6), "prompt 6 is a chat"),
    ):
        with pytest.raises(RelgradError, match=message):
            policy.sample([prompt], 1, seeded(0))


# ---------------------------------------------------------------------- holes


def test_holes_are_filled_and_the_rest_stays() -> None:
    policy = small(writes="holes", max_completion_length=4, steps=2, law={"order": "random"})
    prompts = [Prompt("a██b█", id=0), Prompt("█", id=1), Prompt("b█a█bab█", id=2)]
    rollouts = policy.sample(prompts, 6, seeded(10))
    torch.testing.assert_close(scored(policy, rollouts), rollouts.behaviour_logp_BT[rollouts.mask_BT])
    for row, output in enumerate(rollouts.outputs):
        text = prompts[row // 6].text
        assert all(new in "ab" if old == BLANK else new == old for old, new in zip(text, output.text, strict=True))
    alone = policy.sample(prompts[1:2], 6, Draws.of(seeded(10), 3).part(1, 1))
    assert alone.outputs == rollouts.outputs[6:12]
    assert rollouts.mask_BT.sum(-1).tolist() == [2] * 6 + [1] * 6 + [2] * 6
    loss = policy.supervised_loss([Example(prompts[0], "aabba")], seeded(0))
    assert loss.targets == 3
    with pytest.raises(RelgradError, match="0 masked positions"):
        policy.sample([Prompt("ab")], 1, seeded(0))


def test_it_goes_on_from_a_generator_of_fill_in(tmp_path: Path) -> None:
    other = fill_in.build(fill_in.Settings(block_size=16, n_layer=1, n_head=1, n_embd=8, device="cpu"), seed=0)
    other.save(tmp_path)
    policy = unmasking.build(
        Settings(model=str(tmp_path), writes="holes", max_completion_length=4, device="cpu"), seed=0
    )
    assert torch.equal(policy.network.module.transformer.wte.weight, other.model.transformer.wte.weight)
    assert len(policy.sample([Prompt("an█ s█")], 1, seeded(0)).outputs[0].text) == 6


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "no policy gradient"),
        ({"law": {"order": "plackett_luce", "order_temperature": 0}}, "arg-max and has no policy"),
        ({"law": {"order": "random", "threshold": 0.5}}, "threshold=0.5 is for order: threshold, not for random"),
        ({"law": {"order": "remask", "confidence": "tempered"}}, "is for remask_by: confidence"),
        ({"law": {"order": "threshold", "threshold": 1.0}}, "0.999"),
        ({"max_completion_length": 10, "block_length": 4}, "no multiple of block_length=4"),
        ({"max_completion_length": 8, "block_length": 4, "steps": 3}, "give a multiple of 2"),
        ({"max_completion_length": 8, "evaluation_steps": 9}, "8 steps are enough"),
        ({"max_completion_length": 8, "train_steps": 9}, "at most 8 steps"),
        ({"network": {"n_embd": 10, "n_head": 4}}, "even number of dimensions"),
        ({"model": "no/such/folder"}, "no folder 'no/such/folder'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, RelgradError), match=message):
        unmasking.build(Settings(**settings, device="cpu"), seed=0)


def test_other_symbols_than_the_folders_are_refused(tmp_path: Path) -> None:
    small(**WHOLE).save(tmp_path)
    with pytest.raises(RelgradError, match="another vocabulary"):
        unmasking.build(Settings(model=str(tmp_path), symbols="ascii", device="cpu"), seed=0)
    assert (
        unmasking.build(Settings(model=str(tmp_path), max_completion_length=3, device="cpu"), seed=0).symbols.size == 5
    )
