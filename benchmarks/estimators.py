"""How near the gradient of every estimator is to the exact one, on a task small enough to enumerate every trajectory.

A network of 2 layers writes four of the letters abcd; the reward is 1 for a permutation of them. It is trained on texts of which
half are permutations and half are four letters at random, so that letters depend on each other. The gradient of the mean reward by
the law's own log-probability is added up over *all* trajectories. Every estimator's is the mean over sampled texts, with the exact
mean reward as baseline, by the loss that goes with it.

    cosine             of the estimator's mean gradient with the exact one: 1 where it points the right way
    length             of its mean gradient over that of the exact one; of no meaning where a loss has another scale
    relative variance  E|g - Eg|^2 / |Eg|^2 of the gradient g of one text
    cosine at 4,096    cosine / sqrt(1 + relative variance / texts): what 4,096 passes buy, T for writing a text and 3 for each
                       pass that is differentiated

For `low confidence` the exact gradient is that of the formula between its jumps (docs/likelihoods.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import harness
from relgrad.core.protocols import Loss, LossTerms
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt, Rollouts
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.objectives.bgpo import BgpoLoss
from relgrad.objectives.losses import PolicyLoss
from relgrad.objectives.spg import SpgLoss
from relgrad.policies.unmasking.open import diffusion_gpt
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.settings import Law, Network, Settings
from relgrad.policies.unmasking.symbols import VocabularySymbols
from relgrad.policies.unmasking.toy import enumerate_all
from relgrad.text.vocabulary import Vocabulary

TITLE = "estimators: gradients against the enumerated one"
LETTERS, LENGTH = "abcd", 4
PROMPT = Prompt("", id=0)
LAWS: dict[str, dict[str, Any]] = {
    "random, 1 a step": {"law": Law(order="random"), "steps": 4},
    "random, 2 a step": {"law": Law(order="random"), "steps": 2},
    "low confidence, 1 a step": {"law": Law(order="low_confidence"), "steps": 4},
}
REINFORCE = PolicyLoss("reinforce")
ESTIMATORS: dict[str, tuple[dict[str, Any], Loss]] = {
    "trajectory": ({}, REINFORCE),
    "trajectory, 1 step of T": ({"train_steps": 1}, REINFORCE),
    "trajectory, 2 steps of T": ({"train_steps": 2}, REINFORCE),
    "mean field": ({"estimator": MeanField(prompt_masking=0.0)}, REINFORCE),
    "coupled": ({"estimator": Coupled()}, REINFORCE),
    "ELBO, 1 mask": ({"estimator": Elbo(samples=1)}, REINFORCE),
    "ELBO, 2 masks": ({"estimator": Elbo(samples=2)}, REINFORCE),
    "ELBO, a pair (ESPO)": ({"estimator": Elbo(samples=1, antithetic=True)}, REINFORCE),
    "BGPO, 2 masks": ({"estimator": Bgpo(samples=2)}, BgpoLoss()),
    "SPG, 2 masks": ({"estimator": Spg(samples=2)}, SpgLoss()),
    "merged steps, 2 segments": ({"estimator": MergedSteps(segments=2)}, REINFORCE),
}
ARMS = tuple(LAWS)
BATCH, FORWARDS = 32, 4096
"""Texts whose gradient is taken together, and the passes that a comparison at equal cost allows."""


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """All estimators on one law: {"objective", "trajectories", "estimators": {name: figures}}."""
    start = trained(Law(order="random"), options["seed"], options["warm_up"]).network.module.state_dict()
    exact = policy_of(arm, start)
    objective, gradient_P, trajectories = exact_gradient(exact)
    figures = {}
    for name, (settings, loss) in ESTIMATORS.items():
        policy = policy_of(arm, start, **settings)
        batches = [batch_gradient(policy, loss, objective, number) for number in range(options["batches"])]
        figures[name] = compared(torch.stack(batches), gradient_P, passes(policy), policy.settings.sampling_steps)
    return {"objective": objective, "trajectories": trajectories, "estimators": figures}


def small_policy(settings: Settings) -> UnmaskingPolicy:
    vocabulary = Vocabulary.of_text(LETTERS)
    model = GPT(GPTConfig(vocab_size=vocabulary.size, **settings.network.model_dump()))
    return UnmaskingPolicy(diffusion_gpt(model, VocabularySymbols(vocabulary)), settings)


def settings_of(**more: Any) -> Settings:
    network = Network(block_size=LENGTH, n_layer=2, n_head=2, n_embd=32)
    return Settings(network=network, max_completion_length=LENGTH, device="cpu", **more)


def policy_of(law: str, start: dict[str, Tensor], **more: Any) -> UnmaskingPolicy:
    """The warm start, writing by one of LAWS."""
    policy = small_policy(settings_of(**LAWS[law], **more))
    policy.network.module.load_state_dict(start)
    return policy


def trained(law: Law, seed: int, steps: int) -> UnmaskingPolicy:
    """A policy that has seen permutations and random texts in equal numbers."""
    torch.manual_seed(seed)
    policy = small_policy(settings_of(law=law))
    optimizer = torch.optim.AdamW([parameter for _, parameter in policy.parameters()], lr=3e-3)
    permutations = ["".join(p) for p in itertools.permutations(LETTERS)]
    for step in range(steps):
        draw = generator(seed, "texts", step)
        number_E = torch.randint(len(permutations), (32,), generator=draw).tolist()
        letters_EL = torch.randint(len(LETTERS), (32, LENGTH), generator=draw).tolist()
        texts = [permutations[n] for n in number_E] + ["".join(LETTERS[i] for i in row) for row in letters_EL]
        loss = policy.supervised_loss([Example(PROMPT, text) for text in texts], draw)
        optimizer.zero_grad()
        (loss.total / loss.targets).backward()
        optimizer.step()
    return policy


def rewards_of(rollouts: Rollouts) -> Tensor:
    """float64 [B]: 1 for a permutation of the letters."""
    return torch.tensor([float(sorted(o.text) == sorted(LETTERS)) for o in rollouts.outputs], dtype=torch.float64)


def gradient_of(policy: UnmaskingPolicy) -> Tensor:
    """[P]: what was left in .grad, taken out."""
    parts = [p.grad.flatten().double() for _, p in policy.parameters() if p.grad is not None]
    for _, parameter in policy.parameters():
        parameter.grad = None
    return torch.cat(parts)


def exact_gradient(policy: UnmaskingPolicy) -> tuple[float, Tensor, int]:
    """(mean reward, its gradient [P], how many trajectories there are), over all trajectories."""
    everything = enumerate_all(policy, PROMPT)
    reward_B, objective = rewards_of(everything), 0.0
    for rows in torch.arange(everything.rows).split(2048):
        logp_B = torch.zeros(everything.rows, dtype=torch.float64)
        for cells_N2 in policy.plan(everything, rows, 16_384):
            scores = policy.score(everything, cells_N2)
            logp_B = logp_B.index_add(0, cells_N2[:, 0], scores.logp_N.double())
        expected = (logp_B[rows].exp() * reward_B[rows]).sum()
        expected.backward()
        objective += float(expected.detach())
    return objective, gradient_of(policy), everything.rows


def batch_gradient(policy: UnmaskingPolicy, loss: Loss, baseline: float, number: int) -> Tensor:
    """[P]: the estimator's gradient of the mean reward from BATCH texts, the same ones for estimators of one law."""
    rollouts = policy.sample([PROMPT], BATCH, generator(0, "texts", number))
    advantage_BT = (rewards_of(rollouts) - baseline).float()[:, None].expand(rollouts.mask_BT.shape)
    cells_N2 = rollouts.cells()
    logp_BT = torch.zeros(rollouts.mask_BT.shape).index_put(tuple(cells_N2.T), policy.score(rollouts, cells_N2).logp_N)
    terms = LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=rollouts.behaviour_logp_BT,
        advantage_BT=advantage_BT,
        mask_BT=rollouts.mask_BT,
        batch_decisions=float(len(cells_N2)),
        max_decisions=policy.max_decisions,
        stands_for=rollouts.stands_for,
    )
    value, _ = loss(terms)
    (-value).backward()
    return gradient_of(policy)


