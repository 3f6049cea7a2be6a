"""Advantage times denoising loss as a baseline: it is the formula and no policy gradient, and it trains a flow policy's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import kstest, pearsonr
from torch import Tensor

import contract
from commands import relgrad
from enumerated import flat_gradient, move, nudge, seeded
from flow_policies import PROMPTS
from relgrad.baselines import denoising_flow
from relgrad.baselines.denoising_flow import DenoisingPolicy, Settings
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Toy
from relgrad.core.randomness import Draws
from relgrad.core.types import Prompt, Rollouts
from relgrad.networks.weights.folder import newest
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import flow
from relgrad.policies.flow import toy as flow_toy
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.settings import Lora
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.trajectories.states import unpack_states

BETA = 0.05


def small(**options: Any) -> DenoisingPolicy:
    """A random policy that writes 6 positions in 5 steps, away from its reference."""
    settings = Settings(**{"max_completion_length": 6, "sampling_steps": 5, "device": "cpu", **options})
    policy = DenoisingPolicy(FlowPolicy(flow_toy.parts(settings), settings))
    policy.freeze_reference()
    move(policy)
    lengthen(policy, 1.5)
    return policy


@torch.no_grad()
def lengthen(policy: DenoisingPolicy, nats: float) -> None:
    """Make the end of sequence less likely."""
    policy.flow.model.output_layer.linear.bias[policy.flow.symbols.end_id] -= nats


def toy(**options: Any) -> Callable[[], Toy]:
    """The flow policy's toy, scored as the baseline does."""

    def build() -> Toy:
        settings = Settings(**{"max_completion_length": 2, "sampling_steps": 2, "device": "cpu", **options})
        flow_policy = FlowPolicy(flow_toy.parts(settings), settings)
        flow_policy.initial = lambda group_B, prompts, draws: flow_toy.fixed(flow_policy, group_B, prompts)
        policy = DenoisingPolicy(flow_policy)
        policy.freeze_reference()

        def every(prompt: Prompt) -> Rollouts:
            return policy.noised(flow_toy.enumerate_all(flow_policy, prompt), Draws.of(seeded(0), 1))

        return Toy(policy, PROMPTS, every, keys, flow_toy.reward)

    return build


def keys(rollouts: Rollouts) -> list[Hashable]:
    """All states, and the draws: what a row holds."""
    drawn = (rollouts.trace["time_B2"].tolist(), rollouts.trace["noised_B2E"].flatten(1).tolist())
    return [(states, *map(tuple, row)) for states, *row in zip(flow_toy.keys(rollouts), *drawn, strict=True)]


def toys() -> dict[str, Callable[[], Toy]]:
    """For the contract's fresh process."""
    return {
        "uniform-squared": toy(exponent=2),
        "mask-lora": toy(source="mask", lora=Lora(r=2)),
        "temperature": toy(temperature=0.7),
    }


# ---------------------------------------------------------------------- the contract
# all but "learns", which nothing promises of this objective


@pytest.mark.parametrize("build", toys().values(), ids=toys())
@pytest.mark.parametrize("name", sorted(contract.EVERYONE.keys() - {"learns"}))
def test_the_contract_of_every_policy(build: Callable[[], Toy], name: str) -> None:
    contract.EVERYONE[name](build())


def test_the_contract_round_trip(tmp_path: Path) -> None:
    differences = contract.check_round_trips("test_denoising_flow", toys(), tmp_path)
    assert differences == pytest.approx(dict.fromkeys(toys(), 0.0), abs=1e-5)


@pytest.mark.parametrize(("name", "finding"), [("mass", "have mass"), ("gradient", "finite differences|estimated")])
def test_it_says_that_it_is_no_law_and_the_contract_finds_that_it_is_none(name: str, finding: str) -> None:
    made = toy()()
    assert made.policy.law == "surrogate"
    with pytest.raises(AssertionError, match=finding):
        contract.EXACT_ONLY[name](made)


# ---------------------------------------------------------------------- the formula


