"""What the GRPO loop does with a batch: who is trained on, with which weight, against which reference, and what is logged."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt, Rollouts
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.policies.autoregressive import AutoregressivePolicy
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings, train
from relgrad.training.sft import Sft, SftSettings

PROMPTS = tuple(Prompt(f"{n}=", {"answer": str(n)}, n) for n in range(10))


def policy(reference: bool = False, spread: float = 1.0, **settings: Any) -> AutoregressivePolicy:
    """A random tiny model; `spread` multiplies its logits."""
    chosen = autoregressive.Settings(**{"model": "tiny:32x1", "max_completion_length": 4, **settings})
    made = autoregressive.build(chosen, seed=0, reference=False)
    with torch.no_grad():
        made.causal_lm.get_output_embeddings().weight.mul_(spread)
    if reference:
        made.freeze_reference()
    return made


def code_points(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward that is never the same twice."""
    return [sum(map(ord, text)) / 100 for text in completions]


def any_digit(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward with many groups without spread."""
    return [float(any(c.isdigit() for c in text)) for text in completions]


def loop(
    made: AutoregressivePolicy,
    reward: Callable[..., Any] = code_points,
    prompts: Sequence[Prompt] = PROMPTS,
    **settings: Any,
) -> Grpo:
    chosen = GrpoSettings(**{"num_prompts": 4, "num_generations": 4, "learning_rate": 0.01, **settings})
    loss = PolicyLoss(**{name: getattr(chosen, name) for name in PolicyLoss.__dataclass_fields__})
    return Grpo(made, prompts, RewardSet([NamedReward("mine", reward)], 60), loss, chosen, seed=7)


def gradient(made: Grpo, rows: Tensor | None = None) -> Tensor:
    """The gradient of the batch in use, as one vector."""
    assert made.batch is not None
    made._accumulate(made.batch, torch.arange(len(made.batch.group_B)) if rows is None else rows)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in made.policy.parameters()]
    made.optimizer.clear()
    return torch.cat([p.flatten() for p in parts])


def weights(made: AutoregressivePolicy) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for _, p in made.parameters()])


# ---------------------------------------------------------------------- which rows are trained on


@pytest.mark.parametrize("masked", [True, False])
def test_mask_truncated_completions(masked: bool):
    """Rows that ran into the limit carry no gradient and count in no divisor; without the setting they do."""
    made = loop(policy(eos_token_ids=tuple(range(40))), mask_truncated_completions=masked, loss_type="bnpo")
    made.batch = made.generate()
    cut_B = torch.tensor([stop == "length" for stop in made.batch.stop])
    assert 0 < int(cut_B.sum()) < len(cut_B)
    assert made.batch.metrics["completions/clipped_ratio"] == pytest.approx(float(cut_B.double().mean()))
    cut = gradient(made, cut_B.nonzero()[:, 0])
    assert bool(cut.any()) is not masked
    everyone, others = gradient(made), gradient(made, (~cut_B).nonzero()[:, 0])
    assert torch.allclose(everyone, others, atol=1e-6) is masked


def test_groups_without_spread_have_no_gradient():
    made = loop(policy(), any_digit, num_prompts=8)
    made.batch = made.generate()
    reward_GK = made.batch.reward_B.view(8, 4)
    flat_G = reward_GK.amax(1) == reward_GK.amin(1)
    assert 0 < int(flat_G.sum()) < 8
    assert made.batch.metrics["frac_reward_zero_std"] == pytest.approx(float(flat_G.double().mean()))
    flat_B = flat_G[made.batch.group_B]
    assert not gradient(made, flat_B.nonzero()[:, 0]).any()
    assert gradient(made, (~flat_B).nonzero()[:, 0]).any()


def test_nothing_moves_where_no_group_has_spread():
    made = loop(policy(), lambda completions, **_: [0.5] * len(completions))
    before = weights(made.policy)
    metrics = made.update().metrics
    assert torch.equal(weights(made.policy), before)
    assert (metrics["grad_norm"], metrics["loss"], metrics["frac_reward_zero_std"]) == (0, 0, 1)
    assert "parity/max_abs" not in metrics  # nothing was scored


def test_groups_without_spread_are_replaced():
    made = loop(policy(), any_digit, num_prompts=8, max_resamples=2)
    made.batch = made.generate()
    batch = made.batch
    assert len(batch.parts) > 1, "nothing was replaced, so nothing is tested"
    # by hand: a group is replaced in every round but the last unless its rewards differ
    replaced, first = 0, 0
    for number, part in enumerate(part.rollouts for part in batch.parts):
        rows = slice(first, first + part.rows)
        scores_GK = torch.tensor(any_digit([o.text for o in part.outputs])).view(len(part.prompts), 4)
        flat_G = scores_GK.amax(1) == scores_GK.amin(1)
        last = number == len(batch.parts) - 1
        keep_G = torch.ones_like(flat_G) if last else ~flat_G
        assert batch.keep_B[rows].tolist() == keep_G.repeat_interleave(4).tolist()
        replaced += 0 if last else int(flat_G.sum())
        first += part.rows
    assert batch.metrics["groups_resampled"] == replaced > 0
    assert len(batch.group_B[batch.keep_B].unique()) == 8
    assert made.cursor == sum(len(part.prompts) for part in (p.rollouts for p in batch.parts))
    kept_reward = torch.tensor(any_digit([o.text for o in batch.outputs]))[batch.keep_B]
    assert batch.metrics["reward"] == pytest.approx(float(kept_reward.mean()))
    for rows in batch.minibatches(1, generator(0)):
        assert torch.equal(rows, batch.keep_B.nonzero()[:, 0])


# ---------------------------------------------------------------------- several steps on one batch


def test_inner_steps_take_ratios_against_the_recorded_log_probs():
    made = loop(policy(), steps=8, num_iterations=2, steps_per_generation=2, num_prompts=4)
    records = [made.update().metrics for _ in range(8)]
    for start in (0, 4):
        assert "reward" in records[start]
        assert all("reward" not in r for r in records[start + 1 : start + 4])
        fresh, later = records[start], records[start + 1 : start + 4]
        assert (fresh["importance_ratio/min"], fresh["importance_ratio/max"]) == (1.0, 1.0)
        assert fresh["parity/max_abs"] < 1e-5
        for record in later:
            assert "parity/max_abs" not in record
            assert record["importance_ratio/max"] > 1.001
            assert record["importance_ratio/min"] < 0.999
    assert made.generations == 2


def test_inner_ratio_by_hand():
    """After one step, the ratio's extremes are those of fresh scores over what was recorded when sampling."""
    made = loop(policy(), num_iterations=2)
    made.update()
    batch = made.batch
    assert batch is not None
    (part,) = (part.rollouts for part in batch.parts)
    cells_N2 = part.cells()
    with torch.no_grad():
        now_N = made.policy.score(part, cells_N2).logp_N
    ratio_N = (now_N - part.behaviour_logp_BT[cells_N2.unbind(-1)]).exp()
    metrics = made.update().metrics
    assert metrics["importance_ratio/max"] == pytest.approx(float(ratio_N.max()), rel=1e-5)
    assert metrics["importance_ratio/min"] == pytest.approx(float(ratio_N.min()), rel=1e-5)
    clipped = float(((ratio_N > 1.2) | (ratio_N < 0.8)).float().mean())
    assert metrics["clip_ratio/region_mean"] <= clipped + 1e-6


def test_every_group_once_per_iteration():
    made = loop(policy(), num_iterations=2, steps_per_generation=4)
    made.batch = made.generate()
    for iteration in range(2):
        pieces = made.batch.minibatches(4, generator(7, "order", 1, iteration))
        assert sorted(torch.cat(pieces).tolist()) == list(range(16))
        assert all(len(made.batch.group_B[rows].unique()) == 1 for rows in pieces)


# ---------------------------------------------------------------------- another engine's log-probs


class ForeignEngine(AutoregressivePolicy):
    """Its recorded log-probs are another engine's: off by a known amount."""

    shift: Tensor

    def sample(self, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator) -> Rollouts:
        own = super().sample(prompts, group_size, generator)
        noise_BT = torch.linspace(-1.5, 1.5, own.mask_BT.numel()).view(own.mask_BT.shape) * own.mask_BT
        self.shift = noise_BT
        return replace(own, foreign=True, behaviour_logp_BT=own.behaviour_logp_BT + noise_BT)


def test_foreign_log_probs_are_corrected():
    made = loop(policy(), loss_type="grpo")
    made.batch = made.generate()
    plain = gradient(made)
    assert made.batch.correction_BT is None

    made = loop(policy(), loss_type="grpo")
    made.policy.__class__ = ForeignEngine
    made.batch = made.generate()
    batch = made.batch
    # pi / pi_engine = exp(-shift), cut at 2; ratios are taken against the policy's own log-probs
    expected_BT = torch.where(batch.mask_BT, (-made.policy.shift).exp().clamp(max=2.0), 1.0)
    assert batch.correction_BT is not None
    assert torch.allclose(batch.correction_BT, expected_BT, atol=1e-4)
    assert float(batch.correction_BT.max()) == 2.0
    own_BT = batch.parts[0].rollouts.behaviour_logp_BT - made.policy.shift
    assert torch.allclose(batch.behaviour_logp_BT, own_BT, atol=1e-5)
    gap = -made.policy.shift[batch.mask_BT]
    assert batch.metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(float(gap.abs().mean()), abs=1e-4)
    assert batch.metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(float(gap.exp().max()), rel=1e-4)
    corrected = gradient(made)
    assert not torch.allclose(corrected, plain, atol=1e-4)

    # by hand, with autograd: mean over rows of the mean over decisions of -w A log pi
    cells_N2 = batch.parts[0].rollouts.cells()
    logp_N = made.policy.score(batch.parts[0].rollouts, cells_N2).logp_N
    share_N = (expected_BT * batch.advantage_B[:, None] / batch.mask_BT.sum(-1, keepdim=True))[cells_N2.unbind(-1)]
    (-(share_N * logp_N).sum() / len(batch.group_B)).backward()
    by_hand = torch.cat([p.grad.flatten() for _, p in made.policy.parameters() if p.grad is not None])
    assert torch.allclose(corrected, by_hand, atol=1e-5)


# ---------------------------------------------------------------------- the reference


def exact_kl(made: AutoregressivePolicy) -> float:
    """Mean KL(policy || reference) per decision, from whole distributions, on rollouts of its own."""
    rollouts = made.sample(PROMPTS, 8, generator(99))
    with torch.no_grad():
        kl_N = made.score(rollouts, rollouts.cells(), reference_kl=True).kl_N
    assert kl_N is not None
    return float(kl_N.mean())


def moved_policy() -> AutoregressivePolicy:
    """A policy that has left its reference."""
    made = policy(reference=True, spread=3.0)
    with torch.no_grad():
        for name, parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator(5, name))
            parameter.add_(noise * parameter.std())
    return made


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_beta_pulls_towards_the_reference(estimator: str):
    """With nothing to be gained, only the divergence acts, and the exact KL falls."""
    made = moved_policy()
    before = exact_kl(made)
    flat = loop(
        made, lambda completions, **_: [0.0] * len(completions), num_prompts=10, num_generations=32, steps=15, beta=1.0,
        kl_estimator=estimator, learning_rate=0.003, scale_rewards="none",
    )  # fmt: skip
    train(flat, lambda _: None)
    assert exact_kl(made) < 0.8 * before


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_reference_alone_changes_the_update(estimator: str):
    found = []
    for shift in (0.0, 1.0):
        made = moved_policy()
        with torch.no_grad(), made.reference():  # the parameters are the frozen start's here
            head = dict(made.parameters())["lm_head.weight"]
            head.add_(shift * torch.randn(head.shape, generator=generator(6)))
        one = loop(made, beta=0.5, kl_estimator=estimator)
        metrics = one.update().metrics
        assert metrics["kl"] != 0
        found.append(weights(made))
    assert not torch.equal(*found)


