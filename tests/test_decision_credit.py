"""Credit per decision: known answers, what is unscored, what is refused, and what the loop makes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fill_prompts
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt, RewardTable, Score
from relgrad.objectives.advantages import EPSILON, combine, combine_decisions, decision_advantages, group_advantages
from relgrad.objectives.losses import PolicyLoss
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

NAN = math.nan


def cells(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def group(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


# ---------------------------------------------------------------------- advantages of scores


def test_every_decision_is_compared_with_its_own_kind():
    # t = 0: 1 and 0, sample variance .5; t = 1: equal. Pooled: (.5 + 0) / 2 = .25, std .5
    advantage_BT = decision_advantages(cells([1, 7], [0, 7]), group(0, 0))
    assert advantage_BT[:, 0].tolist() == pytest.approx([0.5 / (0.5 + EPSILON), -0.5 / (0.5 + EPSILON)])
    assert advantage_BT[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_score_of_the_whole_row_gets_the_rows_advantage(scale, leave_one_out: bool):
    score_B = torch.tensor([1.0, 0.2, -3.0, 5.0, 5.0, 4.0, NAN], dtype=torch.float64)
    group_B = group(0, 0, 0, 1, 1, 1, 1)
    per_row_B = group_advantages(score_B, group_B, scale=scale, leave_one_out=leave_one_out)
    per_decision_BT = decision_advantages(
        score_B[:, None].expand(-1, 4), group_B, scale=scale, leave_one_out=leave_one_out
    )
    torch.testing.assert_close(per_decision_BT, per_row_B[:, None].expand(-1, 4), atol=1e-12, rtol=1e-12)


def test_leave_one_out_counts_the_scored_rows_of_the_decision():
    # t = 0: 1 - mean(2, 6) = -3, ...; t = 1: row 1 is unscored, so 4 - 8 and 8 - 4
    advantage_BT = decision_advantages(
        cells([1, 4], [2, NAN], [6, 8]), group(0, 0, 0), scale="none", leave_one_out=True
    )
    assert advantage_BT.tolist() == [pytest.approx(row) for row in ([-3, -4], [-1.5, 0], [4.5, 4])]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("constant", [0.1, 1 / 3, -7.7, 1e30])
def test_where_all_agree_the_advantage_is_exactly_zero(scale, constant: float):
    score_BT = torch.full((7, 3), constant, dtype=torch.float64)
    score_BT[0, 1], score_BT[3, 2], score_BT[1:, 0] = NAN, 2.0, NAN
    advantage_BT = decision_advantages(score_BT, torch.zeros(7, dtype=torch.int64), scale=scale)
    assert not advantage_BT[:, :2].any(), "one scored row, and six equal ones"
    assert advantage_BT[:, 2].any()


Cell = st.one_of(st.just(NAN), st.sampled_from([0.0, 1.0]), st.floats(-10, 10, width=16))


@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(Cell, Cell, Cell)), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_batch_equals_the_formula_written_out(rows: list[tuple[int, tuple[float, float, float]]]):
    advantage_BT = decision_advantages(cells(*(s for _, s in rows)), group(*(g for g, _ in rows)))
    assert not advantage_BT.isnan().any()
    for g in {g for g, _ in rows}:
        at = [i for i, (own, _) in enumerate(rows) if own == g]
        scored = [[(i, rows[i][1][t]) for i in at if not math.isnan(rows[i][1][t])] for t in range(3)]
        squares, freedom = 0.0, 0
        for column in scored:
            if len(column) > 1:
                squares += statistics.variance([v for _, v in column]) * (len(column) - 1)
                freedom += len(column) - 1
        std = math.sqrt(squares / max(freedom, 1))
        for t, column in enumerate(scored):
            values = dict(column)
            spread = len(set(values.values())) > 1
            for i in at:
                expected = (
                    (values[i] - statistics.fmean(values.values())) / (std + 1e-4) if spread and i in values else 0
                )
                assert advantage_BT[i, t].item() == pytest.approx(expected, abs=1e-9)


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="scale='std'"):
        decision_advantages(cells([1, 0]), group(0), scale="std")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- several rewards


def table(value: list[list[float]], decision: Any, weights: list[float]) -> RewardTable:
    names = tuple("abc"[: len(weights)])
    decision_BRT = None if decision is None else torch.tensor(decision, dtype=torch.float64)
    return RewardTable(
        names,
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(value, dtype=torch.float64),
        decision_BRT=decision_BRT,
    )


NONE = [NAN, NAN]


def test_a_reward_of_the_row_speaks_for_all_its_decisions():
    rewards = table([[0.5, 3], [0.5, 1]], [[[1, 0], NONE], [[0, 1], NONE]], [2.0, 0.5])
    credit = combine_decisions(rewards, group(0, 0), torch.ones(2, 2, dtype=torch.bool), scale="none")
    # totals 2*[1, 0] + 1.5 and 2*[0, 1] + .5
    assert credit.advantage_BT is not None
    assert credit.advantage_BT.tolist() == [[1.5, -0.5], [-1.5, 0.5]]
    assert credit.advantage_BT.dtype == torch.float32
    assert credit.advantage_B.tolist() == [0.5, -0.5]
    assert credit.reward_B.tolist() == [2.5, 1.5]
    assert credit.flat_G.tolist() == [False]


def test_a_monitor_takes_no_part():
    every = torch.ones(2, 2, dtype=torch.bool)
    rewards = table([[0.5, 9], [0.5, NAN]], [[[1, 0], [9, 0]], [[0, 1], NONE]], [1.0, 0.0])
    alone = table([[0.5], [0.5]], [[[1, 0]], [[0, 1]]], [1.0])
    found, expected = (combine_decisions(r, group(0, 0), every) for r in (rewards, alone))
    assert torch.equal(found.advantage_BT, expected.advantage_BT)
    assert torch.equal(found.reward_B, expected.reward_B)
    only_watched = table(
        [[NAN, 1], [NAN, 0], [1, 0], [0, 0]], [[NONE, NONE]] * 2 + [[[1, 1], NONE], [[0, 0], NONE]], [1, 0]
    )
    credit = combine_decisions(only_watched, group(0, 0, 1, 1), torch.ones(4, 2, dtype=torch.bool))
    assert credit.reward_B.isnan().tolist() == [True, True, False, False]
    assert not credit.advantage_BT[:2].any()
    assert credit.flat_G.tolist() == [True, False]


def test_groups_may_differ_in_their_decisions_and_padding_is_nothing():
    mask_BT = torch.tensor([[True, False], [True, False], [True, True], [True, True]])
    rewards = table([[1], [0], [0.5], [0.5]], [[[1, NAN]], [[0, NAN]], [[1, 0]], [[0, 1]]], [1.0])
    credit = combine_decisions(rewards, group(0, 0, 1, 1), mask_BT)
    one = math.sqrt(0.5) * 0.5 / (0.5 + EPSILON * math.sqrt(0.5))  # .5 / (sqrt(.5) + 1e-4)
    assert credit.advantage_BT.tolist() == [
        pytest.approx(r, abs=1e-6) for r in ([one, 0], [-one, 0], [one, -one], [-one, one])
    ]
    assert credit.advantage_B.tolist() == pytest.approx([one, -one, 0, 0], abs=1e-6)
    # the two completions are equally good as wholes, but not decision by decision
    assert combine(rewards, group(0, 0, 1, 1)).flat_G.tolist() == [False, True]
    assert credit.flat_G.tolist() == [False, False]


def test_a_row_that_failed_is_left_out_even_if_its_decisions_were_scored():
    rewards = table([[NAN], [1], [0]], [[[9, 9]], [[1, 1]], [[0, 0]]], [1.0])
    credit = combine_decisions(rewards, group(0, 0, 0), torch.ones(3, 2, dtype=torch.bool))
    assert not credit.advantage_BT[0].any()
    assert (credit.advantage_BT[1] > 0).all()
    assert torch.equal(credit.advantage_BT[1], -credit.advantage_BT[2])


@pytest.mark.parametrize("decision", [None, [[NONE, [1, 0]], [NONE, [0, 1]]]], ids=["nobody", "only the monitor"])
def test_somebody_must_score_decisions(decision):
    rewards = table([[1, 0.5], [0, 0.5]], decision, [1.0, 0.0])
    with pytest.raises(RelgradError, match=r"needs a reward that scores decisions .*but a scored whole.*credit: row"):
        combine_decisions(rewards, group(0, 0), torch.ones(2, 2, dtype=torch.bool))


def test_a_reward_that_failed_on_the_whole_batch_may_be_the_one():
    rewards = table([[1, NAN], [0, NAN]], None, [1.0, 1.0])
    credit = combine_decisions(rewards, group(0, 0), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(credit.advantage_BT[:, 0], combine(rewards, group(0, 0)).advantage_B)


def test_rows_of_a_group_must_make_the_same_decisions():
    rewards = table([[1], [0], [NAN]], [[[1, 1]], [[0, NAN]], [NONE]], [1.0])
    mask_BT = torch.tensor([[True, True], [True, False], [False, False]])
    with pytest.raises(RelgradError, match=r"those of group 0 have \[1, 2\] of them\. Use credit: row"):
        combine_decisions(rewards, group(0, 0, 0), mask_BT)
    credit = combine_decisions(rewards, group(0, 1, 1), mask_BT)  # a row that was not scored is compared with nobody
    assert credit.flat_G.tolist() == [True, True]


# ---------------------------------------------------------------------- in the loop


def loop(rewards: list[NamedReward], prompts: Sequence[Prompt] = fill_prompts.PROMPTS, **options: Any) -> Grpo:
    chosen = GrpoSettings(
        **{"num_prompts": 4, "num_generations": 4, "learning_rate": 0.01, "credit": "decision", **options}
    )
    loss = PolicyLoss(**{name: getattr(chosen, name) for name in PolicyLoss.__dataclass_fields__})
    return Grpo(fill_prompts.policy(), prompts, RewardSet(rewards, 60), loss, chosen, seed=7)


def gradient(made: Grpo) -> Tensor:
    """The accumulated gradient as one vector, cleared."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in made.policy.parameters()]
    made.optimizer.clear()
    return torch.cat([p.flatten() for p in parts])


