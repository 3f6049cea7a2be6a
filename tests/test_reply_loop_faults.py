"""Why the loop of the original trainer of replies could not learn: each of its faults, and the right counterpart, on tiny models.

The loop, as it was: replies are sampled in train mode, turned into text and tokenised again with their prompt; the mean of their
token log-probabilities, computed under no_grad and without the first token, is weighted by (r - mean) / std, and the mean of
log pi - log pi_ref is added times .1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relgrad.core.randomness import generator
from relgrad.core.types import Output, Prompt
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal import tiny
from relgrad.objectives.divergences import k1, k2
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.autoregressive import AutoregressivePolicy, Lora, Settings, build
from relgrad.policies.autoregressive.build import compose
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo
from relgrad.training.settings import GrpoSettings
from toy_policy import TablePolicy

PROMPT = Prompt("p")
K = 4


def tokenizer_with_pairs() -> Any:
    """Characters, and one merge: a then b is the token ab."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, **{c: i + 1 for i, c in enumerate("abcp ")}, "ab": 6}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def policy_of(tokenizer: Any = None, **settings: Any) -> AutoregressivePolicy:
    chosen = Settings(model="tiny:32x1", **{"max_completion_length": 4, **settings})
    if tokenizer is None:
        return build(chosen, seed=0)
    return compose(tiny.build_model(32, 1), tokenizer, chosen)


def theirs(policy: AutoregressivePolicy, prompt: str, reply: str) -> tuple[Tensor, int]:
    """(mean log-probability of a reply, how many tokens it is the mean of), computed as the loop did."""
    with torch.no_grad():
        ids = policy.encoder.tokenizer(f"{prompt}{reply.strip()}", return_tensors="pt").input_ids
        start = policy.encoder.tokenizer(prompt, return_tensors="pt").input_ids.shape[1]
        logp_TV = policy.model(ids).logits[0].log_softmax(-1)
        terms = [logp_TV[t, ids[0, t + 1]] for t in range(start, ids.shape[1] - 1)]
        return torch.stack(terms).mean(), len(terms)


# ---------------------------------------------------------------------- under no_grad


def test_log_probabilities_under_no_grad_have_no_gradient() -> None:
    policy = policy_of()
    rollouts = policy.sample([PROMPT], K, generator(0))
    advantage_B = torch.tensor([1.0, -1.0, 0.5, -0.5])
    values = torch.stack([theirs(policy, "p", f"{output.text}xyz")[0] for output in rollouts.outputs])
    loss = -(values * advantage_B).mean()
    assert not loss.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    cells = rollouts.cells()
    logp_N = policy.score(rollouts, cells).logp_N
    (-(logp_N * advantage_B[cells[:, 0]]).sum()).backward()
    assert max(float(p.grad.abs().max()) for _, p in policy.parameters() if p.grad is not None) > 1e-4


# ---------------------------------------------------------------------- the mean of k1


def gradient(value: Tensor, policy: TablePolicy) -> Tensor:
    (slope,) = torch.autograd.grad(value, policy.table_PSV, retain_graph=True)
    return slope


def test_the_mean_of_k1_as_a_loss_holds_nothing_back() -> None:
    """Exactly, over all trajectories: its gradient is that of E[1 / length] whatever the reference; k2's is the KL's."""
    policy = TablePolicy(["p"], Truncation(), seed=1)
    everything = policy.enumerate(PROMPT)
    cells = everything.cells()
    logp_B = torch.zeros(everything.rows).index_add(0, cells[:, 0], policy.score(everything, cells).logp_N)
    chance_B, length_B = logp_B.detach().exp(), everything.mask_BT.sum(-1)
    assert float(chance_B.sum()) == pytest.approx(1, abs=1e-5)
    slopes, right, exact = [], [], []
    for seed in (2, 3):
        reference = TablePolicy(["p"], Truncation(), seed=seed)
        with torch.no_grad():
            other_B = torch.zeros(everything.rows).index_add(0, cells[:, 0], reference.score(everything, cells).logp_N)
        slopes.append(gradient((chance_B * k1(logp_B, other_B) / length_B).sum(), policy))
        assert float(gradient((chance_B * k1(logp_B, other_B)).sum(), policy).abs().max()) < 1e-6, (
            "the sum of k1: nothing"
        )
        right.append(gradient((chance_B * k2(logp_B, other_B)).sum(), policy))
        exact.append(gradient((logp_B.exp() * (logp_B - other_B)).sum(), policy))
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=0)
    shorter = gradient((logp_B.exp() / length_B).sum(), policy)
    torch.testing.assert_close(slopes[0], shorter, atol=1e-6, rtol=0)
    torch.testing.assert_close(right, exact, atol=1e-6, rtol=0)
    assert float((exact[0] - exact[1]).abs().max()) > 0.1, "the KL's gradient depends on the reference"


