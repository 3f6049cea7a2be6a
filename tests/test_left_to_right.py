"""REINFORCE on left-to-right log-probabilities as a baseline of ReFusion: it is the formula, and it misses what wrote the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import contract
from commands import lines, relgrad
from enumerated import flat_gradient, rewards_of, row_logp, seeded
from relgrad.baselines.left_to_right import LeftToRightPolicy, Settings
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Toy
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.refusion import toy as refusion_toy
from relgrad.policies.refusion.toy import plain_copy
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

THREE_SLOTS = {"max_completion_length": 3, "slot_size": 1, "sampling_steps": 3}
TWO_SLOTS = {"max_completion_length": 4, "slot_size": 2, "sampling_steps": 2}


def toy(**options: Any) -> Callable[[], Toy]:
    """A ReFusion toy, scored as the baseline does."""

    def build() -> Toy:
        made = refusion_toy.make(**options)()
        policy = LeftToRightPolicy(made.policy)
        return Toy(policy, made.prompts, lambda p: policy.as_texts(made.enumerate(p)), refusion_toy.keys, made.reward)

    return build


TOYS = {"three-slots": toy(**THREE_SLOTS), "two-slots-temperature": toy(temperature=0.8, **TWO_SLOTS)}


QUICK = {"chunks", "parity", "reference"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(contract.EVERYONE.keys() - {"learns"})
    ],
)
def test_the_contract_of_every_policy(name: str) -> None:
    contract.EVERYONE[name](TOYS["two-slots-temperature"]())


def test_it_says_that_it_is_no_law_and_the_contract_finds_that_it_is_none() -> None:
    made = TOYS["three-slots"]()
    assert made.policy.law == "surrogate"
    with pytest.raises(AssertionError, match="have mass"):
        contract.EXACT_ONLY["mass"](made)
    with pytest.raises(RelgradError, match="entropy_coef"):
        made.policy.score(made.policy.sample(made.prompts, 1, seeded(0)), torch.tensor([[0, 0]]), entropy=True)


@pytest.mark.parametrize("name", TOYS)
def test_log_probabilities_are_those_of_the_library_reading_the_text(name: str) -> None:
    made = TOYS[name]()
    policy: Any = made.policy
    rollouts = policy.sample(made.prompts, 3, seeded(1))
    model, mask = plain_copy(policy.refusion), policy.refusion.network.mask_id
    temperature = policy.refusion.settings.temperature
    for row, output in enumerate(rollouts.outputs):
        prompt = policy.refusion.encode(rollouts.prompts[int(rollouts.group_B[row])]).tolist()
        text = [*output.ids, *([0] if rollouts.stop[row] == "eos" else [])]
        with torch.no_grad():
            logits_LV = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
        logits_LV[:, mask] = -torch.inf
        logp_L = (logits_LV / temperature).log_softmax(-1)[torch.arange(len(text)), torch.tensor(text)]
        recorded = rollouts.behaviour_logp_BT[row][rollouts.mask_BT[row]]
        torch.testing.assert_close(recorded, logp_L, atol=1e-5, rtol=1e-5)


def test_a_fresh_step_has_the_gradient_of_reinforce_with_the_mean_over_tokens() -> None:
    """And of k3 to a reference that is far off, with the settings of the recipe; beta is large so that k3 counts."""
    recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "forms-refusion-baseline.yaml").read_text())[
        "grpo"
    ]
    terms: dict[str, Any] = {key: recipe[key] for key in ("loss_type", "use_bias_correction_kl")} | {"beta": 5.0}
    made = TOYS["two-slots-temperature"]()
    made.policy.freeze_reference()
    with torch.no_grad():
        for number, (_, parameter) in enumerate(made.policy.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    rewards = RewardSet([NamedReward("a", lambda completions, **_: [float(c.count("a")) for c in completions])], 60)
    settings = GrpoSettings(num_prompts=3, num_generations=4, scale_rewards="none", **terms)
    loop = Grpo(made.policy, made.prompts, rewards, PolicyLoss(**terms), settings)
    batch = loop.generate()
    loop.batch = batch
    loop._accumulate(batch, torch.arange(len(batch.group_B)))
    left = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in made.policy.parameters()]
    )
    rollouts = batch.parts[0].rollouts
    logp_B, length_B = row_logp(made.policy, rollouts), rollouts.mask_BT.sum(-1)
    worth_B = torch.tensor([float(output.text.count("a")) for output in rollouts.outputs])
    advantage_B = (worth_B.view(3, 4) - worth_B.view(3, 4).mean(-1, keepdim=True)).flatten()
    cells_N2 = rollouts.cells()
    with torch.no_grad(), made.policy.reference():
        reference_N = made.policy.score(rollouts, cells_N2).logp_N
    ahead_N = reference_N - made.policy.score(rollouts, cells_N2).logp_N
    k3_N = ahead_N.exp() - ahead_N - 1
    assert float(k3_N.detach().mean()) > 0.01
    k3_B = torch.zeros(rollouts.rows).index_add(0, cells_N2[:, 0], k3_N) / length_B
    by_hand = flat_gradient(made.policy, (5.0 * k3_B - advantage_B * logp_B / length_B).mean())
    torch.testing.assert_close(left.double(), by_hand, atol=5e-6, rtol=1e-4)  # float32, and k3 times 5


def test_its_gradient_misses_the_masks_and_the_choice_of_slots() -> None:
    """All trajectories of a toy that writes three slots of one token, one a step: each is drawn at a mask, and the slots' order
    from how sure the network is. The baseline's gradient, with the exact mean reward, points elsewhere than that of the law's own
    log-probability, and is 0 where the masks are embedded."""
    made = refusion_toy.make(**THREE_SLOTS)()
    baseline = LeftToRightPolicy(made.policy)
    everything = made.enumerate(made.prompts[0])
    reward_B = rewards_of(made, everything)
    logp_B = row_logp(made.policy, everything)
    p_B = logp_B.detach().exp()
    assert float(p_B.sum()) == pytest.approx(1, abs=1e-4)
    weight_B = p_B * (reward_B - float(p_B @ reward_B))
    exact_P = flat_gradient(made.policy, weight_B @ logp_B)
    baseline_P = flat_gradient(baseline, weight_B @ row_logp(baseline, baseline.as_texts(everything)))
    cosine = float(exact_P @ baseline_P / exact_P.norm() / baseline_P.norm())
    assert cosine < 0.5
    exact_V, baseline_V = (mask_embedding(made, gradient_P) for gradient_P in (exact_P, baseline_P))
    assert float(exact_V.norm()) > 1e-3
    assert float(baseline_V.abs().max()) == 0


def mask_embedding(made: Toy, gradient_P: Tensor) -> Tensor:
    """The part of a flat gradient that is of the mask's input embedding."""
    policy: Any = made.policy
    first = 0
    for name, parameter in policy.parameters():
        if "embed_tokens" in name:
            table = gradient_P[first : first + parameter.numel()].view(parameter.shape)
            return table[policy.network.mask_id]
        first += parameter.numel()
    raise AssertionError("no embedding among the parameters")


@pytest.mark.parametrize(
    ("options", "message"), [({"train_steps": 1}, "none of the steps"), ({"top_p": 0.9}, "no truncated law")]
)
def test_settings_that_it_would_leave_out_of_account_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


@pytest.mark.slow
def test_it_goes_on_from_a_run_of_refusion(tmp_path: Path) -> None:
    relgrad("run", "refusion-quick", f"out={tmp_path}", "stages.0.sft.steps=5", "stages.1.grpo.steps=1",
            "evaluation.num_prompts=4")  # fmt: skip
    start = tmp_path / "refusion-quick" / "1-sft"
    short = ("grpo.steps=1", "grpo.num_prompts=2", "evaluation.num_prompts=2", "policy.max_completion_length=8",
             "policy.slot_size=4", "policy.sampling_steps=2", "policy.evaluation_steps=2")  # fmt: skip
    relgrad("run", "forms-refusion-baseline", f"out={tmp_path}", f"policy.model={start}", *short,
            "evaluation.rewards=[{kind: forms}]")  # fmt: skip
    assert lines(tmp_path / "forms-refusion-baseline" / "metrics.jsonl")
