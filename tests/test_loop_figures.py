"""What a GRPO step adds and tells: the supervised term, and the figures that every policy logs at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fill_prompts
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings, pieces
from toy_policy import share_of_b, toys

SEED = 7
DIGITS = tuple(Prompt(f"{n}=", {"completion": str(n), "answer": str(n)}, n) for n in range(10))


def language_model(**settings: Any) -> autoregressive.AutoregressivePolicy:
    return autoregressive.build(
        autoregressive.Settings(model="tiny:32x1", max_completion_length=4, **settings), seed=0, reference=True
    )


def code_points(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward that is never the same twice."""
    return [sum(map(ord, text)) / 100 for text in completions]


def loop(policy: Any, prompts: Sequence[Prompt], **options: Any) -> Grpo:
    chosen = GrpoSettings(**{"num_prompts": 4, "num_generations": 4, "learning_rate": 0.01, **options})
    loss = PolicyLoss(**{name: getattr(chosen, name) for name in PolicyLoss.__dataclass_fields__})
    return Grpo(policy, prompts, RewardSet([NamedReward("mine", code_points)], 60), loss, chosen, seed=SEED)


def fill_in(dropout: float = 0.0, **options: Any) -> Grpo:
    return loop(fill_prompts.policy(dropout=dropout), fill_prompts.PROMPTS, **{"sft_column": "truth", **options})


def language(**options: Any) -> Grpo:
    return loop(language_model(), DIGITS, **options)


def gradient(made: Grpo) -> Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in made.policy.parameters()]
    made.optimizer.clear()
    return torch.cat([p.flatten() for p in parts])


# ---------------------------------------------------------------------- the supervised term


@pytest.mark.parametrize("build", [fill_in, language])
def test_the_gradient_is_the_sum_of_both(build: Any):
    made = build(sft_coef=0.3)
    made.batch = batch = made.generate()
    rows = torch.arange(8, 16)  # two groups of four: the prompts of the other groups have no part in this step
    made._accumulate(batch, rows)
    of_rewards = gradient(made)
    column = made.settings.sft_column
    examples = [Example(p, p.columns[column]) for p in (batch.prompts[2], batch.prompts[3])]
    loss, targets, _ = made.policy.supervised_loss(examples, generator(SEED, "sft", 0))
    (loss / targets).backward()
    of_truth = gradient(made)
    metrics = made._supervise(batch, rows)
    made._accumulate(batch, rows)
    together = gradient(made)
    assert min(of_rewards.norm(), of_truth.norm()) > 0.01
    torch.testing.assert_close(together, of_rewards + 0.3 * of_truth, atol=1e-6, rtol=1e-4)
    assert metrics == {"sft_loss": pytest.approx(float(loss.detach()) / targets, rel=1e-5)}


def test_a_step_takes_both():
    """AdamW's first moment after one step is a tenth of the gradient that it was given."""
    moments = {}
    for weight in (0.0, 0.5):
        made = fill_in(sft_coef=weight, max_grad_norm=1e6)
        metrics = made.update().metrics
        state = made.optimizer.state()
        moments[weight] = torch.cat([state[f"{n}/exp_avg"].flatten() for n, _ in made.policy.parameters()]) * 10
        assert ("sft_loss" in metrics) == bool(weight)
        assert metrics["loss"] == pytest.approx(metrics["pg_loss"] + weight * metrics.get("sft_loss", 0), abs=1e-6)
    fresh = fill_in(sft_coef=0.5)
    fresh.batch = fresh.generate()
    fresh._supervise(fresh.batch, torch.arange(16))
    torch.testing.assert_close(moments[0.5] - moments[0.0], gradient(fresh), atol=1e-6, rtol=1e-3)


def test_pieces_leave_the_gradient_as_it_is():
    found = []
    for budget in (12, 20, 10_000):
        made = fill_in(sft_coef=1.0, micro_batch_tokens=budget)
        made.batch = made.generate()
        metrics = made._supervise(made.batch, torch.arange(16))
        found.append((metrics["sft_loss"], gradient(made)))
    for loss, whole in found[:2]:
        assert loss == pytest.approx(found[2][0], rel=1e-5)
        torch.testing.assert_close(whole, found[2][1], atol=1e-6, rtol=1e-4)


