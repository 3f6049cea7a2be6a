"""However the work is cut up, the gradient is the same: chunks, packing, shared prompts, accumulation, checkpointing.

In float64. The limit of 1e-6 leaves room for what is float32 all the same: recorded log-probs, LoRA weights, and the
RMSNorm of transformers (which alone makes about 5e-8).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt, Rollouts
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.policies.autoregressive import AutoregressivePolicy, Lora
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings

PROMPTS = tuple(Prompt(text, id=i) for i, text in enumerate(("12=", "a longer prompt: ", "7", "hello ")))
LIMIT = 1e-6


def policy(spread: float = 4.0, **settings: Any) -> AutoregressivePolicy:
    """A random tiny model in float64 whose logits are spread out, so that probabilities differ and mistakes show."""
    chosen = autoregressive.Settings(
        model="tiny:32x1", max_completion_length=5, dtype="float64", eos_token_ids=tuple(range(1, 15)), **settings
    )
    made = autoregressive.build(chosen, seed=0)
    with torch.no_grad():
        made.causal_lm.get_output_embeddings().weight.mul_(spread)
        for name, parameter in made.parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator(0, name), dtype=parameter.dtype))
    made.freeze_reference()
    return made


def move(trained: AutoregressivePolicy, size: float = 0.05) -> None:
    """Change all trainable weights a little, the same way every time."""
    with torch.no_grad():
        for name, parameter in trained.parameters():
            noise = torch.randn(parameter.shape, generator=generator(1, name), dtype=parameter.dtype)
            parameter.add_(noise * size * parameter.abs().mean())


def gradient(trained: AutoregressivePolicy) -> Tensor:
    """All gradients as one vector, which are cleared."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in trained.parameters()]
    for _, parameter in trained.parameters():
        parameter.grad = None
    return torch.cat([p.flatten() for p in parts]).double()


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 1e-6, "no gradient to compare"
    error = float((found - expected).norm() / expected.norm())
    assert error <= LIMIT, f"gradients differ by {error:.2g} (relative norm)"


def code_points(completions: list[str], **columns: Any) -> list[float]:
    return [sum(map(ord, text)) / 100 for text in completions]


def loop(trained: AutoregressivePolicy, loss: PolicyLoss, **settings: Any) -> Grpo:
    given = {name: getattr(loss, name) for name in PolicyLoss.__dataclass_fields__}
    chosen = GrpoSettings(num_prompts=4, num_generations=3, **given, **settings)
    return Grpo(trained, PROMPTS, RewardSet([NamedReward("sum", code_points)], 60), loss, chosen, seed=5)


# ---------------------------------------------------------------------- GRPO: chunks, fresh and off policy


LOSSES = {
    "grpo": PolicyLoss("grpo"),
    "bnpo": PolicyLoss("bnpo"),
    "dr_grpo": PolicyLoss("dr_grpo", delta=1.5),
    "dapo-k3": PolicyLoss("dapo", beta=0.3),
    "cispo-k2": PolicyLoss("cispo", beta=0.3, kl_estimator="k2"),
    "reinforce": PolicyLoss("reinforce"),
    "sequence": PolicyLoss("grpo", importance_sampling_level="sequence", epsilon=0.5),
    "entropy": PolicyLoss("dapo", entropy_coef=0.5),
    "exact-kl": PolicyLoss("grpo", beta=0.5, kl_estimator="exact"),
    "everything": PolicyLoss(
        "dapo", importance_sampling_level="sequence", beta=0.5, kl_estimator="exact", entropy_coef=0.5, epsilon=0.5
    ),
}


@pytest.mark.parametrize("off_policy", [False, True], ids=["fresh", "off_policy"])
@pytest.mark.parametrize("name", LOSSES)
def test_chunk_size(name: str, off_policy: bool):
    trained = policy(temperature=0.9, top_p=0.95)
    made = loop(trained, LOSSES[name], micro_batch_tokens=100_000)
    move(trained)
    batch = made.generate()
    if off_policy:
        move(trained)
        trained.version += 1
    rows = torch.arange(len(batch.group_B))
    whole_metrics = made._accumulate(batch, rows)
    whole = gradient(trained)
    for budget in (1, 13, 40):
        made.settings = made.settings.model_copy(update={"micro_batch_tokens": budget})
        metrics = made._accumulate(batch, rows)
        assert_same(gradient(trained), whole)
        assert metrics == pytest.approx(whole_metrics, rel=1e-5, abs=1e-6)
    chunks = [len(trained.plan(batch.parts[0].rollouts, rows, budget)) for budget in (1, 13, 40, 100_000)]
    assert chunks[0] == len(rows)
    assert chunks[-1] == 1
    assert chunks == sorted(chunks, reverse=True)


