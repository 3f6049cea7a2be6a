"""Evaluation on the table policy, whose expected reward is known exactly by enumeration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import toy_policy
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Toy
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Output, Prompt, RewardTable, Rollouts
from relgrad.evaluation.held_out import Evaluation, compare, compare_rewards, evaluate
from relgrad.evaluation.statistics import bootstrap_mean, paired_difference
from relgrad.laws.categorical import Truncation
from relgrad.objectives.divergences import categorical_kl
from toy_policy import share_of_b


class Scores:
    """Rewards by plain functions of the output; a None is unscored."""

    def __init__(self, *functions: Callable[[Output], float | None], weights: tuple[float, ...] = ()) -> None:
        self.functions = functions
        self.names = tuple(f"r{i}" for i in range(len(functions)))
        self.weights_R = torch.tensor(weights or [1.0] * len(functions), dtype=torch.float64)

    def __call__(self, rollouts: Rollouts) -> RewardTable:
        values = [[math.nan if (v := f(o)) is None else v for f in self.functions] for o in rollouts.outputs]
        return RewardTable(self.names, self.weights_R, torch.tensor(values, dtype=torch.float64))


def ends_in_b(output: Output) -> float:
    return float(output.text.endswith("b"))


def only_short(output: Output) -> float | None:
    return None if len(output.text) == 3 else 1.0


@pytest.fixture
def toy() -> Toy:
    return toy_policy.toys()["plain"]()


def many(n: int) -> list[Prompt]:
    return [Prompt("xy"[i % 2], id=i) for i in range(n)]


def exact(toy: Toy, prompt: Prompt, value: Callable[[Output], float]) -> float:
    rollouts = toy.enumerate(prompt)
    values = torch.tensor([value(o) for o in rollouts.outputs])
    return float((rollouts.behaviour_logp_BT.sum(-1).exp() * values).sum())


def test_the_score_is_the_expected_reward(toy: Toy):
    result = evaluate(toy.policy, many(60), Scores(share_of_b), num_generations=50, seed=1)
    expected = [exact(toy, prompt, share_of_b) for prompt in toy.prompts]
    assert abs(expected[0] - expected[1]) > 0.05  # the prompts differ, so the interval has a width of its own
    assert result.score == pytest.approx(sum(expected) / 2, abs=0.03)
    assert result.low < sum(expected) / 2 < result.high
    assert result.prompts == len(result.per_prompt) == 60
    assert (result.low, result.high) == bootstrap_mean(result.per_prompt)[1:]
    length = [exact(toy, p, lambda o: min(len(o.text) + 1, 3)) for p in toy.prompts]
    assert result.mean_length == pytest.approx(sum(length) / 2, abs=0.1)
    whole = [exact(toy, p, lambda o: float(len(o.text) == 3)) for p in toy.prompts]
    assert result.stop["length"] == pytest.approx(sum(whole) / 2, abs=0.03)
    assert result.stop["eos"] + result.stop["length"] == pytest.approx(1)
    assert result.stop["error"] == 0
    assert result.unscored == 0


def test_pass_at_k_only_of_zeros_and_ones(toy: Toy):
    result = evaluate(toy.policy, many(80), Scores(ends_in_b), num_generations=8, seed=2)
    p = [exact(toy, prompt, ends_in_b) for prompt in toy.prompts]
    assert list(result.pass_at_k) == [1, 2, 4, 8]
    for k, got in result.pass_at_k.items():
        assert got == pytest.approx(sum(1 - (1 - q) ** k for q in p) / 2, abs=0.06)
    assert result.pass_at_k[1] == pytest.approx(result.score)
    assert evaluate(toy.policy, many(4), Scores(share_of_b), num_generations=8, seed=2).pass_at_k == {}


def test_weights_and_unscored_completions(toy: Toy):
    rewards = Scores(only_short, share_of_b, weights=(1.0, 3.0))
    result = evaluate(toy.policy, many(40), rewards, num_generations=20, seed=3)
    assert result.rewards["r0"] == 1.0
    assert result.rewards["r1"] == pytest.approx(sum(exact(toy, p, share_of_b) for p in toy.prompts) / 2, abs=0.05)
    # a long completion lacks the first reward and counts as the short ones of its prompt: neither better nor worse for it
    assert result.score == pytest.approx(1 + 3 * result.rewards["r1"])
    assert result.stop["length"] > 0
    assert result.unscored == 0

    result = evaluate(toy.policy, many(40), Scores(only_short), num_generations=2, seed=3)
    assert result.score == 1.0
    assert result.unscored == round(result.stop["length"] * 80) > 0
    assert result.prompts == sum(not math.isnan(s) for s in result.per_prompt) < 40


def test_an_evaluation_is_judged_as_a_whole(toy: Toy):
    """Batches without any score are bad luck; an evaluation without any is a mistake, and neither is 0."""
    seen: list[int] = []

    def late(output: Output) -> float | None:
        seen.append(1)
        return 0.5 if len(seen) > 60 else None

    result = evaluate(toy.policy, many(40), Scores(late), num_generations=2, seed=0, batch_prompts=4)
    assert result.score == 0.5
    assert (result.prompts, result.unscored) == (10, 60)
    with pytest.raises(RelgradError, match="none of 6 completions could be scored"):
        evaluate(toy.policy, many(3), Scores(lambda output: None), num_generations=2, seed=0)


def test_the_same_seed_gives_the_same_figures_and_moves_no_other_randomness(toy: Toy):
    state = torch.get_rng_state()
    first, again, other = (
        evaluate(toy.policy, many(10), Scores(share_of_b), num_generations=4, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.per_prompt != other.per_prompt
    assert torch.equal(torch.get_rng_state(), state)
    assert toy.policy.version == 0


def test_batches_and_progress(toy: Toy):
    seen: list[tuple[int, int]] = []
    result = evaluate(
        toy.policy,
        many(10),
        Scores(share_of_b),
        num_generations=2,
        seed=0,
        batch_prompts=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert result.ids == tuple(range(10))
    assert [s["prompt"] for s in result.samples] == ["x", "y"] * 5
    assert all(s["score"] == share_of_b(Output(s["completion"])) for s in result.samples)


def test_no_prompts_is_an_error(toy: Toy):
    with pytest.raises(RelgradError, match="no prompts"):
        evaluate(toy.policy, [], Scores(share_of_b), num_generations=2, seed=0)


def test_compare_pairs_by_prompt(toy: Toy):
    before = evaluate(toy.policy, many(40), Scores(share_of_b), num_generations=16, seed=0)
    with torch.no_grad():
        dict(toy.policy.parameters())["table_PSV"][..., 2] += 1.0  # "b" becomes likelier everywhere
    after = evaluate(toy.policy, many(40), Scores(share_of_b), num_generations=16, seed=0)
    difference = compare(before, after)
    assert difference == paired_difference(before.per_prompt, after.per_prompt)
    assert difference.value == pytest.approx(after.score - before.score)
    assert difference.low > 0
    assert compare(after, after) == (0, 0, 0)
    fewer = evaluate(toy.policy, many(39), Scores(share_of_b), num_generations=16, seed=0)
    with pytest.raises(RelgradError, match="40 before, 39 after"):
        compare(before, fewer)


def test_the_record_survives_the_run_folder(toy: Toy, tmp_path):
    start = evaluate(toy.policy, many(12), Scores(only_short), num_generations=1, seed=0)
    end = evaluate(toy.policy, many(12), Scores(only_short), num_generations=1, seed=1, divergence=True)
    record = end.to_record(7, "held_out", start)
    assert {"step", "name", "score", "low", "high", "n", "per_prompt", "samples"} <= record.keys()
    assert (record["difference"], record["difference_low"], record["difference_high"]) == compare(start, end)
    assert "difference" not in start.to_record(0, "held_out")
    run = RunDir(tmp_path)
    run.append("evaluations.jsonl", record)
    (line,) = run.lines("evaluations.jsonl")
    back = Evaluation.from_record(line)
    assert json.dumps(back.to_record(7, "held_out", start)) == json.dumps(record)
    assert back.ids == end.ids
    assert any(math.isnan(score) for score in back.per_prompt)


def favour_b(toy: Toy, by: float = 1.0) -> None:
    with torch.no_grad():
        dict(toy.policy.parameters())["table_PSV"][..., 2] += by


def test_every_reward_is_compared_by_prompt(toy: Toy):
    """Also one that only watches, and one that cannot score every completion."""
    rewards = Scores(share_of_b, ends_in_b, only_short, weights=(1.0, 0.0, 0.5))
    before = evaluate(toy.policy, many(30), rewards, num_generations=4, seed=0)
    favour_b(toy)
    after = evaluate(toy.policy, many(30), rewards, num_generations=4, seed=1)
    found = compare_rewards(before, after)
    assert found.keys() == {"r0", "r1", "r2"}
    for name, difference in found.items():
        assert difference == paired_difference(before.per_prompt_rewards[name], after.per_prompt_rewards[name])
    assert found["r0"].low > 0
    assert found["r0"].value == pytest.approx(after.rewards["r0"] - before.rewards["r0"])
    assert any(math.isnan(v) for v in after.per_prompt_rewards["r2"]), "nothing but long completions for some prompt"
    record = after.to_record(3, "held-out", before)
    assert record["reward_differences"] == {name: list(interval) for name, interval in found.items()}
    with pytest.raises(RelgradError, match="different prompts"):
        compare_rewards(before, evaluate(toy.policy, many(29), rewards, num_generations=4, seed=0))


def test_the_means_per_prompt_are_unweighted(toy: Toy):
    result = evaluate(toy.policy, many(6), Scores(share_of_b, ends_in_b, weights=(3.0, 0.0)), num_generations=1, seed=0)
    assert result.per_prompt_rewards["r0"] == pytest.approx(
        [share_of_b(Output(s["completion"])) for s in result.samples]
    )
    assert result.per_prompt_rewards["r1"] == tuple(ends_in_b(Output(s["completion"])) for s in result.samples)
    assert result.per_prompt == pytest.approx([3 * v for v in result.per_prompt_rewards["r0"]])


def test_a_monitor_alone_scores_nothing(toy: Toy):
    with pytest.raises(RelgradError, match="none of 12 completions could be scored"):
        evaluate(
            toy.policy, many(6), Scores(lambda output: None, share_of_b, weights=(1.0, 0.0)), num_generations=2, seed=0
        )


def test_the_divergence_is_exact_and_at_the_start_nothing(toy: Toy):
    policy: Any = toy.policy
    start = evaluate(policy, many(40), Scores(share_of_b), num_generations=8, seed=0, divergence=True)
    assert start.kl == pytest.approx(0, abs=1e-6)
    favour_b(toy, 0.7)
    moved = evaluate(policy, many(40), Scores(share_of_b), num_generations=50, seed=0, divergence=True)
    # expected number of visits of every state, and the divergence and entropy of the law there
    total = torch.zeros(3)
    for prompt in toy.prompts:
        everything = policy.enumerate(prompt)
        p_B = everything.behaviour_logp_BT.sum(-1).exp()
        at_BT = everything.trace["state_BT"]
        log_p_SV = policy.table_PSV[policy.index[prompt.text]].detach().log_softmax(-1)
        kl_S = categorical_kl(log_p_SV, policy.start_PSV[policy.index[prompt.text]].log_softmax(-1))
        entropy_S = -(log_p_SV.exp() * log_p_SV).sum(-1)
        for i, per_state in enumerate((kl_S, entropy_S, torch.ones_like(kl_S))):
            total[i] += (p_B[:, None] * per_state[at_BT] * everything.mask_BT).sum()
    assert moved.kl == pytest.approx(float(total[0] / total[2]), rel=0.03)
    assert moved.entropy == pytest.approx(float(total[1] / total[2]), rel=0.03)
    assert moved.kl > 0.03
    without = evaluate(policy, many(4), Scores(share_of_b), num_generations=2, seed=0)
    assert math.isnan(without.kl)
    assert math.isnan(without.entropy)


def test_asking_for_the_divergence_changes_no_sample(toy: Toy):
    plain, measured = (
        evaluate(toy.policy, many(10), Scores(share_of_b), num_generations=4, seed=5, divergence=divergence)
        for divergence in (False, True)
    )
    assert plain.samples == measured.samples
    assert plain.per_prompt == measured.per_prompt


def test_old_records_are_read(toy: Toy):
    """Records may lack what was measured later on; what is not known is left out of the comparison."""
    start = evaluate(toy.policy, many(5), Scores(share_of_b), num_generations=2, seed=0, divergence=True)
    record = start.to_record(0, "held-out")
    for key in ("kl", "entropy", "per_prompt_rewards"):
        del record[key]
    old = Evaluation.from_record(record)
    assert math.isnan(old.kl)
    assert old.per_prompt == start.per_prompt
    later = start.to_record(9, "held-out", old)
    assert later["reward_differences"] == {}
    assert later["difference"] == 0


def test_truncation_reaches_the_evaluation():
    toy = toy_policy.toy(Truncation(top_k=1))
    result = evaluate(toy.policy, many(6), Scores(share_of_b), num_generations=5, seed=0)
    assert {s["completion"] for s in result.samples[::2]} == {result.samples[0]["completion"]}
    assert set(result.per_prompt[::2]) == {result.per_prompt[0]}
