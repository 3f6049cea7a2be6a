"""What went wrong in fill-in GRPO elsewhere does not go wrong here: references, constant rewards, dropout, special ids."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Output, Prompt, Score
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import fill_in
from relgrad.policies.fill_in.policy import FillInPolicy
from relgrad.policies.fill_in.settings import Settings
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import masked_text
from relgrad.text.masking import Random
from relgrad.text.vocabulary import BLANK, Vocabulary
from relgrad.training.grpo import Grpo, GrpoSettings, train

TASK = masked_text.load(
    masked_text.Settings(length=32, aligned="window", stages=(Random(min_masked_ratio=0.2, max_masked_ratio=0.5),)), 0
)
PROMPTS = [TASK.train[i] for i in range(64)]


def policy(seed: int = 0, reference: bool = True, spread: float = 0.3, **options) -> FillInPolicy:
    """A small random policy whose distributions are far from uniform."""
    settings = Settings(block_size=32, n_layer=2, n_head=2, n_embd=32, **options)
    made = fill_in.build(settings, seed)
    with torch.no_grad():
        draw = generator(seed, "spread")
        for _, parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
    if reference:
        made.freeze_reference()
    return made


def constant(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
    return [Score(0.5)] * len(outputs)


def spaces(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
    return [Score(output.text.count(" ") / len(output.text)) for output in outputs]


def loop(made: FillInPolicy, reward, loss: PolicyLoss, **options) -> Grpo:
    names = PolicyLoss.__dataclass_fields__
    given = {n: getattr(loss, n) for n in names}
    settings = GrpoSettings(**(given | {"num_prompts": 4, "num_generations": 8} | options))
    return Grpo(made, PROMPTS, RewardSet([NamedReward("r", reward)], 60), loss, settings)


def kl_per_position(made: FillInPolicy) -> float:
    """Exact KL(policy || reference), nats per masked position, on fresh samples."""
    rollouts = made.sample(PROMPTS, 1, generator(1, "kl"))
    with torch.no_grad():
        return float(made.score(rollouts, rollouts.cells(), reference_kl=True).kl_N.mean())


def flat(made: FillInPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in made.parameters()])


EXACT = PolicyLoss(beta=0.1, kl_estimator="exact")


@pytest.mark.parametrize(
    "loss", [EXACT, PolicyLoss(beta=0.1, kl_estimator="k3"), PolicyLoss(beta=0.1, kl_estimator="k2")]
)
def test_the_reference_alone_changes_the_update_when_beta_is_positive(loss: PolicyLoss) -> None:
    after = []
    for reference in (policy(seed=1), policy(seed=2)):
        made = policy()
        made.weights.start = reference.weights.start
        loop(made, spaces, loss, steps=1, learning_rate=1e-3).update()
        after.append(flat(made))
    assert float((after[0] - after[1]).abs().max()) > 1e-5


def test_without_beta_the_reference_does_not_matter() -> None:
    after = []
    for reference in (policy(seed=1), policy(seed=2)):
        made = policy()
        made.weights.start = reference.weights.start
        loop(made, spaces, PolicyLoss(), steps=1, learning_rate=1e-3).update()
        after.append(flat(made))
    assert torch.equal(*after)


@pytest.mark.parametrize("loss", [EXACT, PolicyLoss(beta=0.1, kl_estimator="k3")])
def test_a_constant_reward_leaves_the_policy_where_it_is(loss: PolicyLoss) -> None:
    """160 steps at 1e-4, sampled at temperature .8 and top-p .95: KL below .01 nats per position (here: nothing moves)."""
    made = policy(temperature=0.8, top_p=0.95)
    before = flat(made)
    train(loop(made, constant, loss, steps=160, learning_rate=1e-4), lambda record: None)
    assert kl_per_position(made) < 0.01
    assert float((flat(made) - before).abs().max()) < 1e-3


def test_beta_pulls_a_policy_back_to_its_reference() -> None:
    made = policy()
    with torch.no_grad():
        for _, parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(3, "push")) * 0.05)
    far = kl_per_position(made)
    train(
        loop(made, constant, PolicyLoss(beta=1.0, kl_estimator="exact"), steps=60, learning_rate=3e-3), lambda r: None
    )
    assert kl_per_position(made) < far / 3


def test_policy_and_reference_are_one_at_the_start_with_dropout_configured() -> None:
    made = policy(dropout=0.4)
    assert kl_per_position(made) == 0.0
    record = loop(made, spaces, EXACT, steps=1).update()
    assert record.metrics["kl"] == 0.0
    assert record.metrics["parity/max_abs"] <= 1e-5


def test_groups_without_spread_are_a_step_that_changes_nothing() -> None:
    made = policy()
    before = flat(made)
    record = loop(made, constant, PolicyLoss(), steps=1, learning_rate=1e-2).update()
    assert record.metrics["frac_reward_zero_std"] == 1.0
    assert torch.equal(flat(made), before)


def test_special_ids_are_never_written_even_when_the_network_wants_them() -> None:
    made = policy()
    with torch.no_grad():
        weight = made.model.transformer.wte.weight
        weight[list(made.vocabulary.excluded)] = 50 * weight[: len(made.vocabulary.excluded)]
    rollouts = made.sample(PROMPTS[:8], 16, generator(0, "special"))
    assert not {i for o in rollouts.outputs for i in o.ids} & set(made.vocabulary.excluded)
    assert BLANK not in "".join(o.text for o in rollouts.outputs)


def test_what_is_not_masked_stays() -> None:
    rollouts = policy().sample(PROMPTS[:8], 4, generator(0, "stays"))
    for row, output in enumerate(rollouts.outputs):
        masked = rollouts.prompts[int(rollouts.group_B[row])].columns["masked_ids"]
        mask_id = max(masked)
        assert all(a == b for a, b in zip(output.ids, masked, strict=True) if b != mask_id)


def test_a_text_of_ones_own_is_filled_in() -> None:
    made = policy(spread=0.02)
    rollouts = made.sample([Prompt(f"the {BLANK * 4} of")], 3, generator(0, "own"))
    assert rollouts.mask_BT.sum() == 12
    assert all(o.text.startswith("the ") and o.text.endswith(" of") and len(o.text) == 11 for o in rollouts.outputs)


def test_a_known_optimum_is_reached() -> None:
    """The reward counts spaces among the refilled positions: its ceiling is all of them."""

    def share(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        where = [i for i, c in enumerate(prompt.text) if c == BLANK]
        return [Score(sum(o.text[i] == " " for i in where) / len(where)) for o in outputs]

    made = policy(spread=0.02)
    records = []
    train(loop(made, share, PolicyLoss(), steps=120, learning_rate=3e-3), records.append)
    assert records[0].metrics["reward"] < 0.1
    assert sum(r.metrics["reward"] for r in records[-5:]) / 5 > 0.95


def test_a_forward_runs_once_per_prompt_whatever_the_group() -> None:
    made = policy()
    seen: list[int] = []
    made.model.transformer.ln_f.register_forward_hook(lambda m, i, o: seen.append(o.shape[0]))
    rollouts = made.sample(PROMPTS[:4], 8, generator(0, "once"))
    made.score(rollouts, rollouts.cells())
    assert seen == [4, 4]


def test_supervised_training_learns_and_counts_labels() -> None:
    made = policy(spread=0.02)
    examples = [Example(p, "") for p in PROMPTS[:16]]
    loss, count, _ = made.supervised_loss(examples, generator(0, "a"))
    assert count == sum(v != -100 for e in examples for v in e.prompt.columns["label_ids"])
    assert float(loss.detach()) / count == pytest.approx(
        torch.tensor(float(made.vocabulary.base)).log().item(), abs=0.2
    )


@pytest.mark.parametrize("option", [{"label_smoothing": 0.2}, {"mask_ratio_power": 1.0}, {"critic_weight": 0.5}])
def test_loss_options_act_and_keep_the_gradient_finite(option: dict) -> None:
    examples = [Example(p, "") for p in PROMPTS[:8]]
    plain, _, _ = policy(critic_weight=option.get("critic_weight", 0)).supervised_loss(examples, generator(0, "b"))
    made = policy(**option)
    loss, _, nll = made.supervised_loss(examples, generator(0, "b"))
    loss.backward()
    without_options = policy().supervised_loss(examples, generator(0, "b")).total
    assert nll == pytest.approx(float(without_options.detach()), rel=1e-6)
    assert all(bool(p.grad.isfinite().all()) for _, p in made.parameters() if p.grad is not None)
    if "critic_weight" in option:
        assert made.model.critic_head.weight.grad.abs().max() > 0
    else:
        assert float(loss.detach()) != pytest.approx(float(plain.detach()), rel=1e-3)


def test_label_smoothing_is_its_formula() -> None:
    from relgrad.policies.fill_in.supervised.label_smoothing import cross_entropy

    logp = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log()
    expected = -(0.9 * logp[0, 1] + 0.1 * logp[0, :3].mean())
    assert float(cross_entropy(logp, torch.tensor([1]), 0.1)[0]) == pytest.approx(float(expected))


def test_mask_ratio_weights_give_every_sample_the_same_total_at_power_one() -> None:
    from relgrad.policies.fill_in.supervised.mask_ratio_weight import weights

    ratio = torch.tensor([0.1, 0.5, 1.0])
    assert torch.allclose(weights(ratio, 1.0) * ratio, torch.full((3,), 0.5))
    assert torch.equal(weights(ratio, 0.0), torch.ones(3))


def test_the_causal_form_sees_only_what_is_left() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, n_embd=16, attention_type="causal")).eval()
    ids = torch.randint(0, 20, (2, 10))
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 20
    assert torch.allclose(model.hidden(ids)[:, :6], model.hidden(other)[:, :6], atol=1e-6)
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.int64)], 1)
    valid = torch.arange(13)[None].expand(2, -1) < 10
    assert torch.allclose(model.hidden(padded, valid)[:, :10], model.hidden(ids), atol=1e-5)


def test_padding_is_really_masked() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, n_embd=16)).eval()
    ids = torch.randint(0, 20, (2, 10))
    valid = torch.arange(13)[None].expand(2, -1) < 10
    for junk in (0, 19):
        padded = torch.cat([ids, torch.full((2, 3), junk)], 1)
        assert torch.allclose(model.hidden(padded, valid)[:, :10], model.hidden(ids), atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("no hole at all", id=3), "prompt 3 has no masked position"),
        (Prompt("λ" + BLANK), "not in the vocabulary"),
        (Prompt(BLANK * 33), "more than policy.block_size=32"),
        (Prompt([{"role": "user", "content": BLANK}]), "is a chat"),
        (Prompt(BLANK, {"masked_ids": [5], "vocabulary": "another"}), "made with another vocabulary"),
    ],
)
def test_bad_prompts_say_what_is_wrong(prompt: Prompt, message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        policy().sample([prompt], 2, generator(0, "bad"))


def test_a_network_of_another_size_or_vocabulary_is_not_loaded(tmp_path) -> None:
    policy().save(tmp_path / "a")
    wider = fill_in.build(Settings(block_size=32, n_layer=2, n_head=2, n_embd=64), 0)
    with pytest.raises(RelgradError, match="weights of another network"):
        wider.load(tmp_path / "a")
    other = FillInPolicy(GPT(GPTConfig(vocab_size=6, n_embd=8, n_head=2)), Vocabulary.of_text("abc"), Settings())
    with pytest.raises(RelgradError, match="another vocabulary"):
        other.load(tmp_path / "a")
