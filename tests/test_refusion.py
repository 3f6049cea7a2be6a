"""ReFusion: its layout, its supervised loss and its own decoding, each against a slow computation by transformers' own Qwen3."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import slow_refusion
from enumerated import move, seeded
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.core.types import Example, Prompt
from relgrad.networks.refusion.layout import Places
from relgrad.policies.refusion import native, toy
from relgrad.policies.refusion.open import Opened
from relgrad.policies.refusion.policy import RefusionPolicy
from relgrad.policies.refusion.settings import Native, Settings
from relgrad.policies.refusion.supervised import EPS, Cut, draw_cuts, refusion_loss, show

PROMPTS = (Prompt("a b", id=0), Prompt("b", id=1), Prompt("a a b a", id=2))


def small(**options: Any) -> RefusionPolicy:
    settings = Settings(**{"model": "toy", "device": "cpu", "max_completion_length": 12, "slot_size": 2, **options})
    policy = RefusionPolicy(Opened(toy.network(), toy.tokenizer(), 3, "toy"), settings)
    policy.freeze_reference()
    return policy


def fewer_ends(policy: RefusionPolicy) -> RefusionPolicy:
    """Ends are rare enough that slots of many steps are written."""
    with torch.no_grad():
        policy.model.lm_head.weight[0] *= 0.2
    return policy


# ---------------------------------------------------------------------- sampled and scored


@pytest.mark.parametrize(
    "options",
    [
        {"slot_size": 3, "sampling_steps": 2},
        {"serial_num_blocks": 3, "sampling_steps": 3, "top_p": 0.8, "slot_temperature": 0.1},
        {"sampling_steps": 4, "temperature": 0.8},
    ],
)
def test_steps_are_as_probable_as_transformers_own_qwen3_says(options: dict[str, Any]) -> None:
    policy = fewer_ends(small(**options))
    move(policy)
    rollouts = policy.sample(PROMPTS, 5, seeded(1))
    expected_N = toy.untouched_log_probs(policy, rollouts)[rollouts.mask_BT]
    scored_N = policy.score(rollouts, rollouts.cells()).logp_N.detach()
    # each of some ten choices in a step is rounded by 2^-24 of logits of up to 2^4
    tolerance = 2**-24 * 2**4 * 10
    assert float((rollouts.behaviour_logp_BT[rollouts.mask_BT] - expected_N).abs().max()) < 2 * tolerance
    assert float((scored_N - expected_N).abs().max()) < 2 * tolerance
    assert {"eos", "length"} <= set(rollouts.stop), "one kind of ending is not tested"
    slots_B = (rollouts.trace["slot_BTK"] >= 0).flatten(1).sum(-1)
    assert int(slots_B.max()) == policy.schedule.slots


def test_texts_are_what_the_slots_hold_in_order() -> None:
    policy = fewer_ends(small(sampling_steps=3))
    rollouts = policy.sample(PROMPTS, 20, seeded(2))
    for row in range(rollouts.rows):
        held: dict[int, int] = {}
        for slots, texts in zip(
            rollouts.trace["slot_BTK"][row].tolist(), rollouts.trace["token_BTKS"][row].tolist(), strict=True
        ):
            held |= {
                s * 2 + n: i
                for s, text in zip(slots, texts, strict=True)
                for n, i in enumerate(text)
                if s >= 0 and i >= 0
            }
        end = min((place for place, token in held.items() if token == 0), default=12)
        assert rollouts.outputs[row].ids == tuple(held[place] for place in range(end)), "a gap before the end"
        assert rollouts.stop[row] == ("eos" if end < 12 else "length")
        assert int(rollouts.size_BT[row].sum()) == min(end + 1, 12)


def test_nothing_written_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through the network while sampling: the prompts once, every token written at most once, and masks."""
    policy = fewer_ends(small(sampling_steps=3))
    passed: list[Places] = []
    hidden = policy.network.hidden

    def counted(places: Places, queries: int | None = None, cache: Any = None) -> Tensor:
        count = places.token_RW.shape[1] if queries is None else queries
        passed.append(Places(*(column[:, -count:] for column in places)))
        return hidden(places, queries, cache)

    monkeypatch.setattr(policy.network, "hidden", counted)
    rollouts = policy.sample(PROMPTS[:1], 4, seeded(3))
    prompt, rest = passed[0], passed[1:]
    assert prompt.token_RW.shape == (1, 2), "the prompt is computed once for its group"
    for row in range(4):
        written = [
            place
            for p in rest
            for place, kept in zip(p.position_RW[row].tolist(), p.kept_RW[row].tolist(), strict=True)
            if kept
        ]
        assert len(written) == len(set(written))
        assert len(written) <= int((rollouts.trace["token_BTKS"][row] >= 0).sum())