def test_beta_zero_needs_no_reference():
    made = policy()
    one = loop(made)
    metrics = one.update().metrics
    assert one.batch is not None
    assert one.batch.reference_logp_BT is None
    assert "kl" not in metrics
    with pytest.raises(RelgradError, match="built without a reference"):
        loop(policy(), beta=0.1).update()


def test_k1_is_taken_from_the_reward():
    """A_i is that of the rewards minus beta sum_t (log pi - log pi_ref), centred; the loss has no divergence term of its own."""
    made = moved_policy()
    one = loop(made, beta=0.5, kl_estimator="k1")
    one.batch = one.generate()
    (part,) = (part.rollouts for part in one.batch.parts)
    with torch.no_grad(), made.reference():
        reference_N = made.score(part, part.cells()).logp_N
    gap_BT = torch.zeros_like(part.behaviour_logp_BT)
    gap_BT[part.mask_BT] = part.behaviour_logp_BT[part.mask_BT] - reference_N
    reward_GK = torch.tensor(code_points([o.text for o in part.outputs]), dtype=torch.float64).view(4, 4)
    penalty_GK = 0.5 * gap_BT.sum(-1).double().view(4, 4)
    plain_GK = (reward_GK - reward_GK.mean(1, keepdim=True)) / (reward_GK.std(1, keepdim=True) + 1e-4)
    advantage_GK = plain_GK - (penalty_GK - penalty_GK.mean(1, keepdim=True))
    assert torch.allclose(one.batch.advantage_B.double(), advantage_GK.flatten(), atol=1e-4)
    assert not torch.allclose(advantage_GK, plain_GK, atol=1e-2)
    assert one.batch.metrics["kl"] == pytest.approx(float(gap_BT.sum() / part.mask_BT.sum()), rel=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_logged_kl_by_hand(estimator: str):
    made = moved_policy()
    one = loop(made, beta=0.5, kl_estimator=estimator)
    rollouts_before = weights(made)
    metrics = one.update().metrics
    assert one.batch is not None
    (part,) = (part.rollouts for part in one.batch.parts)
    torch.nn.utils.vector_to_parameters(rollouts_before, [p for _, p in made.parameters()])
    with torch.no_grad():
        scores = made.score(part, part.cells(), reference_kl=True)
        with made.reference():
            reference_N = made.score(part, part.cells()).logp_N
    assert scores.kl_N is not None
    delta_N = scores.logp_N - reference_N
    expected = {"k2": delta_N**2 / 2, "k3": (-delta_N).exp() - 1 + delta_N, "exact": scores.kl_N}[estimator]
    assert metrics["kl"] == pytest.approx(float(expected.mean()), rel=1e-3)


# ---------------------------------------------------------------------- what is logged


def test_metrics_of_a_batch_by_hand():
    """Rewards 0 1 1 2 | 3 3 3 3 | unscored 0 0 1 | 0 0 0 0, in the order of the rows."""
    script = iter([[0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0], [None, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    made = loop(policy(eos_token_ids=tuple(range(40))), lambda completions, **_: next(script))
    metrics = made.update().metrics
    scored = torch.tensor([0, 1, 1, 2, 3, 3, 3, 3, 0, 0, 1, 0, 0, 0, 0.0])
    batch = made.batch
    assert batch is not None
    stop = [s == "length" for s in batch.stop]
    lengths = batch.parts[0].rollouts.mask_BT.sum(-1).double()
    ended = lengths[~torch.tensor(stop)]
    expected = {
        "reward": float(scored.mean()),
        "reward_std": float(scored.std()),
        "rewards/mine/mean": float(scored.mean()),
        "rewards/mine/std": float(scored.std()),
        "rewards/unscored": 1 / 16,
        "frac_reward_zero_std": 2 / 4,
        "frac_groups_all_max": 1 / 4,
        "frac_groups_all_min": 1 / 4,
        "completions/mean_length": float(lengths.mean()),
        "completions/mean_decisions": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/total_tokens": float(lengths.sum()),
        "completions/clipped_ratio": sum(stop) / 16,
        "completions/mean_terminated_length": float(ended.mean()),
        "num_tokens": float(lengths.sum()),
        "learning_rate": 0.01,
        "importance_ratio/min": 1.0,
        "importance_ratio/max": 1.0,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/region_mean": 0.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    std = float(torch.tensor([0, 1, 1, 2.0]).std())
    others = torch.tensor([0, 0, 1.0])
    assert batch.advantage_B[:4].tolist() == pytest.approx([-1 / (std + 1e-4), 0, 0, 1 / (std + 1e-4)])
    assert batch.advantage_B[8:12].tolist() == pytest.approx([0, *((others - 1 / 3) / (others.std() + 1e-4)).tolist()])
    assert not batch.advantage_B[4:8].any()
    assert not batch.advantage_B[12:].any()
    # on fresh rollouts every ratio is 1, so the loss is -sum over decisions of A, divided by all decisions (dapo)
    by_hand = -(batch.advantage_B.double() * lengths).sum() / lengths.sum()
    assert metrics["loss"] == pytest.approx(float(by_hand), abs=1e-6)
    assert metrics["grad_norm"] > 0
    assert metrics["entropy"] > 0
    assert [s["reward"] for s in batch.samples][:4] == [0, 1, 1, 2]
    assert [s["group"] for s in batch.samples] == [g for g in range(4) for _ in range(4)]


def test_gradient_is_clipped_at_max_grad_norm():
    """AdamW's first step does not depend on the gradient's size, but its second moments do."""
    found = []
    for limit in (1e-3, 1e3):
        made = loop(policy(), max_grad_norm=limit)
        norm = made.update().metrics["grad_norm"]
        state = made.optimizer.state()
        moments = torch.cat([v.flatten() for k, v in state.items() if k.endswith("/exp_avg")])
        found.append((norm, float(moments.norm()) / 0.1))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(1e-3, rel=1e-3)
    assert found[1][1] == pytest.approx(found[1][0], rel=1e-3)


def test_prompts_come_in_epochs():
    made = loop(policy(), steps=5)
    seen: list[int] = []
    for _ in range(5):
        made.update()
        assert made.batch is not None
        seen += [prompt.id for _, prompt in sorted(made.batch.prompts.items())]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_on_held_out_prompts(seed: int):
    """Copy three digits, prompts never trained on: GRPO on a half-taught model raises the share of right digits."""
    draw = random.Random(seed)
    numbers = [f"{n:03d}" for n in draw.sample(range(1000), 300)]
    teach, held_out = numbers[:250], numbers[250:]
    made = policy(model="tiny:64x1", max_completion_length=4)

    def noisy(text: str) -> str:
        return "".join(c if draw.random() < 0.6 else draw.choice("0123456789") for c in text)

    examples = [Example(Prompt(f"{t}=", id=i), noisy(t)) for i, t in enumerate(teach)]
    train(Sft(made, examples, SftSettings(steps=120, batch_size=32, learning_rate=0.005), seed=seed), lambda _: None)

    def right(completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
        return [sum(a == b for a, b in zip(c, t, strict=False)) / 3 for c, t in zip(completions, answer, strict=True)]

    def score() -> Tensor:
        prompts = [Prompt(f"{t}=", {"answer": t}) for t in held_out]
        outputs = made.sample(prompts, 4, generator(1234)).outputs
        answers = [t for t in held_out for _ in range(4)]
        return torch.tensor(right([o.text for o in outputs], answers)).view(-1, 4).mean(1)

    before = score()
    prompts = [Prompt(f"{t}=", {"answer": t}, i) for i, t in enumerate(teach)]
    chosen = GrpoSettings(steps=30, num_prompts=8, num_generations=8, learning_rate=0.002)
    train(
        Grpo(made, prompts, RewardSet([NamedReward("right", right)], 60), PolicyLoss(), chosen, seed=seed),
        lambda _: None,
    )
    gain = score() - before
    error = float(gain.std() / len(gain) ** 0.5)
    assert float(gain.mean()) > max(5 * error, 0.1), (
        f"{float(before.mean()):.3f} + {float(gain.mean()):.3f} ± {error:.3f}"
    )
