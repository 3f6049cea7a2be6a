"""Workflows executed outside of a search: which back end answers, and on which problems."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from relgrad.backends.protocol import Backend, CallFailed
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.secrets import require_references
from relgrad.core.settings import Component, Strict, checked, settings_of
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Sandbox
from relgrad.environments.workflows import file, programs, sources
from relgrad.environments.workflows.execute import Outcome, execute
from relgrad.environments.workflows.language import Step, parse
from relgrad.environments.workflows.operators import Calculator, Operators, Runner
from relgrad.environments.workflows.problem import NoFile, Problem
from relgrad.environments.workflows.programs import execute_program
from relgrad.runs.yaml_text import read_yaml

SANDBOX = "sandbox."
"""What overrides of the sandbox's settings begin with."""


class Execution(Strict):
    """How a workflow is executed beside its back end; a search's file has these settings (environments/workflows/file.py)."""

    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1, description="of each reply")
    programs: Literal["arithmetic", "sandbox"] = "arithmetic"

    def operators(self, backend: Backend, seed: int) -> Callable[[Problem], Operators]:
        """The operators on a problem. Raises RelgradError where the sandbox cannot contain programs."""
        runner = runner_of(self.programs)
        return lambda problem: Operators(problem, backend.generate, seed, runner, self.temperature, self.max_tokens)


def runner_of(programs: str) -> Runner:
    """What runs programs that a model wrote. Raises RelgradError where the sandbox cannot contain them."""
    if programs == "arithmetic":
        return Calculator()
    from relgrad.environments.workflows.sandboxed import Sandboxed

    return Sandboxed()


def workflow_of(source: str) -> tuple[Step, Mapping[str, Any]]:
    """A workflow and what is known of it, from a file or from its text. Raises RelgradError."""
    if "(" in source and not Path(source).is_file():
        return parse(source), {}
    return file.read(Path(source))


def build_backend(section: Component, seed: int, where: str = "backend") -> Backend:
    """The back end of a section. Raises RelgradError, also for a secret that is written out."""
    require_references(section.options, where)
    module = registry.find("backends", section.kind)
    return module.build(settings_of(section, module.Settings, where), seed)


def execute_on(
    source: str,
    problems: Sequence[str],
    overrides: Sequence[str],
    seed: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[tuple[str, Outcome]]:
    """Each problem's text and what came of it; of a text that is no id of the file's problems, nobody knows the answer.

    `overrides` are settings of the back end, of Execution, and of the sandbox; `progress` is told what is done, and how much of it.
    Raises RelgradError, also where the back end cannot be used at all.
    """
    execute_one, facts, overrides = _executor(source, overrides)
    execution, overrides = _execution(facts, overrides)
    backend = build_backend(_backend_section(facts, overrides), int(facts.get("seed", 0)))
    operators = execution.operators(backend, seed)
    problem_of = _problems_of(facts) if any("\n" not in text.strip() for text in problems) else {}
    chosen = [problem_of.get(text, Problem(text, text, "")) for text in problems]

    async def all_of_them() -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            for number, problem in enumerate(chosen):
                progress(f"problem {number + 1} of {len(chosen)}", number, len(chosen))
                outcomes.append(await execute_one(operators(problem)))
            return outcomes
        except CallFailed as failure:
            raise RelgradError(str(failure)) from None
        finally:
            await backend.close()

    yield from zip([problem.text for problem in chosen], asyncio.run(all_of_them()), strict=True)


def _executor(
    source: str, overrides: Sequence[str]
) -> tuple[Callable[[Operators], Awaitable[Outcome]], Mapping[str, Any], list[str]]:
    """What executes a workflow, what its file says of it, and the overrides that are not the sandbox's.

    A workflow of the language is interpreted, a .py file runs in the sandbox.
    """
    others = [text for text in overrides if not text.startswith(SANDBOX)]
    if not source.endswith(".py"):
        step, facts = workflow_of(source)
        return partial(execute, step), facts, list(overrides)
    options = [text.removeprefix(SANDBOX).partition("=") for text in overrides if text.startswith(SANDBOX)]
    settings = checked({key: read_yaml(value, SANDBOX + key) for key, _, value in options}, SandboxSettings, "sandbox")
    sandbox = Sandbox(settings, f"workflow {source!r}")
    return partial(execute_program, programs.read(Path(source)), sandbox=sandbox), {}, others


def _execution(facts: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Execution, list[str]]:
    """The file's settings of execution with others in their place, and the overrides that are not of them."""
    settings = {key: facts[key] for key in Execution.model_fields if key in facts}
    others = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key in Execution.model_fields:
            settings[key] = read_yaml(value, text[:80])
        else:
            others.append(text)
    return checked(settings, Execution, "execution"), others


def _backend_section(facts: Mapping[str, Any], overrides: Sequence[str]) -> Component:
    """The file's back end with other settings; another kind begins anew."""
    options = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise RelgradError(f"{text!r} is no setting of a back end; write KEY=VALUE, for example kind=endpoint")
        options[key.removeprefix("backend.")] = read_yaml(value, f"backend: {text!r}")
    section = dict(facts.get("backend") or {})
    if "kind" in options and options["kind"] != section.get("kind"):
        section = {}
    section |= options
    if not isinstance(section.get("kind"), str):
        kinds = ", ".join(registry.kinds("backends"))
        raise RelgradError(
            f"which back end answers? The file names none: give kind={kinds.split(', ')[0]} and its settings (there are {kinds})"
        )
    return Component(**section)


def _problems_of(facts: Mapping[str, Any]) -> dict[str, Problem]:
    """The problems of the file's search by their ids; none where it names none, and where their file is not there."""
    section = facts.get("problems")
    if not isinstance(section, Mapping):
        return {}
    try:
        problems = sources.load(Component(**section), int(facts.get("seed", 0)))
    except NoFile:
        return {}
    return {problem.id: problem for problem in problems}