RIGHT = NamedReward("right", fill_prompts.right)


def test_the_gradient_credits_every_position_by_itself():
    made = loop([RIGHT], loss_type="reinforce", scale_rewards="none")
    made.batch = batch = made.generate()
    made._accumulate(batch, torch.arange(16))
    found = gradient(made)
    # by hand: position by position, 1 where the character is the true one, minus the group's share of true ones
    (part,) = (part.rollouts for part in batch.parts)
    total = torch.zeros(())
    for row, t in part.cells().tolist():
        g = int(part.group_B[row])
        columns = part.prompts[g].columns
        position = [i for i, v in enumerate(columns["masked_ids"]) if v == fill_prompts.VOCABULARY.mask_id][t]
        hits = [float(part.outputs[4 * g + k].ids[position] == columns["truth_ids"][position]) for k in range(4)]
        logp = made.policy.score(part, torch.tensor([[row, t]])).logp_N[0]
        total = total - (hits[row - 4 * g] - sum(hits) / 4) * logp / 16
    total.backward()
    by_hand = gradient(made)
    assert by_hand.abs().max() > 0.01
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(batch.advantage_BT, batch.advantage_B[:, None].expand_as(batch.advantage_BT))
    assert [s["advantage"] for s in batch.samples] == pytest.approx(batch.advantage_B.tolist())


