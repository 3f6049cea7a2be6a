"""What the operators do: each asks the model at most once. The interpreter and compiled programs call the same methods."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from relgrad.backends.protocol import Reply, Request, Usage
from relgrad.core.randomness import derived
from relgrad.environments.workflows.problem import Problem, answer_of, normal, number_in
from relgrad.environments.workflows.prompts import ANSWER, message

Ask = Callable[[Request], Awaitable[Reply]]
"""How a request is answered; whoever offers it counts, limits and keeps. Raises CallFailed."""

SHOWN = 400
"""Characters of a reply that the record of its call keeps."""
FENCE = re.compile(r"```(?:python)?\s*\n(.*?)```", re.DOTALL)
JUDGEMENT = re.compile(r"\b(?:right|correct|wrong|incorrect)\b")
NEGATION = re.compile(r"\bnot\b|cannot\b|n['’]t\b")
TESTS: dict[str, Callable[[int, int], bool]] = {"even_as": lambda answer, like: answer % 2 == like % 2}
"""Tests that problems name: of the answer, and an argument."""


@dataclass(frozen=True)
class Solution:
    """A solution's text, and what a review objects to; None where none does."""

    text: str
    objection: str | None = None

    @property
    def answer(self) -> str:
        return answer_of(self.text)


@dataclass(frozen=True)
class Call:
    """One question of a workflow: who asked, at which place of the program, what came back and what it cost."""

    operator: str
    prompt: str
    at: str
    text: str
    usage: Usage


class Runner(Protocol):
    """Runs a program that a model wrote."""

    async def run(self, program: str) -> str | None:
        """What it printed; None where it failed, or is none that may run. Raises CallFailed where it could not be run."""
        ...


class Calculator:
    """Runs programs of one line that print an arithmetic expression of numbers, and no others: no Python is executed."""

    async def run(self, program: str) -> str | None:
        try:
            (line,) = ast.parse(program.strip()).body
            value = line.value if isinstance(line, ast.Expr) else None
            if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "print" and len(value.args) == 1):
                return None
            return str(_number(value.args[0]))
        except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
            return None


LARGEST = 1e15
"""No number of an expression is larger."""
BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def _number(node: ast.expr) -> float:
    """The value of an expression of numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and abs(node.value) < LARGEST:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](_number(node.left), _number(node.right))
    raise ValueError(f"no arithmetic: {ast.unparse(node)[:40]!r}")


@dataclass
class Operators:
    """The operators on one problem. `at` names a place in the program, so that every question there has a seed of its own.

    seed     of the execution: the same program, problem and seed ask the same questions
    calls    what was asked so far, in the order of the answers
    labels   what a place counts as for its seed, where that is not its own name (execute.shared_labels)
    """

    problem: Problem
    ask: Ask
    seed: int
    runner: Runner = field(default_factory=Calculator)
    temperature: float = 1.0
    max_tokens: int = 512
    calls: list[Call] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)

    async def generate(self, prompt: str, at: str) -> Solution:
        return Solution(await self._asked("generate", prompt, at))

    async def program(self, prompt: str, at: str) -> Solution:
        """A program that fails has no answer, and its message is none."""
        reply = await self._asked("program", prompt, at)
        fenced = FENCE.findall(reply)
        printed = await self.runner.run(fenced[-1] if fenced else reply)
        return Solution("" if printed is None else f"{ANSWER} {printed.strip()}")

    async def ensemble(self, solutions: Sequence[Solution], at: str) -> Solution:
        """The first solution with the commonest answer; of equally common ones one is drawn. Who has no answer does not vote."""
        votes = Counter(normal(solution.answer) for solution in solutions if solution.answer)
        if not votes:
            return replace(solutions[0], objection=None)
        most = max(votes.values())
        tied = sorted(answer for answer, count in votes.items() if count == most)
        chosen = random.Random(self._seed(at)).choice(tied)
        first = next(solution for solution in solutions if solution.answer and normal(solution.answer) == chosen)
        return replace(first, objection=None)

    async def review(self, solution: Solution, prompt: str, at: str) -> Solution:
        reply = await self._asked("review", prompt, at, solution)
        return replace(solution, objection=None if says_right(reply) else reply)

    async def revise(self, solution: Solution, prompt: str, at: str) -> Solution:
        if solution.objection is None:
            return solution
        return Solution(await self._asked("revise", prompt, at, solution))

    async def verify(self, solution: Solution, at: str) -> bool:
        return says_right(await self._asked("verify", "", at, solution))

    async def test(self, solution: Solution) -> bool:
        """Whether the answer passes the problem's tests; True where it has none."""
        number = number_in(solution.answer)
        return all(number is not None and TESTS[name](int(number), like) for name, like in self.problem.tests)

    async def format(self, solution: Solution, prompt: str, at: str) -> Solution:
        return Solution(await self._asked("format", prompt, at, solution))

    async def extract(self, solution: Solution) -> Solution:
        return Solution(f"{ANSWER} {solution.answer}" if solution.answer else "")

    async def _asked(self, operator: str, prompt: str, at: str, solution: Solution = Solution("")) -> str:
        about = {"operator": operator, "prompt": prompt or "plain", "problem": dict(self.problem.told)}
        text = message(
            operator, prompt, problem=self.problem.text, solution=solution.text, objection=solution.objection or ""
        )
        request = Request(
            ({"role": "user", "content": text},),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self._seed(at),
            about={**about, "id": self.problem.id, "solution": solution.answer},
        )
        reply = await self.ask(request)
        self.calls.append(Call(operator, prompt, at, reply.text[:SHOWN], reply.usage))
        return reply.text

    def _seed(self, at: str) -> int:
        return derived(self.seed, "workflow", self.problem.id, self.labels.get(at, at))


def says_right(reply: str) -> bool:
    """Whether the first of the words right and wrong is right; a reply with neither finds nothing wrong.

    A "not" or "n't" before it in its clause turns it round: "not quite correct" is wrong.
    """
    for clause in re.split(r"[.,;:!?\n]+|\bbut\b", reply.lower()):
        if judgement := JUDGEMENT.search(clause):
            negated = NEGATION.search(clause[: judgement.start()]) is not None
            return (judgement.group() in ("right", "correct")) != negated
    return True