def by_hand(policy: DenoisingPolicy, rollouts: Rollouts, row: int) -> tuple[Tensor, Tensor]:
    """(GKL, KL) of one row: one plain forward pass per draw over the prompt and the noised text, position after position."""
    trace, flow_policy = rollouts.trace, policy.flow
    ordinary = flow_policy.symbols.drawable_K
    prompt = flow_policy.encode(rollouts.prompts[int(rollouts.group_B[row])])
    text = list(rollouts.outputs[row].ids)
    found = []
    for draw in range(2):
        t, noised = float(trace["time_B2"][row, draw]), trace["noised_B2E"][row, draw].tolist()
        ids_1L, time_1 = torch.tensor([[*prompt, *noised]]), torch.tensor([t])

        def log_p(ids_1L: Tensor = ids_1L, time_1: Tensor = time_1) -> Tensor:
            """[len(text), V] over ordinary ids and the end; temperature 1."""
            hidden_LH = flow_policy.model.hidden(ids_1L, time_1)[0, len(prompt) : len(prompt) + len(text)]
            logits_LV = flow_policy.model.logits(hidden_LH)
            kept_LV = logits_LV[:, ordinary].log_softmax(-1)
            return torch.full_like(logits_LV, -torch.inf).index_copy(1, ordinary, kept_LV)

        log_LV = log_p()
        n = flow_policy.scheduler.exponent
        live = [token == flow_policy.symbols.mask_id or flow_policy.symbols.mask_id is None for token in noised]
        if draw == 0:
            rate = n * t ** (n - 1) / (1 - t**n)
            terms = []
            for i, (now, wanted) in enumerate(zip(noised, text, strict=False)):
                same = float(now == wanted)
                bracket = log_LV[i, now].exp() - same + (log_LV[i, wanted] if not same else 0.0)
                terms.append(-rate * bracket * float(live[i]))
        else:
            with torch.no_grad(), policy.reference():
                start_LV = log_p()
            terms = [
                (log_LV[i, ordinary].exp() * (log_LV - start_LV)[i, ordinary]).sum() * float(live[i])
                for i in range(len(text))
            ]
        found.append(torch.stack(terms).sum() / len(text))
    return found[0], found[1]


def written(policy: DenoisingPolicy) -> Rollouts:
    rollouts = policy.sample(PROMPTS, 6, seeded(3))
    lengths = {len(output.ids) for output in rollouts.outputs}
    assert 6 in lengths
    assert len(lengths - {0}) > 1, "texts of several lengths"
    return rollouts


OPTIONS = [{}, {"exponent": 2, "temperature": 0.5}, {"source": "mask"}, {"lora": Lora(r=2)}]


@pytest.mark.parametrize("options", OPTIONS, ids=["uniform", "squared-temperature", "mask", "lora"])
def test_value_and_gradient_are_the_formulas(options: dict[str, Any]) -> None:
    policy = small(**options)
    rollouts = written(policy)
    cells_N2 = rollouts.cells()
    scores = policy.score(rollouts, cells_N2, reference_kl=True)
    hand = [by_hand(policy, rollouts, row) for row in cells_N2[:, 0].tolist()]
    for found_N, column in ((-scores.logp_N, 0), (scores.kl_N, 1)):
        wanted_N = torch.stack([values[column] for values in hand])
        torch.testing.assert_close(found_N, wanted_N, rtol=1e-4, atol=1e-5)
        gradient_P = flat_gradient(policy, found_N.sum())
        by_hand_P = flat_gradient(policy, wanted_N.sum())
        assert float((gradient_P - by_hand_P).norm()) <= 1e-3 * float(by_hand_P.norm())
    assert float(scores.kl_N.detach().max()) > 0.01


def test_the_gradient_is_the_slope_of_the_value() -> None:
    policy = small()
    rollouts = written(policy)
    cells_N2 = rollouts.cells()
    weight_N = torch.randn(len(cells_N2), generator=seeded(4), dtype=torch.float64)

    def value() -> Tensor:
        scores = policy.score(rollouts, cells_N2, reference_kl=True)
        return (weight_N * (-scores.logp_N + scores.kl_N)).sum()

    gradient_P = flat_gradient(policy, value())
    norm, step, ends = float(gradient_P.norm()), 1e-3, []
    for scale in (step, -2 * step, step):
        nudge(policy, gradient_P / norm, scale)
        with torch.no_grad():
            ends.append(float(value()))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=0.02)


