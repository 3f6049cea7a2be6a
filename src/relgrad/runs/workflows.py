"""Workflows executed outside of a search: which back end answers, and on which problems."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from relgrad.backends.protocol import Backend, CallFailed
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.secrets import require_references
from relgrad.core.settings import Component, checked, settings_of
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Sandbox
from relgrad.environments.workflows import file, programs, sources
from relgrad.environments.workflows.execute import Outcome, execute
from relgrad.environments.workflows.language import Step, parse
from relgrad.environments.workflows.operators import Operators
from relgrad.environments.workflows.problem import Problem
from relgrad.environments.workflows.programs import execute_program
from relgrad.runs.yaml_text import read_yaml

SANDBOX = "sandbox."
"""What overrides of the sandbox's settings begin with."""


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
    source: str, problems: Sequence[str], overrides: Sequence[str], seed: int
) -> Iterator[tuple[str, Outcome]]:
    """Each problem's text and what came of it. Raises RelgradError, also where the back end cannot be used at all."""
    execute_one, facts, overrides = _executor(source, overrides)
    backend = build_backend(_backend_section(facts, overrides), int(facts.get("seed", 0)))
    known = _problems_of(facts)
    chosen = [known.get(text, Problem(text, text, "")) for text in problems]

    async def all_of_them() -> list[Outcome]:
        try:
            return [await execute_one(Operators(problem, backend.generate, seed)) for problem in chosen]
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
    """The problems of the file's search by their ids; none where it names none."""
    section = facts.get("problems")
    if not isinstance(section, Mapping):
        return {}
    return {problem.id: problem for problem in sources.load(Component(**section), int(facts.get("seed", 0)))}