def test_pieces_fill_the_budget_in_order():
    examples = [Example(Prompt("x" * n), "y") for n in (3, 3, 20, 1, 1, 1)]
    assert [[len(e.prompt.text) for e in piece] for piece in pieces(examples, 8)] == [[3, 3], [20], [1, 1, 1]]


def test_dropout_of_the_supervised_term_follows_the_seed_and_the_step():
    found = []
    for seed, step in ((7, 0), (7, 0), (7, 1), (8, 0)):
        made = fill_in(sft_coef=1.0, dropout=0.4)
        made.batch = made.generate()
        made.seed, made.step = seed, step
        found.append(made._supervise(made.batch, torch.arange(16))["sft_loss"])
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_it_holds_the_model_to_the_truth():
    """With rewards that are all equal the supervised term acts alone, and the cross-entropy falls."""
    made = fill_in(sft_coef=1.0, learning_rate=0.01, steps=20)
    made.source.rewards = RewardSet([NamedReward("flat", lambda completions: [1.0 for _ in completions])], 60)
    losses = [made.update().metrics["sft_loss"] for _ in range(20)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_policy_that_cannot_be_supervised_is_refused():
    toy = toys()["plain"]()
    with pytest.raises(RelgradError, match=r"sft_coef=0\.1 needs a policy .* TablePolicy has no supervised_loss"):
        loop(toy.policy, toy.prompts, sft_coef=0.1)


def test_a_prompt_without_the_column_is_named():
    made = fill_in(sft_coef=0.1, sft_column="answer")
    with pytest.raises(
        RelgradError, match=r"prompt \d has no text column 'answer'; it has label_ids, .*grpo\.sft_column"
    ):
        made.update()
    numbers = [Prompt(p.content, {"completion": p.id}, p.id) for p in DIGITS]
    with pytest.raises(
        RelgradError, match=r"prompt \d+: column 'completion' holds \d+; a target is text, or a list of one"
    ):
        loop(language_model(), numbers, sft_coef=0.1).update()


# ---------------------------------------------------------------------- figures of every step


ALWAYS = {"loss", "pg_loss", "kl_penalty", "mean_reward", "std_reward", "mean_advantage", "mean_log_prob"}


def table_policy(**options: Any) -> Grpo:
    toy = toys()["plain"]()
    return loop(toy.policy, toy.prompts, **options)


@pytest.mark.parametrize("build", [fill_in, language, table_policy])
def test_every_policy_logs_them_at_every_step(build: Any):
    made = build(num_iterations=2, steps_per_generation=2, beta=0.1, kl_estimator="exact", steps=6)
    records = [made.update().metrics for _ in range(6)]
    for record in records:
        assert record.keys() >= ALWAYS | {"mean_kl"}
        assert record["loss"] == pytest.approx(record["pg_loss"] + record["kl_penalty"], abs=1e-6)
    for start in (0, 4):
        for record in records[start : start + 4]:
            assert record["mean_reward"] == records[start]["reward"]
            assert record["std_reward"] == records[start]["reward_std"]
            assert record["mean_advantage"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize("loss_type", ["grpo", "reinforce"])
def test_what_they_mean(estimator: str, loss_type: str):
    """By hand on a policy that has left its reference, for rows of different length."""
    made = language(beta=0.5, kl_estimator=estimator, loss_type=loss_type, entropy_coef=0.01)
    with torch.no_grad():
        for name, parameter in made.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(5, name)) * parameter.std())
    before = torch.nn.utils.parameters_to_vector([p for _, p in made.policy.parameters()]).detach().clone()
    metrics = made.update().metrics
    assert made.batch is not None
    (part,) = (part.rollouts for part in made.batch.parts)
    torch.nn.utils.vector_to_parameters(before, [p for _, p in made.policy.parameters()])
    with torch.no_grad():
        scores = made.policy.score(part, part.cells(), entropy=True, reference_kl=True)
        with made.policy.reference():
            reference_N = made.policy.score(part, part.cells()).logp_N
    assert len({int(n) for n in part.mask_BT.sum(-1)}) > 1

    def per_row(value_N: Tensor) -> Tensor:
        """Sums over the decisions of each row."""
        return torch.zeros(part.rows).index_add(0, part.cells()[:, 0], value_N.float())

    delta_N = scores.logp_N - reference_N
    kl_N = {"k1": delta_N, "k2": delta_N**2 / 2, "k3": torch.expm1(-delta_N) + delta_N, "exact": scores.kl_N}[estimator]
    assert metrics["mean_log_prob"] == pytest.approx(float(per_row(scores.logp_N).mean()), rel=1e-4)
    assert metrics["mean_kl"] == pytest.approx(float(per_row(kl_N).mean()), rel=1e-3)
    averaged = per_row(kl_N) / (part.mask_BT.sum(-1) if loss_type == "grpo" else 1)
    penalty = 0.0 if estimator == "k1" else 0.5 * float(averaged.mean())
    assert metrics["kl_penalty"] == pytest.approx(penalty, rel=1e-3)
    entropy = 0.01 * float(scores.entropy_N.mean())
    assert metrics["loss"] == pytest.approx(metrics["pg_loss"] + penalty - entropy, rel=1e-3)