def test_an_update_follows_the_originals_loss() -> None:
    """mean_b(A_b GKL_b + beta KL_b) over all rollouts, by the loop with `reinforce` and the exact KL."""
    settings = GrpoSettings(
        num_prompts=3, num_generations=6, loss_type="reinforce", beta=BETA, kl_estimator="exact", learning_rate=1e-3
    )
    loss = PolicyLoss(loss_type="reinforce", beta=BETA, kl_estimator="exact")
    rewards = RewardSet([NamedReward("a", lambda completions: [float(c.count("a")) for c in completions])], 60)
    policy = small()
    loop = Grpo(policy, PROMPTS, rewards, loss, settings, seed=1)
    found: list[Tensor] = []

    def keep(step: int) -> dict[str, float]:
        found.extend(p.grad.double().flatten().clone() for _, p in policy.parameters())
        return {}

    loop.optimizer.step = keep
    metrics = loop.update().metrics
    batch = loop.batch
    assert batch is not None
    (rollouts,) = (part.rollouts for part in batch.parts)
    rows = rollouts.cells()[:, 0].tolist()
    hand = [(batch.advantage_B[row], *by_hand(policy, rollouts, row)) for row in rows]
    value = torch.stack([a * gkl + BETA * kl for a, gkl, kl in hand]).sum() / rollouts.rows
    wanted_P = flat_gradient(policy, value)
    assert metrics["loss"] == pytest.approx(value.item(), rel=1e-4)
    assert float((torch.cat(found) - wanted_P).norm()) <= 1e-3 * float(wanted_P.norm())
    assert metrics["parity/max_abs"] < 1e-4


# ---------------------------------------------------------------------- what is drawn


def test_times_are_uniform_and_both_draws_independent() -> None:
    policy = small(exponent=2)
    rollouts = policy.sample([PROMPTS[0]], 2000, seeded(5))
    time_B2, noised_B2E = rollouts.trace["time_B2"], rollouts.trace["noised_B2E"].long()
    assert float(time_B2.min()) >= 1e-4
    assert float(time_B2.max()) <= 1 - 1e-4
    final_BE = unpack_states(rollouts.trace, torch.arange(2000))[:, -1]
    ended_BE = (final_BE == policy.flow.symbols.end_id).cumsum(-1) > 0
    clean_BE = final_BE.masked_fill(ended_BE, policy.flow.symbols.end_id)
    for draw in range(2):
        assert kstest(time_B2[:, draw].numpy(), "uniform").pvalue > 1e-4
        kept_B = (noised_B2E[:, draw] == clean_BE).double().mean(-1)
        expected_B = time_B2[:, draw].square() * (2 / 3) + 1 / 3  # kappa + (1 - kappa) / 3 of three ids
        excess_B = kept_B - expected_B
        assert abs(float(excess_B.mean())) < 4 * float(excess_B.std()) / math.sqrt(2000)
        assert abs(pearsonr(excess_B, time_B2[:, draw]).statistic) < 0.1
    assert abs(pearsonr(time_B2[:, 0], time_B2[:, 1]).statistic) < 0.1
    middle_B = (time_B2 - 0.5).abs().amax(-1) < 0.3
    differ = (noised_B2E[middle_B, 0] != noised_B2E[middle_B, 1]).any(-1).double().mean()
    assert float(differ) > 0.9


def test_it_writes_what_a_flow_policy_writes() -> None:
    policy = small()
    plain = FlowPolicy(policy.flow.parts, flow.Settings(**policy.flow.settings.model_dump()))
    ours, theirs = (p.sample(PROMPTS, 5, seeded(6)) for p in (policy, plain))
    assert ours.outputs == theirs.outputs
    with policy.evaluation(), plain.evaluation():
        assert policy.sample(PROMPTS, 2, seeded(7)).outputs == plain.sample(PROMPTS, 2, seeded(7)).outputs
    assert policy.film(PROMPTS, 1, seeded(8))[0]["final"] == plain.film(PROMPTS, 1, seeded(8))[0]["final"]


