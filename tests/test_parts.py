"""A batch may be cut into parts: what is drawn for an item, and the sum of losses and gradients, stay the same.

Networks are float64, so that sums differ by rounding of 1e-16 per term only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from enumerated import flat_gradient, move, seeded
from flow_policies import PROMPTS, fresh, small, spread
from relgrad.baselines.denoising_flow import DenoisingPolicy, Settings
from relgrad.core.protocols import Policy, Trainable
from relgrad.core.randomness import Draws
from relgrad.core.types import Example, Prompt, Rollouts
from relgrad.judges import refill
from relgrad.policies import fill_in, flow
from relgrad.policies.flow import toy as flow_toy
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.tasks import masked_text
from relgrad.text.masking import Random

CUTS = ((2, 3), (1, 1, 3))
TASK = masked_text.load(
    masked_text.Settings(length=16, aligned="line", stages=(Random(min_masked_ratio=0.2, max_masked_ratio=0.5),)), 0
)
MASKED = [Example(TASK.train[i], "") for i in range(5)]
ANSWERS = [
    Example(Prompt(p, id=n), a)
    for n, (p, a) in enumerate((("a", "b"), ("bbb", ""), ("ab", "abcabc"), ("", "c"), ("cc", "ab")))
]


def flow_model(**options: Any) -> FlowPolicy:
    policy = flow.build(fresh(**options), seed=0)
    policy.model.double()
    return spread(policy)


def fill_model(**options: Any) -> fill_in.FillInPolicy:
    policy = fill_in.build(fill_in.Settings(block_size=24, n_layer=2, n_head=2, n_embd=16, **options), seed=0)
    policy.model.double()
    move(policy, scale=0.2)
    return policy


def judge_model(**options: Any) -> refill.RefillJudge:
    judge = refill.build(refill.Settings(untouched=0.4, **options), 0, fill_model())
    judge.judge.model.double()
    move(judge, scale=0.2)  # type: ignore[arg-type]
    return judge


LOSSES: dict[str, tuple[Callable[[], Any], Sequence[Example]]] = {
    "flow": (flow_model, ANSWERS),
    "flow-kl-mask": (lambda: flow_model(source="mask", data_loss="generalised_kl"), ANSWERS),
    "few-step-rk4": (lambda: flow_model(few_step={"finest": 4}, ema_decay=0.5), ANSWERS),
    "few-step-half": (
        lambda: flow_model(few_step={"finest": 4, "teacher": "half_steps"}, ema_decay=0.5, source="mask"),
        ANSWERS,
    ),
    "fill": (lambda: fill_model(label_smoothing=0.1, mask_ratio_power=0.5, critic_weight=0.5), MASKED),
    "judge-positions": (judge_model, MASKED),
    "judge-sequence": (lambda: judge_model(head="sequence"), MASKED),
}


def loss_and_gradient(model: Trainable, examples: Sequence[Example], draws: Draws) -> tuple[Tensor, int, Tensor]:
    loss, count, _ = model.supervised_loss(examples, draws)
    return loss.detach(), count, flat_gradient(model, loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_losses_and_gradients_of_parts_add_up(name: str, cut: tuple[int, ...]) -> None:
    build, examples = LOSSES[name]
    model, seed = build(), 3
    loss, count, gradient_P = loss_and_gradient(model, examples, Draws.of(seeded(seed), len(examples)))
    assert float(gradient_P.norm()) > 0
    first, parts = 0, []
    for size in cut:
        draws = Draws.of(seeded(seed), len(examples)).part(first, size)
        parts.append(loss_and_gradient(model, examples[first : first + size], draws))
        first += size
    assert sum(part[1] for part in parts) == count
    assert float(sum(part[0] for part in parts)) == pytest.approx(float(loss), rel=1e-9)
    summed_P = torch.stack([part[2] for part in parts]).sum(0)
    assert float((summed_P - gradient_P).norm()) <= 1e-9 * float(gradient_P.norm())


@pytest.mark.parametrize("name", LOSSES)
def test_another_seed_is_another_loss_and_the_global_state_stays(name: str) -> None:
    build, examples = LOSSES[name]
    if name == "fill":
        build = lambda: fill_model(critic_weight=0.5)  # noqa: E731  without a critic nothing is drawn
    model, state = build(), torch.random.get_rng_state()
    losses = [loss_and_gradient(model, examples, Draws.of(seeded(seed), 5))[0] for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_of_a_part_is_the_same_wherever_it_is_computed() -> None:
    model = fill_model(dropout=0.5)
    part = [Draws.of(seeded(0), 5).part(2, 3) for _ in range(2)]
    first, again = (loss_and_gradient(model, MASKED[2:], draws)[0] for draws in part)
    assert torch.equal(first, again)
    beginning = loss_and_gradient(model, MASKED[2:], Draws.of(seeded(0), 5).part(0, 3))[0]
    assert not torch.equal(first, beginning), "another part drops other units"


# ---------------------------------------------------------------------- samples


def baseline() -> DenoisingPolicy:
    settings = Settings(max_completion_length=6, sampling_steps=5, device="cpu")
    return DenoisingPolicy(FlowPolicy(flow_toy.parts(settings), settings))


FLOW_PROMPTS = [*PROMPTS, Prompt("bb", id=3), Prompt("aabb", id=4)]
SAMPLERS: dict[str, tuple[Callable[[], Any], Sequence[Prompt]]] = {
    "flow": (small, FLOW_PROMPTS),
    "flow-mask": (lambda: small(source="mask"), FLOW_PROMPTS),
    "flow-some-steps": (lambda: small(train_steps=2), FLOW_PROMPTS),
    "flow-branch": (lambda: small(branch_steps=2), FLOW_PROMPTS),
    "denoising-flow": (baseline, FLOW_PROMPTS),
    "fill": (fill_model, [example.prompt for example in MASKED]),
    "fill-top-p": (lambda: fill_model(top_p=0.8), [example.prompt for example in MASKED]),
}


def rows_of(rollouts: Rollouts) -> tuple[list[tuple[Any, ...]], list[float]]:
    """(what every row is but for padding, the log-probabilities of all trained decisions)."""
    mask_BT = rollouts.mask_BT
    trained = [row_T.nonzero()[:, 0].tolist() for row_T in mask_BT]
    return list(zip(rollouts.outputs, rollouts.stop, trained, strict=True)), rollouts.behaviour_logp_BT[
        mask_BT
    ].tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_sampled_for_a_prompt_does_not_depend_on_the_part_it_is_in(name: str) -> None:
    build, prompts = SAMPLERS[name]
    policy: Policy = build()
    whole, whole_logp = rows_of(policy.sample(prompts, 3, seeded(5)))
    assert len({row[0] for row in whole}) > 3
    for cut in CUTS:
        first, rows, logp = 0, [], []
        for size in cut:
            draws = Draws.of(seeded(5), len(prompts)).part(first, size)
            part, part_logp = rows_of(policy.sample(prompts[first : first + size], 3, draws))
            first, rows, logp = first + size, rows + part, logp + part_logp
        assert rows == whole
        assert logp == pytest.approx(whole_logp, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["flow", "fill"])
def test_what_is_filmed_does_not_either(name: str) -> None:
    build, prompts = SAMPLERS[name]
    policy: Any = build()
    whole = [film["final"] for film in policy.film(prompts, 2, seeded(6))]
    second = policy.film(prompts[2:], 2, Draws.of(seeded(6), 5).part(2, 3))
    assert [film["final"] for film in second] == whole[4:]