def test_replaced_groups_and_parts_of_different_width():
    """Rounds of other prompts have other numbers of decisions; what was replaced gets no credit and gives none."""
    made = loop([RIGHT], max_resamples=2, num_prompts=2, num_generations=2)
    widths, replaced = set(), 0
    for _ in range(12):
        batch = made.generate()
        widths |= {len({part.rollouts.mask_BT.shape[1] for part in batch.parts})}
        replaced += int((~batch.keep_B).sum())
        assert batch.advantage_BT.shape == batch.mask_BT.shape
        assert not batch.advantage_BT[~batch.keep_B].any()
        assert not batch.advantage_BT[~batch.mask_BT].any()
        for g in batch.group_B.unique():
            assert batch.advantage_BT[batch.group_B == g].sum(0).abs().max() < 1e-5
    assert widths >= {1, 2}, "no batch had parts of different width"
    assert replaced, "no group was replaced"


def test_both_credits_are_unbiased_and_per_decision_has_less_noise():
    """Along the exact gradient of the mean share of true characters, which has a closed form in one fill-in step."""
    asked = fill_prompts.prompt("abcdabcd", (0, 2, 3, 5, 6, 7))
    along: dict[str, Tensor] = {}
    for credit in ("row", "decision"):
        made = loop([RIGHT], [asked], credit=credit, loss_type="reinforce", scale_rewards="none", leave_one_out=True,
                    num_prompts=1, num_generations=4)  # fmt: skip
        exact = gradient_of_truth(made, asked)
        found = []
        for _ in range(400):
            made.batch = made.generate()
            made._accumulate(made.batch, torch.arange(4))
            estimate = -gradient(made)  # none where all four are equally good
            # a row's value is the mean over its six decisions, the scores of decisions are whole
            found.append(estimate @ exact / (exact @ exact) / (6 if credit == "decision" else 1))
        along[credit] = torch.stack(found)
    for credit, values in along.items():
        assert float(values.mean()) == pytest.approx(1, abs=4 * float(values.std()) / 20), credit
    assert along["decision"].var() < 0.4 * along["row"].var()