def test_an_empty_text_has_no_decision() -> None:
    policy = small()
    lengthen(policy, -4)
    rollouts = policy.sample(PROMPTS, 20, seeded(9))
    length_B = torch.tensor([len(output.ids) for output in rollouts.outputs])
    assert 0 < int((length_B == 0).sum()) < 60
    assert torch.equal(rollouts.mask_BT[:, 0], length_B > 0)
    assert torch.equal(rollouts.size_BT[:, 0], length_B)
    assert len(rollouts.cells()) == int((length_B > 0).sum())


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", ["train_steps", "branch_steps"])
def test_steps_of_a_trajectory_are_not_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=2: this baseline scores the finished text"):
        Settings(**{name: 2})


PRETRAINED = """
name: pre
stage: sft
policy: &flow
  {kind: flow, model: tiny, network: {hidden: 16, blocks: 1, heads: 2, cond_dim: 8, length: 12}, max_completion_length: 4,
   sampling_steps: 4, ema_decay: 0.5, device: cpu}
task: &task {kind: digits, length: 2, operation: copy, train_size: 60, held_out_size: 20}
rewards: [{kind: exact, per_character: true}]
sft: {steps: 30, batch_size: 16, learning_rate: 1e-2}
evaluation: {num_prompts: 8, num_generations: 2}
"""
BASELINE = """
name: old
policy: {kind: relgrad.baselines.denoising_flow, model: OUT/pre/1-sft, max_completion_length: 4, sampling_steps: 4, ema_decay: 0.5,
         device: cpu}
task: {kind: digits, length: 2, operation: copy, train_size: 60, held_out_size: 20}
rewards: [{kind: exact, per_character: true}]
grpo: {steps: 4, num_prompts: 4, num_generations: 6, learning_rate: 1e-3, loss_type: reinforce, beta: 0.05, kl_estimator: exact}
evaluation: {num_prompts: 8, num_generations: 2, kl_bound: 0.5}
"""


def test_it_goes_on_from_a_flow_policys_folder_and_leaves_one(tmp_path: Path) -> None:
    for name, text in (("pre", PRETRAINED), ("old", BASELINE)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("OUT", str(tmp_path)), encoding="utf-8")
        relgrad("run", tmp_path / f"{name}.yaml", f"out={tmp_path}")
    stage = tmp_path / "old" / "1-grpo"
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert all(math.isfinite(r[k]) for r in records for k in ("loss", "kl", "grad_norm"))
    assert all(r["loss"] == pytest.approx(r["pg_loss"] + r["kl_penalty"], abs=1e-5) for r in records)
    assert records[0]["kl"] == 0
    assert records[-1]["kl"] > 0
    assert all(r["parity/max_abs"] < 1e-3 * max(1, abs(r["mean_log_prob"])) for r in records if "parity/max_abs" in r)

    recipe = yaml.safe_load(BASELINE)["policy"]
    options = {k: v for k, v in recipe.items() if k not in ("kind", "model")}
    opened = [
        module.build(module.Settings(model=str(stage), **options), seed=3)
        for module in (flow, registry.find("policies", recipe["kind"]))
    ]
    prompts = [Prompt("12=", id=0), Prompt("77=", id=1)]
    texts = [[o.text for o in policy.sample(prompts, 4, seeded(1)).outputs] for policy in opened]
    assert texts[0] == texts[1]
    before = flow.build(flow.Settings(model=str(tmp_path / "pre" / "1-sft"), **options), seed=3)
    moved = [not torch.equal(a, b) for (_, a), (_, b) in zip(before.parameters(), opened[0].parameters(), strict=True)]
    assert any(moved), "four steps have moved the weights"
    again = opened[1]
    again.load(newest(stage))
    with pytest.raises(RelgradError, match="no vocabulary"):
        again.load(tmp_path)


def test_it_is_found_by_the_name_that_a_recipe_gives() -> None:
    assert registry.find("policies", "relgrad.baselines.denoising_flow") is denoising_flow
