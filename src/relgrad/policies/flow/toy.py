"""Tiny flow policies for the contract tests: "a", "b" and the end, two editable positions, two steps.

The start x_0 is fixed by the prompt's id. Its law does not depend on the weights, so a trajectory's probability given x_0 is all
there is to test; how x_0 is drawn is tested by itself (tests/test_flow.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts, Stop
from relgrad.laws import ctmc
from relgrad.laws.schedule import Scheduler
from relgrad.networks.fsdfm.lora import add_lora
from relgrad.networks.fsdfm.network import DiT, DiTConfig
from relgrad.policies.flow.open import Opened
from relgrad.policies.flow.policy import FlowPolicy
from relgrad.policies.flow.settings import Lora, Settings
from relgrad.policies.flow.symbols import Symbols
from relgrad.text.vocabulary import Vocabulary
from relgrad.trajectories.states import pack_states, unpack_states
from relgrad.trajectories.trained_steps import tokens_per_step

POSITIONS = 2


def make(*, student: bool = False, **options: Any) -> Callable[[], Toy]:
    """A constructor of one toy with these settings; `student`: its network is told the step size."""

    def build() -> Toy:
        chosen = {"max_completion_length": POSITIONS, "sampling_steps": 2, "device": "cpu", **options}
        settings = Settings(**chosen)
        policy = FlowPolicy(parts(settings, student=student), settings)
        policy.initial = lambda group_B, prompts, draws: fixed(policy, group_B, prompts)
        policy.freeze_reference()
        prompts = (Prompt("ab", id=0), Prompt("", id=1), Prompt("babab", id=2))
        return Toy(policy, prompts, lambda prompt: enumerate_all(policy, prompt), keys, reward)

    return build


def parts(settings: Settings, *, student: bool = False, text: str = "ab") -> Opened:
    """A random network, the same every time, whose laws are far from uniform and depend on time, prompt and state."""
    symbols = Symbols(Vocabulary.of_text(text), len(set(text)), settings.source == "mask")
    config = DiTConfig(
        vocab_size=symbols.size, length=16, hidden=16, blocks=2, heads=2, cond_dim=8, step_conditioned=student
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiT(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        lora = settings.lora
        adapted = None
        if lora is not None:
            adapted = add_lora(model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules)
    scheduler = Scheduler(settings.scheduler or "polynomial", settings.exponent or 1.0)
    return Opened(model, symbols, scheduler, adapted, "toy")


def fixed(policy: FlowPolicy, group_B: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """x_0 [B, E], a function of the prompt's id."""
    source_K = policy.symbols.source_K
    first_B = torch.tensor([prompt.id for prompt in prompts])[group_B]
    return source_K[(first_B[:, None] + torch.arange(policy.settings.max_completion_length)) % len(source_K)]


def keys(rollouts: Rollouts) -> list[Hashable]:
    """All states of every row."""
    return [tuple(row) for row in unpack_states(rollouts.trace, torch.arange(rollouts.rows)).flatten(1).tolist()]


def reward(output: Output) -> float:
    """How many "a"s there are, less a little for "b"s."""
    return float(output.text.count("a")) - 0.25 * output.text.count("b")


@torch.no_grad()
def enumerate_all(policy: FlowPolicy, prompt: Prompt) -> Rollouts:
    """Every trajectory with positive probability, by one plain forward pass per state over the prompt and it alone."""
    start = tuple(fixed(policy, torch.zeros(1, dtype=torch.int64), [prompt])[0].tolist())
    paths: list[tuple[list[tuple[int, ...]], list[float]]] = [([start], [])]
    for step in range(policy.max_decisions):
        table = {states[-1]: transition(policy, prompt, states[-1], step) for states, _ in paths}
        paths = [
            ([*states, after], [*logps, logp])
            for states, logps in paths
            for after, logp in reachable(table[states[-1]])
        ]
    states = [torch.tensor([path[step] for path, _ in paths]) for step in range(policy.max_decisions + 1)]
    written = [policy.symbols.text(path[-1]) for path, _ in paths]
    mask_BT = torch.ones(len(paths), policy.max_decisions, dtype=torch.bool)
    stops: tuple[Stop, ...] = tuple("eos" if ended else "length" for _, _, ended in written)
    lengths = torch.tensor([len(ids) + ended for _, ids, ended in written])
    trace = {
        "prompt_GP": torch.tensor([policy.encode(prompt)], dtype=torch.int32),
        "prompt_length_G": torch.tensor([len(policy.encode(prompt))]),
        **pack_states(states, policy.symbols.size),
    }
    return Rollouts(
        (prompt,), torch.zeros(len(paths), dtype=torch.int64), torch.tensor([logps for _, logps in paths]), mask_BT,
        tokens_per_step(mask_BT, lengths), tuple(Output(text, ids) for text, ids, _ in written), stops, policy.version, trace,
    )  # fmt: skip


def transition(policy: FlowPolicy, prompt: Prompt, state: tuple[int, ...], step: int) -> Tensor:
    """[E, V]: log-probability of every token at every position after a step from `state`."""
    ids_1L = torch.tensor([[*policy.encode(prompt), *state]])
    size_1 = torch.tensor([1 / policy.max_decisions]) if policy.model.config.step_conditioned else None
    hidden_EH = policy.model.hidden(ids_1L, torch.tensor([step / policy.max_decisions]), size_1)[0, -len(state) :]
    allowed_V = torch.full((policy.symbols.size,), -torch.inf).index_fill(0, policy.symbols.drawable_K, 0.0)
    logits_EV = policy.model.logits(hidden_EH) / policy.settings.temperature + allowed_V
    time_1 = torch.tensor([step / policy.max_decisions], dtype=torch.float64)
    hazard_E = ctmc.hazard(policy.settings.kernel, policy.scheduler, time_1, 1 / policy.max_decisions).expand(
        len(state)
    )
    return ctmc.log_transition(policy.engine.law, logits_EV, torch.tensor(state), hazard_E)


def reachable(log_EV: Tensor) -> list[tuple[tuple[int, ...], float]]:
    """(next state, log-probability) for every one that can follow."""
    choices = [[v for v in range(log_EV.shape[1]) if row[v] > -torch.inf] for row in log_EV]
    return [(after, sum(float(log_EV[e, v]) for e, v in enumerate(after))) for after in itertools.product(*choices)]


def toys() -> dict[str, Any]:
    """Tiny instances for the contract tests, by name."""
    return {
        "mixture-uniform": make(),
        "mixture-mask-lora-dropout-configured": make(source="mask", lora=Lora(r=2, dropout=0.2)),
        "rate-uniform-temperature-squared": make(kernel="rate", temperature=0.8, exponent=2),
        "rate-mask-cosine": make(source="mask", kernel="rate", scheduler="cosine"),
        "cumulative-uniform-student": make(kernel="cumulative", student=True),
        "cumulative-mask-average": make(source="mask", kernel="cumulative", ema_decay=0.9),
    }
