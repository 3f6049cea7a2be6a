"""A tiny workflow policy for the contract tests: programs of at most two operators, at most 324 a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable

import torch

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.environments.lists.operators import APPLY
from relgrad.policies.workflow.policy import WorkflowPolicy
from relgrad.policies.workflow.settings import Settings

TEXTS = (
    "[3, 1, 2] -> [1, 2, 3]\n[0, 5] -> [0, 5]\n[9, -4, 4, 1] -> [-4, 1, 4, 9]",  # `sort` alone does it: rows of one operator
    "[1, 2] -> [4, 2]\n[] -> []",
    "[7] -> [6]",  # prompts show different numbers of examples
)


def make(temperature: float = 1.0) -> Callable[[], Toy]:
    """A constructor of one toy."""

    def build() -> Toy:
        policy = WorkflowPolicy(Settings(max_steps=2, hidden=16, temperature=temperature), seed=0)
        with torch.no_grad():
            policy.network.last.weight.mul_(10)  # far enough from uniform that a wrong law would be seen
        policy.keeper.freeze_reference()
        prompts = tuple(Prompt(text, id=number) for number, text in enumerate(TEXTS))
        return Toy(policy, prompts, lambda prompt: enumerate_all(policy, prompt), keys, reward)

    return build


def keys(rollouts: Rollouts) -> list[Hashable]:
    """The operators of every row."""
    return [output.ids for output in rollouts.outputs]


def reward(output: Output) -> float:
    """How many of the operators are of the first third: learnable, and different within every group."""
    return float(sum(operator < len(APPLY) // 3 for operator in output.ids))


def enumerate_all(policy: WorkflowPolicy, prompt: Prompt) -> Rollouts:
    """Every program that can be written: none goes on behind a solution, and none ends before it without being at its end."""
    problem = policy.problem(prompt)
    programs = []
    for steps in itertools.product(range(problem.actions), repeat=problem.most_steps):
        state = problem.start
        for taken, step in enumerate(steps, 1):
            state = problem.apply(state, step)
            if problem.solved(state):
                steps = steps[:taken]
                break
        programs.append(steps)
    programs = list(dict.fromkeys(programs))
    return policy.rollouts_of([prompt], torch.zeros(len(programs), dtype=torch.int64), programs)


def toys() -> dict[str, Callable[[], Toy]]:
    """Tiny instances for the contract tests, by name."""
    return {"two-operators-temperature": make(0.7)}
