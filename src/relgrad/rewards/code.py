"""1 where a completion's program passes its tests in the sandbox, 0 where it does not; or the share of tests that pass.

The prompt's columns say what is tested: `tests`, a list of statements or a text that defines `check(function)`; and, where there
are, `entry_point` (the function's name), `before` (how the prompt begins the program) and `setup` (what is executed before the
tests). The tasks `humaneval` and `mbpp` write them.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.benchmarks.code import Verdict, checks_of, judge_all
from relgrad.environments.benchmarks.completion import program_of
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Sandbox
from relgrad.rewards._columns import column, unscored


class CodeLimits(SandboxSettings):
    """Limits of a program, and those of its tests. Every question that a test asks is a call."""

    seconds: float = Field(10.0, gt=0, description="of waiting, without the time that the other side takes")
    cpu_seconds: int = Field(5, ge=1, description="of computing")
    calls: int = Field(10_000, ge=1, description="questions that the tests may ask")


class Settings(Strict):
    """Where it runs, and what some passed tests are worth."""

    partial: bool = Field(False, description="the share of tests that pass, in place of all or nothing")
    sandbox: CodeLimits = CodeLimits()


def columns_of(settings: Settings) -> tuple[str, ...]:
    """See combine.NeedsColumns."""
    return ("tests",)


def build(settings: Settings) -> Reward:
    """Raises RelgradError where generated code cannot be contained and the settings do not allow it anyway.

    A program that does not come to an end, or breaks off, fails all its tests. What says nothing of the program is unscored: tests
    that cannot be executed, values that they cannot be handed, a sandbox that could not be started.
    """
    sandbox = Sandbox(settings.sandbox, "reward 'code'")

    def code(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        column(prompt, "tests", "code")
        function = prompt.columns.get("entry_point")
        tests = checks_of(prompt.columns, function)
        if tests is None:
            return [unscored(f"no tests in column 'tests': {prompt.columns['tests']!r:.80}")] * len(outputs)
        before = prompt.columns.get("before") or ""
        pairs = [(program_of(output.text, function, before), tests) for output in outputs]
        contained = sandbox.containment.level == "full"
        return [_score(verdict, settings.partial, contained) for verdict in judge_all(sandbox, pairs)]

    return code


def _score(verdict: Verdict, partial: bool, contained: bool) -> Score:
    """Parts: the share of tests that pass, whether the program came to their end, ran together with them, and was contained."""
    if verdict.lost:
        return unscored(verdict.lost)
    share = sum(verdict.passed) / len(verdict.passed) if verdict.passed else 0.0
    facts = {"ended": verdict.error is None, "together": verdict.together, "contained": contained}
    parts = {"passed": share, **{name: float(fact) for name, fact in facts.items()}}
    return Score(share if partial else float(verdict.right), parts)