@pytest.mark.parametrize("name", ["grpo", "everything"])
def test_loss_gradient_is_that_of_plain_autograd(name: str):
    """The two passes (loss to log-probs, log-probs to weights) equal one backward pass through everything."""
    trained = policy()
    made = loop(trained, LOSSES[name], micro_batch_tokens=13)
    batch = made.generate()
    move(trained)
    trained.version += 1
    rows = torch.arange(len(batch.group_B))
    made._accumulate(batch, rows)
    two_passes = gradient(trained)
    terms, _ = made._terms(batch, rows, fresh=False)
    cells_N2 = batch.parts[0].rollouts.cells()
    scores = trained.score(batch.parts[0].rollouts, cells_N2, entropy=True, reference_kl=True)

    def spread(value_N: Tensor) -> Tensor:
        return torch.zeros(batch.mask_BT.shape, dtype=value_N.dtype).index_put(cells_N2.unbind(-1), value_N)

    columns = {"logp_BT": scores.logp_N, "entropy_BT": scores.entropy_N, "kl_BT": scores.kl_N}
    value, _ = made.loss(replace(terms, **{k: spread(v) for k, v in columns.items() if getattr(terms, k) is not None}))
    value.backward()
    assert_same(two_passes, gradient(trained))


# ---------------------------------------------------------------------- scoring: packing, sharing, Hugging Face


def weighted(trained: AutoregressivePolicy, rollouts: Rollouts, cells_N2: Tensor, weight_BT: Tensor) -> None:
    """Back-propagate sum_n w_n log pi_n + w_n^2 H_n, with a weight of its own for every cell."""
    scores = trained.score(rollouts, cells_N2, entropy=True)
    weight_N = weight_BT[cells_N2[:, 0], cells_N2[:, 1]]
    assert scores.entropy_N is not None
    (weight_N * scores.logp_N + weight_N.square() * scores.entropy_N).sum().backward()


@pytest.fixture(params=["full", "lora"])
def scored(request: pytest.FixtureRequest) -> tuple[AutoregressivePolicy, Rollouts, Tensor, Tensor]:
    """A policy, its rollouts, weights for all cells and the gradient of all rows packed together."""
    trained = policy(lora=Lora(r=3, alpha=6) if request.param == "lora" else None, temperature=0.8)
    rollouts = trained.sample(PROMPTS, 4, generator(2))
    assert len(set(rollouts.trace["length_B"].tolist())) > 2, "all completions have one length"
    weight_BT = torch.randn(rollouts.mask_BT.shape, generator=generator(3), dtype=torch.float64)
    weighted(trained, rollouts, rollouts.cells(), weight_BT)
    return trained, rollouts, weight_BT, gradient(trained)


def test_rows_together_or_alone(scored: tuple[AutoregressivePolicy, Rollouts, Tensor, Tensor]):
    trained, rollouts, weight_BT, together = scored
    for row in torch.randperm(rollouts.rows, generator=generator(4)).tolist():
        weighted(trained, rollouts, rollouts.cells(torch.tensor([row])), weight_BT)
    assert_same(gradient(trained), together)


def test_cells_in_any_order_and_partition(scored: tuple[AutoregressivePolicy, Rollouts, Tensor, Tensor]):
    trained, rollouts, weight_BT, together = scored
    cells_N2 = rollouts.cells()
    cells_N2 = cells_N2[torch.randperm(len(cells_N2), generator=generator(4))]
    for piece in cells_N2.split(7):
        weighted(trained, rollouts, piece, weight_BT)
    assert_same(gradient(trained), together)