# ---------------------------------------------------------------------- tokenised again


def test_text_that_is_tokenised_again_is_another_trajectory() -> None:
    policy = policy_of(tokenizer_with_pairs())
    a, b, c = (policy.encoder.tokenizer.convert_tokens_to_ids(sign) for sign in "abc")
    text = policy.encoder.decode([[a, b, c]])[0]
    again = policy.encoder.tokenizer(text).input_ids
    assert (text, len(again)) == ("abc", 2), "sampled were three tokens"
    prompt_ids = policy.encode(PROMPT).tolist()
    with torch.no_grad():
        logp_TV = policy.model(torch.tensor([[*prompt_ids, a, b, c]])).logits[0].log_softmax(-1)
    start = len(prompt_ids) - 1
    sampled = [float(logp_TV[start + t, token]) for t, token in enumerate((a, b, c))]
    value, terms = theirs(policy, "p", text)
    assert terms == 1, "of three tokens two are lost: one in the text, and the first one is never scored"
    assert float(value) != pytest.approx(sum(sampled) / 3, abs=1e-3)


def test_what_was_sampled_is_what_is_scored() -> None:
    policy = policy_of(tokenizer_with_pairs())
    rollouts = policy.sample([PROMPT], 16, generator(0))
    with torch.no_grad():
        logp_N = policy.score(rollouts, rollouts.cells()).logp_N
    torch.testing.assert_close(logp_N, rollouts.behaviour_logp_BT[rollouts.mask_BT], atol=1e-5, rtol=0)
    ends = [row for row, stop in enumerate(rollouts.stop) if stop == "eos"]
    assert all(int(rollouts.mask_BT[row].sum()) == len(rollouts.outputs[row].ids) + 1 for row in ends), "the end counts"


# ---------------------------------------------------------------------- train mode


def test_in_train_mode_two_passes_disagree() -> None:
    policy = policy_of(lora=Lora(r=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1, name)))
    ids = torch.tensor([[5, 9, 12, 7]])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        policy.model.train()
        one, other = (policy.model(ids).logits.log_softmax(-1) for _ in range(2))
        policy.model.eval()
    assert float((one - other).abs().max()) > 0.1, "two ratios of one policy to itself"
    rollouts = policy.sample([PROMPT], 8, generator(0))
    logp_N = policy.score(rollouts, rollouts.cells()).logp_N.detach()
    torch.testing.assert_close(logp_N, rollouts.behaviour_logp_BT[rollouts.mask_BT], atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- all together


def share_of_b(prompt: Prompt, outputs: list[Output]) -> list[float]:
    return [output.text.count("b") / 3 for output in outputs]


def their_advantages(reward_K: Tensor) -> Tensor:
    spread = reward_K.std()
    return torch.zeros_like(reward_K) if spread < 1e-8 else ((reward_K - reward_K.mean()) / spread).clamp(-10, 10)


def test_their_loop_moves_nothing_and_ours_learns() -> None:
    """The same policy, reward and number of steps. In theirs every backward pass fails; passed over, nothing moves."""
    policy = TablePolicy(["p"], Truncation(), seed=1)
    start = policy.table_PSV.detach().clone()
    optimizer = torch.optim.AdamW([policy.table_PSV], lr=0.1, weight_decay=0)
    failures = 0
    for step in range(30):
        rollouts = policy.sample([PROMPT], K, generator(0, step))
        with torch.no_grad():
            cells = rollouts.cells()
            sums_B = torch.zeros(K).index_add(0, cells[:, 0], policy.score(rollouts, cells).logp_N)
            mean_B = sums_B / rollouts.mask_BT.sum(-1)
        reward_K = torch.tensor(share_of_b(PROMPT, list(rollouts.outputs)))
        loss = -(mean_B * their_advantages(reward_K)).mean() + 0.1 * mean_B.mean()
        try:
            loss.backward()
        except RuntimeError:
            failures += 1
        optimizer.step()
    assert failures == 30
    assert torch.equal(policy.table_PSV.detach(), start)

    def mean_reward() -> float:
        outputs = policy.sample([PROMPT], 400, generator(9)).outputs
        return sum(share_of_b(PROMPT, list(outputs))) / 400

    before = mean_reward()
    settings = GrpoSettings(num_prompts=1, num_generations=8, steps=30, learning_rate=0.1, beta=0.02)
    rewards = RewardSet([NamedReward("b", share_of_b)], 60)
    loop = Grpo(policy, [PROMPT], rewards, PolicyLoss(beta=0.02), settings, seed=1)
    for _ in range(30):
        loop.update()
    assert mean_reward() > before + 0.3
