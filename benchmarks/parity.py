"""The gate before any clock: on one fixed batch both systems give the same loss and the same gradient.

The batch has fixed prompts, ragged completions, rewards, and behaviour log-probs moved away from the model's own, so that
ratios differ from 1 on both sides of the clip. TRL computes it with its own trainer's methods, from text to gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import models
from benchmarks.systems import Job, relgrad_loop, trl_trainer
from relgrad.core.errors import RelgradError
from relgrad.core.types import Rollouts
from relgrad.networks.causal.decode import Generated
from relgrad.objectives.losses import PolicyLoss
from relgrad.training.grpo import Grpo

TOLERANCE = 1e-5
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")
EPSILON, EPSILON_HIGH = 0.2, {"cispo": 5.0}
LENGTHS = (12, 7, 1, 9, 12, 4, 12, 5)


def gate() -> Table:
    """A table of the differences. Raises RelgradError when one exceeds TOLERANCE: nothing may be timed then."""
    job = Job(
        model=str(models.tiny_qwen3()),
        prompts=models.word_prompts(2, 21),
        reward=models.reward,
        num_prompts=2,
        num_generations=4,
        length=max(LENGTHS),
        steps=1,
        learning_rate=1e-4,
    )
    loop, trainer = relgrad_loop(job), trl_trainer(job, tuned=False)
    rollouts = _rollouts(loop)
    inputs = _trl_inputs(trainer, loop, rollouts)
    table = Table("loss", "relgrad", "TRL", "relative difference", "gradient, relative in norm", title="parity gate")
    worst = 0.0
    for loss_type in LOSSES:
        ours, our_gradient = _relgrad(loop, rollouts, loss_type)
        theirs, their_gradient = _trl(trainer, inputs, loss_type)
        loss_gap = abs(ours - theirs) / abs(theirs)
        gap = float((our_gradient - their_gradient).norm() / their_gradient.norm())
        worst = max(worst, loss_gap, gap)
        table.add_row(loss_type, f"{ours:+.7f}", f"{theirs:+.7f}", f"{loss_gap:.1e}", f"{gap:.1e}")
    if worst > TOLERANCE:
        raise RelgradError(
            f"parity: loss or gradient differ by {worst:.1e} (allowed {TOLERANCE:.0e}); nothing is timed"
        )
    return table


def _rollouts(loop: Grpo) -> Rollouts:
    """Fixed random completions; behaviour log-probs 0.3 nats (standard deviation) off the model's own."""
    policy, draw = loop.policy, torch.Generator().manual_seed(1)
    prompts = tuple(loop.stream.take(loop.settings.num_prompts))
    length_B = torch.tensor(LENGTHS)
    inside = torch.arange(max(LENGTHS))[None] < length_B[:, None]
    token_BT = torch.randint(10, 4000, inside.shape, generator=draw) * inside
    out = Generated(token_BT, torch.zeros(inside.shape), length_B, torch.zeros(len(LENGTHS), dtype=torch.bool), None)
    rollouts = policy._rollouts(prompts, [policy.encode(p) for p in prompts], loop.settings.num_generations, out)
    with torch.no_grad():
        logp_BT = torch.zeros(inside.shape)
        logp_BT[inside] = policy.score(rollouts, rollouts.cells()).logp_N
    noise_BT = 0.3 * torch.randn(inside.shape, generator=draw)
    return dataclasses.replace(rollouts, behaviour_logp_BT=(logp_BT + noise_BT) * inside, policy_version=-1)


def _relgrad(loop: Grpo, rollouts: Rollouts, loss_type: str) -> tuple[float, Tensor]:
    loop.policy.sample = lambda *_: rollouts
    loop.loss = PolicyLoss(loss_type=loss_type, epsilon=EPSILON, epsilon_high=EPSILON_HIGH.get(loss_type, EPSILON))
    loop.stream.cursor = 0
    batch = loop.generate()
    batch.policy_version = -1  # another policy's log-probs: the ratios are not 1
    loop.optimizer.clear()
    metrics = loop._accumulate(batch, torch.arange(rollouts.rows))
    return metrics["loss"], _gradient(dict(loop.policy.parameters()))


def _trl_inputs(trainer: Any, loop: Grpo, rollouts: Rollouts) -> dict[str, Any]:
    """TRL's own rewards, advantages and masks for the same completions, and the same behaviour log-probs."""
    ids = [list(row[:n]) for row, n in zip(rollouts.trace["token_BT"].tolist(), LENGTHS, strict=True)]
    trainer._generate_single_turn = lambda *_, **__: (ids, None)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": p.text} for p in rollouts.prompts for _ in range(loop.settings.num_generations)]
    inputs = trainer._generate_and_score_completions(rows)
    return inputs | {"old_per_token_logps": rollouts.behaviour_logp_BT}


def _trl(trainer: Any, inputs: dict[str, Any], loss_type: str) -> tuple[float, Tensor]:
    trainer.loss_type = loss_type
    trainer.epsilon_low, trainer.epsilon_high = EPSILON, EPSILON_HIGH.get(loss_type, EPSILON)
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), _gradient(dict(trainer.model.named_parameters()))


def _gradient(parameters: dict[str, torch.nn.Parameter]) -> Tensor:
    """All gradients as one float64 vector, in the order of the names."""
    return torch.cat([p.grad.flatten().double() for _, p in sorted(parameters.items())])
