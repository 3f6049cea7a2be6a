r"""A policy that writes a list program, one operator a decision, and sees what each operator has made of the examples.

    log pi(a_t | s_t) = log softmax(network(s_t) / temperature)[a_t],     s_{t+1} = what a_t makes of s_t

s_t are the visible examples' lists after t operators, beside what they should become, and how many operators are left. A row ends
by itself when every visible example has become what it should, or after `max_steps` operators: no decision ends it, so the law is
exact without one. Hidden examples are not seen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relgrad.core.protocols import Place
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Output, Prompt, Rollouts, Stop
from relgrad.environments.lists.examples import LONGEST, read
from relgrad.environments.lists.operators import APPLY
from relgrad.environments.lists.problem import ListProblem, State
from relgrad.environments.lists.program import Program
from relgrad.laws.categorical import Truncation, log_probs, sample
from relgrad.networks.example_set.network import ABSENT, PAD, ExampleSet, ExampleSetConfig
from relgrad.networks.weights.facts import count_parameters
from relgrad.networks.weights.keeper import Keeper
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.workflow.settings import Settings


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> WorkflowPolicy:
    """A new network by the seed, or the one that a run saved in `start`. Raises RelgradError for another network's folder."""
    policy = WorkflowPolicy(settings, seed)
    if start is not None:
        policy.load(start)
    if reference:
        policy.keeper.freeze_reference()
    return policy