def passes(policy: UnmaskingPolicy) -> int:
    """Passes of a text that are differentiated."""
    if policy.surrogate is not None:
        return policy.surrogate.plan.count
    return policy.settings.train_steps or policy.settings.sampling_steps


def compared(gradient_KP: Tensor, exact_P: Tensor, passes: int, steps: int) -> dict[str, float]:
    """The figures of the module from K batches' gradients. The noise of the mean is taken out of its length."""
    mean_P = gradient_KP.mean(0)
    spread = float((gradient_KP - mean_P).square().sum()) / (len(gradient_KP) - 1)
    square = max(float(mean_P.square().sum()) - spread / len(gradient_KP), 1e-30)
    cosine = float(mean_P @ exact_P) / math.sqrt(square) / float(exact_P.norm())
    variance = spread * BATCH / square
    texts = FORWARDS / (steps + 3 * passes)
    return {
        "passes": passes,
        "cosine": cosine,
        "length": math.sqrt(square) / float(exact_P.norm()),
        "relative_variance": variance,
        "cosine_at_cost": cosine / math.sqrt(1 + variance / texts),
    }


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One thread: the figures do not depend on it."""
    cases = [
        {"seed": seed, "warm_up": 100 if quick else 400, "batches": 32 if quick else 256}
        for seed in range(1 if quick else 2)
    ]
    return harness.take_turns("estimators", cases, threads=[1], repeats=1, say=say)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """One table a law; the figures of every seed side by side."""
    made = []
    for law in ARMS:
        rows = sorted((r for r in records if r["arm"] == law), key=lambda r: r["seed"])
        objectives = " / ".join(f"{row['objective']:.3f}" for row in rows)
        table = Table(title=f"{law} (mean reward {objectives}, {rows[0]['trajectories']:,} trajectories)")
        for column in ("", "passes", "cosine", "length", "relative variance", f"cosine at {FORWARDS:,} passes"):
            table.add_column(column, justify="right" if column else "left")
        for name in ESTIMATORS:
            of = [row["estimators"][name] for row in rows]
            table.add_row(
                name,
                str(of[0]["passes"]),
                *(" / ".join(f"{f[key]:{form}}" for f in of) for key, form in COLUMNS.items()),
            )
        made.append(table)
    return made


COLUMNS = {"cosine": ".3f", "length": ".2f", "relative_variance": ".0f", "cosine_at_cost": ".3f"}