def test_prompts_shared_or_not(scored: tuple[AutoregressivePolicy, Rollouts, Tensor, Tensor]):
    """The same rows with a copy of the prompt for each."""
    trained, rollouts, weight_BT, together = scored
    prompts = rollouts.trace["prompt_ids"].split(rollouts.trace["prompt_length_G"].tolist())
    own = [prompts[g] for g in rollouts.group_B.tolist()]
    trace = {
        **rollouts.trace,
        "prompt_ids": torch.cat(own),
        "prompt_length_G": torch.tensor([len(p) for p in own]),
    }
    unshared = replace(
        rollouts,
        prompts=tuple(rollouts.prompts[g] for g in rollouts.group_B.tolist()),
        group_B=torch.arange(rollouts.rows),
        trace=trace,
    )
    weighted(trained, unshared, unshared.cells(), weight_BT)
    assert_same(gradient(trained), together)


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_plain_hugging_face(scored: tuple[AutoregressivePolicy, Rollouts, Tensor, Tensor], side: str):
    """Padding and an attention mask, the model's own attention and log_softmax, nothing of relgrad's."""
    trained, rollouts, weight_BT, together = scored
    trained.causal_lm.set_attn_implementation("sdpa")
    prompts = rollouts.trace["prompt_ids"].long().split(rollouts.trace["prompt_length_G"].tolist())
    value = torch.zeros((), dtype=torch.float64)
    rows, masks, starts = [], [], []
    for row, group in enumerate(rollouts.group_B.tolist()):
        length = int(rollouts.trace["length_B"][row])
        ids = torch.cat([prompts[group], rollouts.trace["token_BT"][row, :length].long()])
        empty = torch.zeros(40 - len(ids), dtype=torch.int64)
        rows.append(torch.cat([empty, ids] if side == "left" else [ids, empty]))
        masks.append(torch.cat([empty, ids * 0 + 1] if side == "left" else [ids * 0 + 1, empty]))
        starts.append((40 - len(ids) if side == "left" else 0) + len(prompts[group]))
    mask_BL = torch.stack(masks)
    position_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    logits_BLV = trained.model(
        input_ids=torch.stack(rows), attention_mask=mask_BL, position_ids=position_BL, use_cache=False
    ).logits
    logp_BLV = torch.log_softmax(logits_BLV / trained.settings.temperature, -1)
    for row, start in enumerate(starts):
        for step in range(int(rollouts.trace["length_B"][row])):
            logp_V, weight = logp_BLV[row, start + step - 1], weight_BT[row, step]
            entropy = -(logp_V.exp() * logp_V).sum()
            value = value + weight * logp_V[int(rollouts.trace["token_BT"][row, step])] + weight**2 * entropy
    value.backward()
    assert_same(gradient(trained), together)


@pytest.mark.parametrize("lora", [None, Lora(r=3, alpha=6)], ids=["full", "lora"])
def test_gradient_checkpointing(lora: Lora | None):
    found = []
    for recompute in (False, True):
        trained = policy(lora=lora, gradient_checkpointing=recompute)
        made = loop(trained, LOSSES["everything"])
        batch = made.generate()
        move(trained)
        trained.version += 1
        made._accumulate(batch, torch.arange(len(batch.group_B)))
        found.append((gradient(trained), [o.text for o in batch.outputs]))
    assert found[0][1] == found[1][1]
    assert_same(found[1][0], found[0][0])


# ---------------------------------------------------------------------- supervised: accumulation


EXAMPLES = tuple(
    Example(p, target) for p, target in zip(PROMPTS, ("21", "a much longer target", "", "abc"), strict=True)
)


def supervised_gradient(trained: AutoregressivePolicy, pieces: int) -> Tensor:
    """The gradient that the optimizer is given in one step, caught on its way."""
    settings = SftSettings(batch_size=4, gradient_accumulation_steps=pieces)
    made = Sft(trained, EXAMPLES, settings, seed=1)
    caught: list[Tensor] = []

    def catch(step: int) -> dict[str, float]:
        caught.append(gradient(trained))
        return {}

    made.optimizer.step = catch  # type: ignore[method-assign]
    made.update()
    return caught[0]


@pytest.mark.parametrize("lora", [None, Lora(r=3, alpha=6)], ids=["full", "lora"])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "checkpointing"])
def test_supervised_accumulation(lora: Lora | None, recompute: bool):
    """Targets of very different lengths: a mean of means would differ."""
    expected = supervised_gradient(policy(lora=lora), 1)
    for pieces in (2, 4):
        assert_same(supervised_gradient(policy(lora=lora, gradient_checkpointing=recompute), pieces), expected)


def test_supervised_dropout_with_gradient_checkpointing():
    """The backward pass recomputes the forward pass with the very same dropout."""
    found = []
    for recompute in (False, True):
        trained = policy(lora=Lora(r=3, alpha=6, dropout=0.4), gradient_checkpointing=recompute)
        loss, _, _ = trained.supervised_loss(EXAMPLES, generator(9))
        loss.backward()
        found.append(gradient(trained))
    assert_same(found[1], found[0])
    trained = policy(lora=Lora(r=3, alpha=6))
    loss, _, _ = trained.supervised_loss(EXAMPLES, generator(9))
    loss.backward()
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_same(gradient(trained), found[0])