class WorkflowPolicy:
    """Implements protocols.Policy and protocols.GuidesSearch."""

    law: Literal["exact", "surrogate"] = "exact"

    def __init__(self, settings: Settings, seed: int, actions: int = len(APPLY)) -> None:
        self.settings = settings
        self.version, self.max_decisions = 0, settings.max_steps
        self.search_evaluations = settings.search_evaluations
        config = ExampleSetConfig(
            actions=actions, longest=LONGEST, most_steps=settings.max_steps, hidden=settings.hidden
        )
        self.network = ExampleSet.new(config, seed)
        self.truncation = Truncation(settings.temperature)
        self.keeper = Keeper(self.network)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy."""
        uniform_BT = Draws.of(randomness, len(prompts)).rand(group_size, self.max_decisions).flatten(0, 1)
        group_B = torch.arange(len(prompts)).repeat_interleave(group_size)

        def draw(logits_NA: Tensor, row_N: Tensor, step: int) -> tuple[Tensor, Tensor]:
            action_N, logp_N, _ = sample(logits_NA, self.truncation, uniform_N=uniform_BT[row_N, step])
            return action_N, logp_N

        return self._rows(prompts, group_B, draw)

    @torch.no_grad()
    def rollouts_of(self, prompts: Sequence[Prompt], group_B: Tensor, decisions: Sequence[Sequence[int]]) -> Rollouts:
        """See protocols.GuidesSearch; a row of fewer decisions than it could have ends with its last."""
        longest = self.max_decisions
        told_BT = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in decisions], dtype=torch.int64)

        def take(logits_NA: Tensor, row_N: Tensor, step: int) -> tuple[Tensor, Tensor]:
            action_N = told_BT[row_N, step]
            logp_N = log_probs(logits_NA, self.truncation).gather(-1, action_N.clamp(min=0)[:, None])[:, 0]
            return action_N, logp_N

        return self._rows(prompts, group_B, take)

    def _rows(self, prompts: Sequence[Prompt], group_B: Tensor, choose: Any) -> Rollouts:
        """Rows of the prompts' groups; `choose(logits, rows, step)` gives decisions, -1 for none, and their log-probabilities."""
        problems = [self.problem(prompt) for prompt in prompts]
        groups, longest = group_B.tolist(), self.max_decisions
        state_B: list[State] = [problems[g].start for g in groups]
        decision_B: list[list[int]] = [[] for _ in groups]
        logp_BT = torch.zeros(len(groups), longest)
        mask_BT = torch.zeros(len(groups), longest, dtype=torch.bool)
        most = max((len(problem.goal) for problem in problems), default=1)
        values_BTE2L = torch.full((len(groups), longest, most, 2, LONGEST), PAD, dtype=torch.int16)
        action_BT = torch.zeros(len(groups), longest, dtype=torch.int16)
        live = [row for row, g in enumerate(groups) if not problems[g].solved(state_B[row])]
        for step in range(longest):
            if not live:
                break
            places = [(problems[groups[row]], state_B[row], step) for row in live]
            row_N = torch.tensor(live)
            values_NE2L = self._values(places, most)
            action_N, logp_N = choose(self._logits(values_NE2L, torch.full((len(live),), longest - step)), row_N, step)
            values_BTE2L[row_N, step] = values_NE2L
            after = []
            for row, action, logp in zip(live, action_N.tolist(), logp_N.tolist(), strict=True):
                if action < 0:
                    continue
                problem = problems[groups[row]]
                state_B[row] = problem.apply(state_B[row], action)
                decision_B[row].append(action)
                action_BT[row, step], logp_BT[row, step], mask_BT[row, step] = action, logp, True
                if not problem.solved(state_B[row]):
                    after.append(row)
            live = after
        stops: list[Stop] = [
            "eos" if problems[g].solved(state) or len(row) == longest else "length"
            for g, state, row in zip(groups, state_B, decision_B, strict=True)
        ]
        return Rollouts(
            prompts=tuple(prompts),
            group_B=group_B,
            behaviour_logp_BT=logp_BT,
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            outputs=tuple(Output(Program(tuple(row)).text, tuple(row)) for row in decision_B),
            stop=tuple(stops),
            policy_version=self.version,
            trace={"values_BTE2L": values_BTE2L, "action_BT": action_BT},
        )

    # ------------------------------------------------------------------ what a search asks

    def problem(self, prompt: Prompt) -> ListProblem:
        """The examples that the prompt shows. Raises RelgradError for a prompt without."""
        return ListProblem(read(prompt.text), self.max_decisions)

    @torch.no_grad()
    def priors(self, places: Sequence[Place]) -> Tensor:
        """See protocols.GuidesSearch."""
        most = max(len(problem.start) for problem, _, _ in places)
        left_N = torch.tensor([self.max_decisions - taken for _, _, taken in places])
        return log_probs(self._logits(self._values(places, most), left_N), self.truncation).exp()

    # ------------------------------------------------------------------ scoring

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy."""
        row_N, step_N = cells_N2.unbind(-1)
        values_NE2L, left_N = rollouts.trace["values_BTE2L"][row_N, step_N], self.max_decisions - step_N
        action_N = rollouts.trace["action_BT"][row_N, step_N].long()
        logp_NA = log_probs(self._logits(values_NE2L, left_N), self.truncation)
        entropy_N = kl_N = None
        if entropy:
            entropy_N = -(logp_NA.exp() * logp_NA).sum(-1)
        if reference_kl:
            with torch.no_grad(), self.reference():
                start_NA = log_probs(self._logits(values_NE2L, left_N), self.truncation)
            kl_N = categorical_kl(logp_NA, start_NA)
        return CellScores(logp_NA.gather(-1, action_N[:, None])[:, 0].float(), entropy_N, kl_N)

    def _logits(self, values_NE2L: Tensor, left_N: Tensor) -> Tensor:
        logits_NA: Tensor = self.network(values_NE2L, left_N)
        return logits_NA

    def _values(self, places: Sequence[Place], most: int) -> Tensor:
        """int16 [N, most, 2, LONGEST]: what the lists of every example are, and what they should become; see ExampleSet."""
        table = np.full((len(places), most, 2, LONGEST), PAD, dtype=np.int16)
        for n, (problem, state, _) in enumerate(places):
            assert isinstance(problem, ListProblem)
            table[n, len(state) :] = ABSENT
            for e, (now, then) in enumerate(zip(state, problem.goal, strict=True)):
                table[n, e, 0, : len(now)] = now
                table[n, e, 1, : len(then)] = then
        return torch.from_numpy(table)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """One decision is one unit of work."""
        return list(rollouts.cells(rows).split(budget))

    # ------------------------------------------------------------------ weights

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See protocols.Policy."""
        with self.keeper.reference():
            yield

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.keeper.parameters()

    @property
    def model(self) -> torch.nn.Module:
        return self.network

    @property
    def facts(self) -> dict[str, str]:
        """For the head of the report."""
        return {
            "Parameters": f"{count_parameters(self.network):,}",
            "Operators": f"at most {self.max_decisions} of {len(APPLY)}",
        }

    def save(self, folder: Path) -> None:
        self.network.save(folder)

    def load(self, folder: Path) -> None:
        """Raises RelgradError for a folder of another network."""
        saved = ExampleSet.load(folder)
        self.network.take(saved.state_dict(), str(folder))
