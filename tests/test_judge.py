"""Judges: what they see, that their numbers mean what they say, what they refuse, and that they can go on learning."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example
from relgrad.evaluation import calibration
from relgrad.judges import refill
from relgrad.judges.network import Judge, refilled, refilled_rollouts
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.policies import fill_in
from relgrad.rewards import judge as reward
from relgrad.tasks import masked_text
from relgrad.text.masking import Random
from relgrad.text.vocabulary import Vocabulary
from relgrad.training.grpo import train
from relgrad.training.sft import Sft, SftSettings

TASK = masked_text.load(
    masked_text.Settings(
        length=32, aligned="window", stages=(Random(min_masked_ratio=0.1, max_masked_ratio=0.4),), held_out_size=64
    ),
    0,
)


def policy(seed: int = 0) -> fill_in.FillInPolicy:
    settings = fill_in.Settings(block_size=32, n_layer=2, n_head=2, n_embd=32)
    return fill_in.build(settings, seed)


def make(head: str = "positions", seed: int = 0, **options) -> refill.RefillJudge:
    return refill.build(refill.Settings(head=head, **options), seed, policy())


def texts(made: refill.RefillJudge, count: int = 8, each: int = 2):
    rollouts = made.policy.sample(TASK.validation[:count], each, generator(0, "texts"))
    return rollouts, refilled_rollouts(rollouts, made.judge.vocabulary)


# ---------------------------------------------------------------------- what a judge sees


@pytest.mark.parametrize("length", [31, 32, 33, 40])
def test_the_summary_id_is_in_front_whatever_the_length_and_the_end_is_cut(length: int, monkeypatch) -> None:
    made = make("sequence")
    block = made.judge.model.config.block_size
    seen = []
    hidden = made.judge.model.hidden
    monkeypatch.setattr(made.judge.model, "hidden", lambda ids, *rest: seen.append(ids) or hidden(ids, *rest))
    ids = torch.arange(length)[None] % 50
    made.judge.logits(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool))
    assert block == 33
    assert seen[0][0, 0] == made.judge.vocabulary.cls_id
    assert torch.equal(seen[0][0, 1:], ids[0, : block - 1])


@pytest.mark.parametrize("head", ["positions", "sequence"])
def test_padding_changes_nothing(head: str) -> None:
    judge = make(head).judge
    ids = [list(range(10)), list(range(5, 30))]
    masked = [[judge.vocabulary.mask_id, *row[1:]] for row in ids]
    together = judge.scores(refilled(ids, masked, None, judge.vocabulary))[0]
    alone = [judge.scores(refilled([i], [m], None, judge.vocabulary))[0] for i, m in zip(ids, masked, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_judge_sees_the_completed_text_and_which_positions_were_refilled() -> None:
    made = make()
    rollouts, seen = texts(made)
    for row, output in enumerate(rollouts.outputs):
        columns = rollouts.prompts[int(rollouts.group_B[row])].columns
        length = len(output.ids)
        assert seen.ids_BL[row, :length].tolist() == list(output.ids)
        assert seen.mark_BL[row, :length].tolist() == [i == columns["mask_id"] for i in columns["masked_ids"]]
        right = [a == b for a, b in zip(output.ids, columns["truth_ids"], strict=True)]
        assert seen.right_BL[row, :length].tolist() == right
        assert not seen.valid_BL[row, length:].any()


def test_untouched_texts_are_the_truth_and_right_everywhere() -> None:
    made = make()
    rollouts, _ = texts(made)
    seen = refilled_rollouts(rollouts, made.judge.vocabulary, torch.ones(rollouts.rows, dtype=torch.bool))
    assert bool((seen.right_BL == seen.valid_BL).all())
    assert seen.ids_BL[0, seen.valid_BL[0]].tolist() == rollouts.prompts[0].columns["truth_ids"]


# ---------------------------------------------------------------------- scores and the reward


def test_a_score_is_the_mean_of_the_calibrated_probabilities_of_the_refilled_positions() -> None:
    made = make()
    made.judge.calibration = (0.7, -0.3)
    _, seen = texts(made)
    score_B, p_BL = made.judge.scores(seen)
    with torch.no_grad():
        logits = made.judge.logits(seen.ids_BL, seen.valid_BL, seen.mark_BL)
    expected = torch.sigmoid(0.7 * logits - 0.3)
    for row in range(len(score_B)):
        assert float(score_B[row]) == pytest.approx(float(expected[row][seen.mark_BL[row]].mean()), abs=1e-6)
    assert p_BL is not None


def test_the_reward_gives_every_decision_its_probability(tmp_path) -> None:
    made = make()
    made.judge.save(tmp_path)
    scorer = reward.build(reward.Settings(judges=(str(tmp_path),), require_audit=False))
    rollouts, seen = texts(made, 4, 3)
    score_B, p_BL = made.judge.scores(seen)
    scores = scorer(rollouts.prompts[1], rollouts.outputs[3:6])
    for i, score in enumerate(scores):
        assert score.value == pytest.approx(float(score_B[3 + i]), abs=1e-5)
        assert score.per_decision == pytest.approx(p_BL[3 + i][seen.mark_BL[3 + i]].tolist(), abs=1e-5)
        assert len(score.per_decision) == int(rollouts.mask_BT[3 + i].sum())


def test_an_ensemble_is_the_mean_or_the_most_doubtful(tmp_path) -> None:
    for number, head in enumerate(["positions", "positions", "sequence"]):
        make(head, seed=number).judge.save(tmp_path / str(number))
    rollouts, _ = texts(make(), 1, 4)
    paths = [str(tmp_path / str(n)) for n in range(3)]

    def score(*judges: str, combine: str = "mean"):
        built = reward.build(reward.Settings(judges=judges, combine=combine, require_audit=False))
        return built(rollouts.prompts[0], rollouts.outputs)

    alone = np.array([[s.value for s in score(path)] for path in paths])
    assert [s.value for s in score(*paths)] == pytest.approx(alone.mean(0), abs=1e-6)
    assert [s.value for s in score(*paths, combine="min")] == pytest.approx(alone.min(0), abs=1e-6)
    assert score(*paths)[0].per_decision == ()
    assert len(score(*paths[:2])[0].per_decision) > 0
    assert score(*paths)[0].parts["disagreement"] > 0


# ---------------------------------------------------------------------- training, audit and what is refused


def trained(head: str, warm: int, steps: int) -> refill.RefillJudge:
    """A judge of a generator that has learned for `warm` steps: what it fills in is right now and then, or never."""
    settings = refill.Settings(head=head, untouched=0.2, audit_prompts=64, audit_generations=16)
    source = policy()
    examples = [Example(TASK.train[i], "") for i in range(2000)]
    learning = SftSettings(steps=warm, batch_size=32, learning_rate=5e-3)
    train(Sft(source, examples, learning), lambda record: None)
    made = refill.build(settings, 0, source)
    train(Sft(made, examples, SftSettings(steps=steps, batch_size=32, learning_rate=3e-3)), lambda record: None)
    return made


@pytest.fixture(scope="module")
def audited() -> tuple[refill.RefillJudge, dict]:
    made = trained("positions", warm=250, steps=250)
    return made, made.audit(TASK.validation, generator(5, "audit"))


def test_a_trained_judge_ranks_and_is_calibrated(audited) -> None:
    made, found = audited
    assert found["auc"] > 0.65
    assert found["calibration_error"] < 0.05
    assert abs(found["mean_score"] - found["mean_share_right"]) < 0.05
    assert found["within_group_low"] > 0, "its score goes along with the truth within groups"
    assert made.judge.calibration == tuple(found["calibration"])
    assert sum(b["count"] for b in found["reliability"]) > 1000
    json.dumps(found)


def test_an_audit_is_the_same_under_the_same_generator(audited) -> None:
    made, found = audited
    assert made.audit(TASK.validation, generator(5, "audit")) == found


@pytest.mark.slow
def test_a_whole_text_judge_tells_untouched_from_refilled() -> None:
    made = trained("sequence", warm=1, steps=200)
    assert made.audit(TASK.validation, generator(5, "audit"))["auc"] > 0.8


def test_a_judge_keeps_its_audit_on_disk_and_serves(audited, tmp_path) -> None:
    made, found = audited
    made.save(tmp_path)
    assert Judge.load(tmp_path).audit == found
    settings = reward.Settings(judges=(str(tmp_path),), min_within_group=found["within_group_low"])
    assert reward.build(settings).judges[0].calibration == made.judge.calibration


def test_without_an_audit_or_below_the_bar_it_may_not_reward(audited, tmp_path) -> None:
    make().judge.save(tmp_path / "fresh")
    with pytest.raises(RelgradError, match="was never audited"):
        reward.build(reward.Settings(judges=(str(tmp_path / "fresh"),)))
    audited[0].save(tmp_path / "good")
    with pytest.raises(RelgradError, match="may not reward"):
        reward.build(reward.Settings(judges=(str(tmp_path / "good"),), min_within_group=0.99))


def test_an_untrained_judge_does_not_pass_its_audit(tmp_path) -> None:
    made = make(init="random", audit_prompts=32, audit_generations=8)
    found = made.audit(TASK.validation, generator(5, "audit"))
    assert not found["within_group_correlation"] >= 0.25
    made.save(tmp_path)
    with pytest.raises(RelgradError, match="may not reward"):
        reward.build(reward.Settings(judges=(str(tmp_path),)))


def test_a_judge_starts_from_the_generators_trunk_or_not() -> None:
    source = policy()
    same = refill.build(refill.Settings(), 0, source).judge.model.transformer
    other = refill.build(refill.Settings(init="random"), 1, source).judge.model.transformer
    assert torch.equal(same.h[0].attn.c_attn.weight, source.model.transformer.h[0].attn.c_attn.weight)
    assert not torch.equal(other.h[0].attn.c_attn.weight, source.model.transformer.h[0].attn.c_attn.weight)
    with pytest.raises(RelgradError, match="init: random"):
        refill.build(refill.Settings(n_embd=64), 0, source)


def test_a_generator_with_another_vocabulary_is_refused(tmp_path) -> None:
    vocabulary = Vocabulary.of_text("abc")
    config = GPTConfig(vocab_size=vocabulary.size, mode="token_classifier", marks=True, n_embd=16, n_head=2)
    Judge(GPT(config), vocabulary).save(tmp_path)
    scorer = reward.build(reward.Settings(judges=(str(tmp_path),), require_audit=False))
    rollouts, _ = texts(make(), 1, 2)
    with pytest.raises(RelgradError, match="another vocabulary"):
        scorer(rollouts.prompts[0], rollouts.outputs)


def test_what_is_no_judge_is_refused(tmp_path) -> None:
    policy().save(tmp_path / "generator")
    with pytest.raises(RelgradError, match=r"no judge\.json"):
        reward.build(reward.Settings(judges=(str(tmp_path / "generator"),)))
    with pytest.raises(RelgradError, match="outside of a run"):
        reward.build(reward.Settings(judges=("stage:judge",)))
    with pytest.raises(RelgradError, match="language_model"):
        Judge(policy().model, policy().vocabulary)
    with pytest.raises(RelgradError, match="summary id"):
        Judge(
            GPT(GPTConfig(vocab_size=10, mode="sequence_scorer", cls_token_id=1, n_embd=16, n_head=2)),
            Vocabulary.of_text("abcdefg"),
        )
    with pytest.raises(RelgradError, match="judges a fill_in policy"):
        refill.build(refill.Settings(), 0, object())
    with pytest.raises(RelgradError, match="at least 8 held-out"):
        make().audit(TASK.validation[:3], generator(0, "few"))


# ---------------------------------------------------------------------- refitting


def test_a_refit_learns_from_the_policy_and_survives_saving(tmp_path) -> None:
    made = make(init="random")
    made.save(tmp_path / "judge")
    settings = reward.Settings(
        judges=(str(tmp_path / "judge"),), require_audit=False, refit_every=5, refit_steps=40, refit_learning_rate=3e-3
    )
    scorer = reward.build(settings)
    assert scorer.learns
    assert [step for step in range(1, 16) if scorer.due(step)] == [5, 10, 15]
    prompts = [TASK.train[i] for i in range(64)]
    first = scorer.refit(made.policy, prompts, generator(0, "refit"))
    second = scorer.refit(made.policy, prompts, generator(1, "refit"))
    assert second < first
    scorer.save(tmp_path / "kept")
    again = reward.build(settings)
    again.load(tmp_path / "kept")
    rollouts, _ = texts(made, 1, 4)
    assert again(rollouts.prompts[0], rollouts.outputs) == scorer(rollouts.prompts[0], rollouts.outputs)


# ---------------------------------------------------------------------- the audit's own figures


def test_auc_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    score, right = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.3
    better = score[right][:, None] - score[~right][None]
    assert calibration.auc(score, right) == pytest.approx(((better > 0) + 0.5 * (better == 0)).mean())
    assert math.isnan(calibration.auc(score, np.ones(300)))


def test_platt_finds_the_slope_and_offset_it_was_made_with() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(size=200_000) * 2
    right = rng.random(len(logit)) < 1 / (1 + np.exp(-(0.6 * logit - 0.8)))
    assert calibration.platt(logit, right.astype(float)) == pytest.approx((0.6, -0.8), abs=0.03)


def test_calibration_error_of_known_bins() -> None:
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    right = np.array([0.0, 1.0, 1.0, 1.0])
    table = calibration.reliability(probability, right)
    assert [(b.predicted, b.observed, b.count) for b in table] == [
        (pytest.approx(0.05), 0.5, 2),
        (pytest.approx(0.95), 1.0, 2),
    ]
    assert calibration.expected_calibration_error(table) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)


def test_within_groups_ignores_what_groups_differ_by() -> None:
    rng = np.random.default_rng(2)
    level = rng.normal(size=(200, 1)) * 10
    x, y = level + rng.normal(size=(200, 16)), level + rng.normal(size=(200, 16))
    assert calibration.pearson(x.flatten(), y.flatten()) > 0.9
    assert abs(np.mean(calibration.within_groups(x, y))) < 0.06
    assert calibration.within_groups(np.ones((3, 4)), np.ones((3, 4))) == []