def test_some_steps_are_trained_and_stand_for_all() -> None:
    policy = fewer_ends(small(sampling_steps=6, train_steps=2))
    rollouts = policy.sample(PROMPTS, 50, seeded(4))
    assert rollouts.stands_for == 3
    assert int(rollouts.mask_BT.sum(-1).max()) == 2
    with policy.evaluation():
        assert policy.sample(PROMPTS, 2, seeded(4)).stands_for == 1


def test_films_tell_step_by_step_what_was_written() -> None:
    policy = fewer_ends(small(sampling_steps=3, temperature=0.8))
    rollouts = policy.sample(PROMPTS, 4, seeded(5))
    for row, film in enumerate(policy.film(PROMPTS, 4, seeded(5))):
        frames = film["frames"]
        assert film["final"] == rollouts.outputs[row].text
        assert [f["logp"] for f in frames[1:]] == rollouts.behaviour_logp_BT[row][rollouts.mask_BT[row]].tolist()
        assert frames[0]["masked"] == list(range(12))
        for before, after in pairwise(frames):
            assert sorted([*after["filled"], *after["masked"]]) == before["masked"]
            assert all(0 < after["confidence"][place] <= 1 for place in after["filled"])
            written = {place // 2 for place in after["filled"]}
            assert written == set(rollouts.trace["slot_BTK"][row, after["step"] - 1].tolist()) - {-1}
        end = frames[-1]["end"]
        assert end == (len(film["ids"]) if rollouts.stop[row] == "eos" else None)
        assert film["tokens_per_forward"] > 0


# ---------------------------------------------------------------------- supervised


def test_an_example_is_shown_as_the_paper_says() -> None:
    cut = Cut(2, 0.5, torch.tensor([False, True, False, True]), torch.tensor([0.9, 0.0, 0.3, 0.0]))
    row = show(torch.tensor([7, 8]), torch.tensor([10, 11, 12, 13, 14, 15, 16]), cut, mask_id=99)
    assert row.token_W.tolist() == [7, 8, 14, 15, 10, 11, 99, 99, 99], "clean slots shuffled, then masks in order"
    assert row.position_W.tolist() == [0, 1, 6, 7, 2, 3, 4, 5, 8]
    assert row.label_W.tolist() == [-1, -1, 15, -1, 11, -1, 12, 13, 16], (
        "shifted in clean slots, at their own place in masked ones"
    )
    assert row.weight_W[row.label_W >= 0].tolist() == [3.5, 3.5, 2, 2, 2]


def slow_loss(policy: RefusionPolicy, prompt: Tensor, answer: Tensor, cut: Cut) -> Tensor:
    """The public code's loss of one example, from lists: AR mean + MDM sum / (p n)."""
    slots = [list(range(first, min(first + cut.size, len(answer)))) for first in range(0, len(answer), cut.size)]
    masked = [n for n in range(len(slots)) if cut.masked_N[n]]
    clean = sorted((n for n in range(len(slots)) if not cut.masked_N[n]), key=lambda n: float(cut.order_N[n]))
    ids, positions, ar, mdm = prompt.tolist(), list(range(len(prompt))), [], []
    for n in clean:
        for place in slots[n]:
            if place + 1 in slots[n]:
                ar.append((len(ids), int(answer[place + 1])))
            ids.append(int(answer[place]))
            positions.append(len(prompt) + place)
    for n in masked:
        for place in slots[n]:
            mdm.append((len(ids), int(answer[place])))
            ids.append(policy.network.mask_id)
            positions.append(len(prompt) + place)
    logits_LV = policy.model(torch.tensor([ids]), position_ids=torch.tensor([positions])).logits[0].clone()
    logits_LV[:, policy.network.mask_id] = -torch.inf
    loss = torch.zeros(())
    if ar:
        loss = loss + cross_entropy(logits_LV[[i for i, _ in ar]], torch.tensor([t for _, t in ar]))
    if mdm:
        each = cross_entropy(logits_LV[[i for i, _ in mdm]], torch.tensor([t for _, t in mdm]), reduction="none")
        loss = loss + (each / cut.p_mask / len(answer)).sum()
    return loss


def test_the_supervised_loss_is_the_papers_on_every_example() -> None:
    policy = small(slot_sizes=(2, 3))
    draw = seeded(5)
    pairs = [
        (torch.randint(0, 3, (2 + n % 3,), generator=draw), torch.randint(0, 3, (4 + n,), generator=draw))
        for n in range(6)
    ]
    draws = Draws.of(seeded(6), len(pairs))
    loss = refusion_loss(policy.network, pairs, (2, 3), draws)
    cuts = draw_cuts(Draws.of(seeded(6), len(pairs)), (2, 3), [len(answer) for _, answer in pairs])
    expected = sum(slow_loss(policy, *pair, cut).detach() * len(pair[1]) for pair, cut in zip(pairs, cuts, strict=True))
    assert len({cut.size for cut in cuts}) == 2
    assert loss.targets == sum(len(answer) for _, answer in pairs)
    assert float(loss.total.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert loss.nll is None
    parts = Draws.of(seeded(6), len(pairs))
    halves = [refusion_loss(policy.network, pairs[f : f + 3], (2, 3), parts.part(f, 3)) for f in (0, 3)]
    assert sum(float(half.total.detach()) for half in halves) == pytest.approx(float(loss.total.detach()), rel=1e-5), (
        "examples beside matter"
    )


def test_slots_are_masked_as_often_as_is_said() -> None:
    cuts = draw_cuts(Draws.of(seeded(7), 4000), (4, 8), [32] * 4000)
    share = torch.stack([cut.masked_N[:4].double().mean() - cut.p_mask for cut in cuts])
    assert abs(float(share.mean())) < 4 * float(share.std()) / 4000**0.5
    assert min(cut.p_mask for cut in cuts) >= EPS
    assert abs(sum(cut.size == 4 for cut in cuts) - 2000) < 4 * 1000**0.5


def test_ends_fill_an_answer_where_that_is_asked_for() -> None:
    examples = [Example(PROMPTS[0], "a b a"), Example(PROMPTS[1], "b")]
    assert small().supervised_loss(examples, seeded(8)).targets == 4 + 2
    assert small(fill_with_end=True).supervised_loss(examples, seeded(8)).targets == 12 + 12


# ---------------------------------------------------------------------- its own decoding


def natively(policy: RefusionPolicy, prompt: Prompt, **settings: float) -> list[int]:
    chosen = Native(**settings)
    ids = policy.encode(prompt)
    return native.decode(policy.network, ids, policy.schedule, chosen, policy.end_ids, seeded(0)).ids


def slowly(policy: RefusionPolicy, prompt: Prompt, slot_threshold: float, token_threshold: float) -> list[int]:
    slow = slow_refusion.Slowly(
        policy.model, [3], 3, policy.schedule.size, slot_threshold, token_threshold, set(policy.end_ids.tolist())
    )
    return slow_refusion.decode(slow, policy.encode(prompt).tolist(), policy.schedule.slots, policy.schedule.serial)


@pytest.mark.parametrize("thresholds", [(0.9, 0.9), (0.5, 0.6), (0.3, 0.95), (0.0, 0.4)])
@pytest.mark.parametrize("shape", [{"slot_size": 4}, {"slot_size": 3, "serial_num_blocks": 2}])
def test_native_decoding_writes_what_the_algorithm_writes(
    shape: dict[str, int], thresholds: tuple[float, float]
) -> None:
    """Over networks with rare and with frequent ends, and of all thresholds."""
    lengths = set()
    for seed in range(3):
        policy = small(**shape, sampling_steps=2)
        move(policy, scale=0.2, seed=seed)
        policy = fewer_ends(policy) if seed else policy
        for prompt in PROMPTS:
            expected = slowly(policy, prompt, *thresholds)
            assert natively(policy, prompt, slot_threshold=thresholds[0], token_threshold=thresholds[1]) == expected
            lengths.add(len(expected))
    assert len(lengths) > 1


def test_native_decoding_has_no_log_probabilities() -> None:
    policy = small(native=Native(slot_threshold=0.5, token_threshold=0.5))
    assert policy.sample(PROMPTS, 2, seeded(9)).mask_BT.any(), "training samples"
    with policy.evaluation():
        rollouts = policy.sample(PROMPTS, 2, seeded(9))
    assert not rollouts.mask_BT.any()
    assert rollouts.outputs[0] == rollouts.outputs[1], "nothing is random at temperature 0"
    expected = natively(policy, PROMPTS[0], slot_threshold=0.5, token_threshold=0.5)
    assert int(rollouts.size_BT[0].sum()) == len(expected)
    assert rollouts.outputs[0].ids == tuple(i for i in expected if i != 0)
    film = policy.film(PROMPTS[:1], 1, seeded(9))[0]
    assert film["final"] == rollouts.outputs[0].text
    assert 0 < film["tokens_per_forward"] <= 2, "each round drafts and reads, and a slot has two tokens"
    with pytest.raises(RelgradError, match="native decoding has no log-probabilities"), policy.start_at(0.5):
        pass


def test_noise_on_drafts_is_a_function_of_the_generator() -> None:
    policy = fewer_ends(small(native=Native(slot_threshold=0.3, token_threshold=0.2, temperature=1.5)))
    with policy.evaluation():
        first, again, other = (policy.sample(PROMPTS, 4, seeded(seed)).outputs for seed in (10, 10, 11))
    assert first == again
    assert len(set(first[:4])) > 1
    assert first != other


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_completion_length": 10, "slot_size": 4}, "take 8 or 12"),
        ({"sampling_steps": 5, "serial_num_blocks": 2}, "cannot be shared out"),
        ({"train_steps": 20}, "train_steps=20"),
        ({"native": Native(), "evaluation_steps": 4}, "leave evaluation_steps or native out"),
        ({"temperature": 0}, "greater than 0"),
        ({"dtype": "bfloat16"}, "add a lora section"),
        ({"quantize": "4bit"}, "add a lora section"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**{"max_completion_length": 16, "slot_size": 4, **options})