def gradient_of_truth(made: Grpo, asked: Prompt) -> Tensor:
    """d/dtheta of the expected share of true characters, the mean of their probabilities."""
    truth_ids, masked_ids = asked.columns["truth_ids"], asked.columns["masked_ids"]
    holes = [i for i, v in enumerate(masked_ids) if v == fill_prompts.VOCABULARY.mask_id]
    policy: Any = made.policy
    logits_TV = policy.model.logits(policy.model.hidden(torch.tensor([masked_ids]))[0, holes])
    p_TV = logits_TV[:, : fill_prompts.VOCABULARY.base].softmax(-1)
    p_TV[torch.arange(len(holes)), [truth_ids[i] for i in holes]].mean().backward()
    return gradient(made)


def test_the_settings_refuse_what_has_no_meaning_per_decision():
    with pytest.raises(ValueError, match="credit='decision' with kl_estimator='k1'"):
        GrpoSettings(credit="decision", beta=0.1, kl_estimator="k1")
    with pytest.raises(ValueError, match=r"credit='decision' with multi_objective_aggregation='normalize_then_sum'"):
        GrpoSettings(credit="decision", multi_objective_aggregation="normalize_then_sum")


# ---------------------------------------------------------------------- from rewards to the table


def scores(*given: Score) -> RewardTable:
    """The table of one group of fill-in completions that were scored so."""
    made = fill_prompts.policy()
    rollouts = made.sample(fill_prompts.PROMPTS[:1], len(given), torch.Generator().manual_seed(0))
    rewards = RewardSet([NamedReward("x", lambda prompt, outputs: list(given)), RIGHT], 60)
    return rewards(rollouts)


def test_scores_of_decisions_reach_the_table():
    found = scores(
        Score(0.5, per_decision=(1.0, 0.0, math.inf)), Score(0.25), Score(NAN, per_decision=(1.0, 1.0, 1.0))
    ).decision_BRT
    assert found is not None
    assert found.dtype == torch.float64
    assert found[0, 0, :2].tolist() == [1, 0]
    assert found[0, 0, 2].isnan(), "what is infinite is unscored"
    assert found[1, 0].isnan().all()
    assert found[2, 0].isnan().all(), "the completion itself is unscored"
    assert not found[:, 1].isnan().any()


def test_there_is_no_table_of_decisions_where_nobody_scores_them():
    made = fill_prompts.policy()
    rollouts = made.sample(fill_prompts.PROMPTS[:2], 2, torch.Generator().manual_seed(0))
    rewards = RewardSet([NamedReward("x", lambda completions: [float(len(c)) for c in completions])], 60)
    assert rewards(rollouts).decision_BRT is None


def test_the_wrong_number_of_scores_is_an_error():
    message = r"reward 'x' gave 2 scores per decision for a completion of 3 decisions; give exactly one each"
    with pytest.raises(RelgradError, match=message):
        scores(Score(0.5, per_decision=(1.0, 0.0)))


def test_scores_go_to_the_places_of_the_decisions():
    """A policy may have places in a row that are not its own: they are skipped."""
    made = fill_prompts.policy()
    rollouts = made.sample(fill_prompts.PROMPTS[:1], 2, torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[True, False, True]] * 2)

    def two(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        return [Score(1.0, per_decision=(1.0, 2.0)) for _ in outputs]

    found = RewardSet([NamedReward("x", two)], 60)(replace(rollouts, mask_BT=mask_BT)).decision_BRT
    assert found[0, 0].nan_to_num(-1).tolist() == [1, -1, 2]