def test_the_divergence_is_told_only_where_it_is_known():
    assert "mean_kl" not in language().update().metrics
    assert language(beta=0.1).update().metrics["mean_kl"] == pytest.approx(0, abs=1e-5)


def test_rows_without_decisions_are_no_rows():
    """Truncated completions are left out of the mean log-probability, not counted as certain."""
    policy = language_model(eos_token_ids=tuple(range(40)))
    made = loop(policy, DIGITS, mask_truncated_completions=True, num_prompts=8)
    made.batch = made.generate()
    batch = made.batch
    kept_B = batch.mask_BT.any(-1)
    assert 0 < int(kept_B.sum()) < len(kept_B)
    metrics = made.update().metrics
    expected = (batch.behaviour_logp_BT * batch.mask_BT).sum(-1)[kept_B].mean()
    assert metrics["mean_log_prob"] == pytest.approx(float(expected), rel=1e-4)


def test_unscored_rows_have_no_advantage():
    toy = toys()["plain"]()

    def sometimes(prompt: Prompt, outputs: Any) -> list[float | None]:
        return [None if o.text == "" else share_of_b(o) for o in outputs]

    chosen = GrpoSettings(num_prompts=6, num_generations=8, learning_rate=0.01)
    made = Grpo(toy.policy, toy.prompts, RewardSet([NamedReward("b", sometimes)], 60), PolicyLoss(), chosen, seed=1)
    metrics = made.update().metrics
    assert made.batch is not None
    assert 0 < metrics["rewards/unscored"] < 1
    assert metrics["mean_reward"] == pytest.approx(float(made.batch.reward_B.nanmean()))
    assert metrics["mean_advantage"] == pytest.approx(float(made.batch.advantage_B.mean()))


class Own:
    """A loss that reports nothing at all."""

    needs = frozenset[str]()

    def __call__(self, terms: Any) -> tuple[Tensor, dict[str, float]]:
        return -(terms.advantage_BT * terms.logp_BT * terms.mask_BT).sum() / 16, {}


def test_a_loss_of_your_own_need_not_report():
    made = language(beta=0.1)
    made.loss = Own()
    metrics = made.update().metrics
    assert metrics["loss"] == pytest.approx(
        float(Own()(made._terms(made.batch, torch.arange(16), True)[0])[0].detach()), abs=1e-5
    )
    assert metrics.keys() >= {"mean_kl", "mean_log_prob", "mean_reward"}
    assert "pg_loss" not in metrics, "what a loss is made of, it alone knows"
