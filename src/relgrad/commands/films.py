"""Films: texts written in several steps, with all their states, as `relgrad sample --steps` shows and keeps them.

Kinds of policies that can be filmed say so by their SAMPLE_OPTIONS (protocols.WritesInSteps), and with them how an option of the
command line changes their settings, or what it asks to be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relgrad.commands.sample_options import declared
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.options import SampleOption
from relgrad.core.protocols import WritesInSteps
from relgrad.core.randomness import generator
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Prompt
from relgrad.evaluation.held_out import film
from relgrad.runs.build import is_linked, load_task
from relgrad.runs.use import find_source, open_source, own_prompts, rewards_of
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage

FILE = "films.jsonl"
SHOWN = 4
"""Test prompts that are filmed where none is given."""


def shoot(
    source: str,
    prompts: Sequence[str],
    n: int,
    overrides: Sequence[str],
    options: Mapping[str, Any],
    save: bool = False,
) -> tuple[list[dict[str, Any]], Path | None]:
    """(`n` films per prompt, the file they were added to): of a run's trained policy or a recipe's untrained one.

    `options` are the command line's, by name. Prompts are the given ones, what an option asks to be written, or the first test
    prompts, whose films also say what their texts are worth. Raises RelgradError for a policy that cannot be filmed, for an
    option that it does not have, and for `save` without a run folder.
    """
    chosen = _options_of(find_source(source, overrides)[0].policy.kind, options)
    changed = [f"policy.{k}={v}" for option in chosen for k, v in option.settings(options[option.name]).items()]
    stage, start = open_source(source, [*overrides, *changed])
    if save and start is None:
        raise RelgradError(f"{source} is a recipe; films are kept in a run's folder. Leave --save out, or give a run")
    texts, of_the_task = _prompts(source, stage, prompts, _written(chosen, options, prompts))
    rewards = rewards_of(stage, start) if of_the_task and (start is not None or not is_linked(stage)) else None
    policy = build_policy(stage, start)
    step = int(start.name.removeprefix("step_")) if start is not None else 0
    films = [{"step": step, **one} for one in film(policy, texts, n, generator(stage.seed, "film"), rewards)]
    if not save or start is None:
        return films, None
    folder = RunDir(start.parent.parent)
    for one in films:
        folder.append(FILE, one)
    return films, folder.root / FILE


def _options_of(kind: str, options: Mapping[str, Any]) -> list[SampleOption]:
    """Those of a kind's options that are given, in the kind's order.

    Raises RelgradError for a kind that does not write in several steps, and for options that it does not have.
    """
    module = registry.find("policies", kind)
    if not isinstance(module, WritesInSteps):
        able = [k for k in registry.kinds("policies") if isinstance(registry.find("policies", k), WritesInSteps)]
        raise RelgradError(
            f"policy kind {kind!r} does not write in several steps; kinds that do: {', '.join(able)}. Leave --animate, --save and "
            f"{_shown(declared())} out"
        )
    own = {option.name: option for option in module.SAMPLE_OPTIONS}
    if foreign := [name for name in options if name not in own]:
        remedy = f"it has {_shown(own)}" if own else "change its settings by policy.KEY=VALUE"
        raise RelgradError(f"policy kind {kind!r} has no such option: leave {_shown(foreign)} out; {remedy}")
    return [option for name, option in own.items() if name in options]


def _shown(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def _written(chosen: Sequence[SampleOption], options: Mapping[str, Any], prompts: Sequence[str]) -> str | None:
    """The text that an option asks to be written for; None where none does. Raises RelgradError beside --prompt."""
    for option in chosen:
        if option.prompt is not None:
            if prompts:
                raise RelgradError(f"--{option.name} and --prompt both say what is written for: give one of them")
            return option.prompt(options[option.name])
    return None


def _prompts(source: str, stage: Stage, prompts: Sequence[str], written: str | None) -> tuple[Sequence[Prompt], bool]:
    """(the prompts, whether they are the task's)."""
    if written is not None:
        return [Prompt(written)], False
    task = load_task(stage)
    if prompts:
        return own_prompts(task, prompts), False
    if not task.test:
        raise RelgradError(f"{source}: the task has no test prompts to write for; give your own with --prompt")
    return task.test[:SHOWN], True
