"""Gradients of one optimizer step, for every policy, loss and credit, by as many processes as started this file.

Alone it is imported by test_two_processes.py; as a program, started once for every rank, it writes what it computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import fill_prompts
import flow_policies
from relgrad.core import ranks
from relgrad.core.protocols import LossTerms
from relgrad.core.ranks import Ranks
from relgrad.core.types import Example, Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive, workflow
from relgrad.policies.unmasking.toy import small as small_unmasking
from relgrad.rewards import list_program
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import list_programs
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings
from toy_policy import TablePolicy, Truncation

DIGITS = tuple(Prompt(f"{n}=", {"completion": str(n)}, n) for n in range(6))
FLOWS = tuple(Prompt(text, {"completion": text[::-1]}, n) for n, text in enumerate(("ab", "b", "babab", "aab", "bb")))
LETTERS = tuple(Prompt(text, id=i) for i, text in enumerate("pqrstu"))


class Unlike:
    """A set-level loss: likely completions are charged for how likely they are beside the others of their group."""

    needs: frozenset[str] = frozenset()

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]:
        assert terms.group_B is not None
        _, group_B = terms.group_B.unique(return_inverse=True)
        total_B = (terms.logp_BT * terms.mask_BT).sum(-1)
        groups = int(group_B.max()) + 1
        mean_G = total_B.new_zeros(groups).index_add(0, group_B, total_B) / torch.bincount(group_B)
        loss = ((total_B - mean_G[group_B]) ** 2).sum() / terms.rows
        return loss, {"unlike": float(loss.detach())}


def code_points(completions: Sequence[str], **columns: Any) -> list[float]:
    return [sum(map(ord, text)) % 97 / 100 for text in completions]


def table() -> tuple[Any, Sequence[Prompt]]:
    policy = TablePolicy([p.text for p in LETTERS], Truncation(0.9, 0, 0.95), seed=3)
    with torch.no_grad():
        policy.table_PSV += 0.1
    return policy, LETTERS


def language_model(**settings: Any) -> tuple[Any, Sequence[Prompt]]:
    chosen = autoregressive.Settings(
        model="tiny:32x1", max_completion_length=4, dtype="float64", eos_token_ids=tuple(range(1, 15)), **settings
    )
    policy = autoregressive.build(chosen, seed=0, reference=True)
    moved(policy)
    return policy, DIGITS


def fill_in() -> tuple[Any, Sequence[Prompt]]:
    policy = fill_prompts.policy(critic_weight=0.3)
    policy.model.double()
    policy.freeze_reference()
    moved(policy)
    return policy, fill_prompts.PROMPTS


def flow(**settings: Any) -> tuple[Any, Sequence[Prompt]]:
    policy = flow_policies.small(**settings)
    policy.model.double()
    policy.freeze_reference()
    moved(policy)
    return policy, FLOWS


def unmasking(**settings: Any) -> tuple[Any, Sequence[Prompt]]:
    policy = small_unmasking(max_completion_length=5, length=10, **settings)
    policy.network.module.double()
    policy.freeze_reference()
    moved(policy)
    return policy, FLOWS


def lists() -> tuple[Any, Sequence[Prompt]]:
    """Tasks of one or two operators, most of which three samples do not solve, and a search of 60 evaluations mostly does."""
    sizes = {"lengths": (1, 2), "held_out_lengths": (1,), "train_size": 8, "validation_size": 0, "test_size": 0}
    policy = workflow.build(workflow.Settings(max_steps=2, hidden=16), seed=0, reference=True)
    policy.network.double()
    policy.keeper.freeze_reference()
    moved(policy)
    return policy, list_programs.load(list_programs.Settings(order=40, rising=0, **sizes), seed=0).train


def moved(policy: Any) -> None:
    """Away from its reference, the same way everywhere."""
    for number, (_, parameter) in enumerate(policy.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        with torch.no_grad():
            parameter += 0.05 * noise.to(parameter.dtype)


Case = tuple[Callable[[], tuple[Any, Sequence[Prompt]]], dict[str, Any], Any]
CASES: dict[str, Case] = {
    "table-grpo-batch-scale": (table, {"loss_type": "grpo", "scale_rewards": "batch"}, None),
    "table-bnpo-resampled": (table, {"loss_type": "bnpo", "max_resamples": 2}, None),
    "table-dr_grpo-k1": (table, {"loss_type": "dr_grpo", "beta": 0.3, "kl_estimator": "k1"}, None),
    "table-dapo-replay": (table, {"loss_type": "dapo", "replay": {"share": 0.4}}, None),
    "table-cispo-two-rewards": (
        table, {"loss_type": "cispo", "multi_objective_aggregation": "normalize_then_sum"}, None,
    ),
    "table-set-level": (table, {}, Unlike()),
    "language-model-exact-kl": (language_model, {"loss_type": "grpo", "beta": 0.3, "kl_estimator": "exact"}, None),
    "language-model-sft-sequence": (
        language_model, {"sft_coef": 0.5, "importance_sampling_level": "sequence", "loss_type": "grpo"}, None,
    ),
    "transformers-engine-k3-entropy": (
        lambda: language_model(engine="transformers"), {"beta": 0.3, "entropy_coef": 0.1}, None,
    ),
    "fill-in-decisions-k2": (
        fill_in, {"credit": "decision", "loss_type": "reinforce", "beta": 0.2, "kl_estimator": "k2"}, None,
    ),
    "flow-train-steps-norm": (lambda: flow(train_steps=2), {"loss_type": "dr_grpo", "step_ratio_norm": True}, None),
    "flow-branches": (lambda: flow(branch_steps=2), {"loss_type": "grpo", "beta": 0.2, "kl_estimator": "exact"}, None),
    "unmasking-train-steps": (
        lambda: unmasking(law={"order": "plackett_luce"}, train_steps=2), {"loss_type": "dr_grpo", "beta": 0.2}, None,
    ),
    "lists-searched": (
        lists, {"beta": 0.1, "search": {"evaluations": 60}, "replay": {"keep": "solutions", "share": 0.9}}, None,
    ),
}  # fmt: skip
SUPERVISED: dict[str, tuple[Callable[[], tuple[Any, Sequence[Prompt]]], str]] = {
    "language-model": (language_model, "completion"),
    "fill-in": (fill_in, "truth"),
    "flow": (flow, "completion"),
    "unmasking": (unmasking, "completion"),
}


def gradients(together: Ranks) -> dict[str, Tensor]:
    """By name of case: the gradient before the first step, and that of a second step on the same batch with moved weights."""
    found: dict[str, Tensor] = {}
    for name, (build, settings, loss) in CASES.items():
        made = loop(build, settings, loss, together)
        if "replay" in settings:
            for _ in range(2):
                made.update()
        batch = made.generate()
        rows = batch.keep_B.nonzero()[:, 0]
        for which in ("fresh", "moved"):
            if settings.get("sft_coef"):
                made._supervise(batch, rows)
            made._accumulate(batch, rows)
            together.add_gradients(made.optimizer.parameters.values())
            found[f"{name}/{which}"] = taken(made.optimizer.parameters.values())
            moved(made.policy)
            made.policy.version += 1
    for name, (build, column) in SUPERVISED.items():
        model, prompts = build()
        examples = [Example(p, str(p.columns[column])) for p in prompts]
        settings = SftSettings(batch_size=6, gradient_accumulation_steps=2, steps=3, learning_rate=1e-9)
        trained = Sft(model, examples, settings, seed=4, ranks=together)
        found[f"supervised-{name}"] = applied(trained)
    return found


def loop(
    build: Callable[[], tuple[Any, Sequence[Prompt]]], settings: dict[str, Any], loss: Any, together: Ranks
) -> Grpo:
    policy, prompts = build()
    chosen = GrpoSettings(**{"num_prompts": 5, "num_generations": 3, "micro_batch_tokens": 200, **settings})
    own = PolicyLoss(**{name: getattr(chosen, name) for name in PolicyLoss.__dataclass_fields__})
    rewards = [NamedReward("points", code_points)]
    if settings.get("multi_objective_aggregation"):
        rewards.append(NamedReward("length", lambda completions, **_: [float(len(c)) for c in completions]))
    if settings.get("credit") == "decision":
        rewards = [NamedReward("positions", fill_prompts.right)]
    if settings.get("search"):
        rewards = [NamedReward("right", list_program.build(list_program.Settings()))]
    return Grpo(policy, prompts, RewardSet(rewards, 60), loss or own, chosen, seed=5, ranks=together)


def taken(parameters: Any) -> Tensor:
    """All gradients as one vector, which are cleared."""
    parts = []
    for parameter in parameters:
        parts.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return torch.cat([part.flatten() for part in parts]).double()


def applied(trained: Sft) -> Tensor:
    """The gradient of a supervised step, caught when the optimizer would apply it."""
    caught: list[Tensor] = []

    def catch(step: int) -> dict[str, float]:
        caught.append(taken(trained.optimizer.parameters.values()))
        return {}

    trained.optimizer.step = catch  # type: ignore[method-assign]
    trained.update()
    return caught[0]


if __name__ == "__main__":
    met = ranks.start()
    everything = gradients(met)
    if met.first:
        save_file(everything, sys.argv[1])
    met.wait()
