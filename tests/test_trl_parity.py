"""The same rollouts give TRL's loss, gradient and advantages: its own GRPOTrainer methods run here, on given tensors.

A bare trainer (no model, no dataset) carries the attributes that `_compute_loss` and `_generate_and_score_completions`
read. Only the ends are replaced: the log-probabilities are a given leaf, so that autograd gives dloss/dlogp, and the
completions and rewards are given lists.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from relgrad.core.protocols import LossTerms
from relgrad.core.types import RewardTable
from relgrad.objectives.advantages import combine
from relgrad.objectives.losses import PolicyLoss

pytest.importorskip("trl", reason="TRL is the peer: pip install 'relgrad[bench]'")

ROWS, DECISIONS, MAX_DECISIONS = 6, 5, 9
LENGTHS = (5, 3, 1, 4, 0, 5)  # a row without decisions too (its completion was masked out)


def bare_trainer(**attributes):
    """TRL's trainer with only the attributes its methods read; a missing one raises AttributeError."""
    from accelerate import Accelerator
    from trl import GRPOTrainer

    trainer = object.__new__(GRPOTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.model = torch.nn.Linear(1, 1).train()
    trainer.model.is_gradient_checkpointing = False
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def rollouts(scale: float) -> dict[str, Tensor]:
    """Random log-probabilities, `scale` apart: wide enough that ratios fall on both sides of the clip range."""
    generator = torch.Generator().manual_seed(0)
    mask_BT = torch.arange(DECISIONS)[None] < torch.tensor(LENGTHS)[:, None]
    old_BT = -torch.rand(ROWS, DECISIONS, generator=generator) * 3
    return {
        "logp_BT": old_BT + scale * torch.randn(ROWS, DECISIONS, generator=generator),
        "old_BT": old_BT,
        "reference_BT": old_BT + scale * torch.randn(ROWS, DECISIONS, generator=generator),
        "entropy_BT": torch.rand(ROWS, DECISIONS, generator=generator),
        "advantage_B": torch.randn(ROWS, generator=generator),
        "mask_BT": mask_BT,
    }


def trl_loss(batch: dict[str, Tensor], **options) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(loss, dloss/dlogp, metrics) of GRPOTrainer._compute_loss."""
    logp_BT = batch["logp_BT"].clone().requires_grad_()
    epsilon = options.get("epsilon", 0.2)
    trainer = bare_trainer(
        args=SimpleNamespace(
            delta=options.get("delta"),
            use_bias_correction_kl=options.get("use_bias_correction_kl", True),
            steps_per_generation=options.get("steps_per_generation", 1),
        ),
        loss_type=options["loss_type"],
        importance_sampling_level=options.get("importance_sampling_level", "token"),
        epsilon_low=epsilon,
        epsilon_high=options.get("epsilon_high") or epsilon,
        beta=options.get("beta", 0.0),
        entropy_coef=options.get("entropy_coef", 0.0),
        _entropy_bonus_enabled=options.get("entropy_coef", 0.0) != 0,
        use_adaptive_entropy=False,
        max_completion_length=MAX_DECISIONS,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, batch["entropy_BT"], None),
    )
    ids_BT = torch.zeros(ROWS, DECISIONS, dtype=torch.long)
    inputs = {
        "prompt_ids": ids_BT[:, :1],
        "prompt_mask": torch.ones_like(ids_BT[:, :1]),
        "completion_ids": ids_BT,
        "completion_mask": batch["mask_BT"].long(),
        "advantages": batch["advantage_B"],
        "old_per_token_logps": batch["old_BT"],
        "ref_per_token_logps": batch["reference_BT"],
        "num_items_in_batch": batch["mask_BT"].sum() * options.get("steps_per_generation", 1)
        + options.get("elsewhere", 0),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient_BT,) = torch.autograd.grad(loss, logp_BT)
    return loss.detach(), gradient_BT, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def our_loss(batch: dict[str, Tensor], **options) -> tuple[Tensor, Tensor, dict[str, float]]:
    steps, elsewhere = options.pop("steps_per_generation", 1), options.pop("elsewhere", 0)
    logp_BT = batch["logp_BT"].clone().requires_grad_()
    terms = LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=batch["old_BT"],
        advantage_BT=batch["advantage_B"][:, None].expand(ROWS, DECISIONS),
        mask_BT=batch["mask_BT"],
        batch_decisions=(int(batch["mask_BT"].sum()) * steps + elsewhere) / steps,
        max_decisions=MAX_DECISIONS,
        reference_logp_BT=batch["reference_BT"],
        entropy_BT=batch["entropy_BT"],
    )
    loss, metrics = PolicyLoss(**options)(terms)
    (gradient_BT,) = torch.autograd.grad(loss, logp_BT)
    return loss.detach(), gradient_BT, metrics


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"epsilon_high": 0.2}, id="symmetric"),
        pytest.param({"epsilon_high": 0.28}, id="epsilon_high"),
        pytest.param({"epsilon": 0.1, "epsilon_high": 5.0}, id="wide"),
        pytest.param({"epsilon_high": 0.2, "delta": 1.3}, id="delta"),
        pytest.param({"epsilon_high": 0.2, "importance_sampling_level": "sequence"}, id="sequence"),
        pytest.param(
            {"epsilon_high": 3e-2, "epsilon": 3e-2, "importance_sampling_level": "sequence", "delta": 1.05},
            id="sequence-narrow",
        ),
        pytest.param({"epsilon_high": 0.2, "use_bias_correction_kl": False}, id="plain-k3"),
        pytest.param({"epsilon_high": 0.2, "entropy_coef": 0.02}, id="entropy"),
        pytest.param({"epsilon_high": 0.2, "steps_per_generation": 4, "elsewhere": 11}, id="steps-per-generation"),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_loss_and_gradient(loss_type: str, beta: float, options: dict, scale: float):
    batch = rollouts(scale)
    options = {"loss_type": loss_type, "beta": beta, **options}
    loss, gradient_BT, metrics = our_loss(batch, **options)
    trl, trl_gradient_BT, trl_metrics = trl_loss(batch, **options)
    torch.testing.assert_close(loss, trl, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient_BT, trl_gradient_BT, atol=1e-5, rtol=1e-5)
    assert gradient_BT.abs().max() > 1e-3
    if beta:
        assert metrics["kl"] == pytest.approx(trl_metrics["kl"], abs=1e-5)
    if options.get("importance_sampling_level") != "sequence" and "delta" not in options:
        shared = [name for name in metrics if name in trl_metrics and name.startswith(("clip", "cispo"))]
        assert shared
        for name in shared:
            assert metrics[name] == pytest.approx(trl_metrics[name], abs=1e-6), name


def trl_advantages(reward_BR: Tensor, weights_R: Tensor, num_generations: int, scale: str, aggregation: str) -> Tensor:
    """The advantages GRPOTrainer._generate_and_score_completions computes from given rewards."""
    rows = reward_BR.shape[0]
    trainer = bare_trainer(
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
        _generate=lambda prompts: ([[1]] * rows, [[2]] * rows, None, ["x"] * rows, None, {}, None, None),
        _calculate_rewards=lambda *_: reward_BR.clone(),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs=defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        use_vllm=False,
        beta=0.0,
        num_iterations=1,
        num_generations=num_generations,
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=weights_R,
        reward_funcs=[None] * reward_BR.shape[1],
        reward_func_names=[f"r{r}" for r in range(reward_BR.shape[1])],
        log_multimodal=False,
        _is_vlm=False,
    )
    return trainer._generate_and_score_completions([{"prompt": f"p{i // num_generations}"} for i in range(rows)])[
        "advantages"
    ]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("unscored", [False, True], ids=["scored", "nan"])
@pytest.mark.parametrize("seed", range(3))
def test_advantages(scale, aggregation, unscored: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    num_generations, groups = 4, 5
    reward_BR = torch.randn(groups * num_generations, 3, generator=generator)
    reward_BR[:num_generations] = 0.5  # a group without spread
    if unscored:
        if aggregation == "normalize_then_sum":  # summed first, TRL counts a missing score as 0; relgrad does not
            reward_BR[torch.rand(reward_BR.shape, generator=generator) < 0.2] = torch.nan
        reward_BR[num_generations : 2 * num_generations, 0] = torch.nan  # of another task, without the first reward
        reward_BR[-3:] = torch.nan  # a group with a single scored row
        reward_BR[num_generations] = torch.nan  # a row without any reward
    weights_R = torch.tensor([1.0, 0.5, 2.0])
    table = RewardTable(("a", "b", "c"), weights_R.double(), reward_BR.double())
    group_B = torch.arange(groups).repeat_interleave(num_generations)
    ours = combine(table, group_B, scale=scale, aggregation=aggregation).advantage_B
    theirs = trl_advantages(reward_BR, weights_R, num_generations, scale, aggregation)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert math.isfinite(float(ours.sum()))
